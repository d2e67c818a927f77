"""The choice among the addresses of a name, with plain calls."""

from __future__ import annotations

import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sidecar.upstream.endpoints import BEHIND_S, MAX_BEHIND_S, Endpoint, Endpoints


def row(host: str) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = (host, 80, 0, 0) if ":" in host else (host, 80)
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)


def learned(*hosts: str) -> Endpoints:
    endpoints = Endpoints()
    assert endpoints.learn([row(host) for host in hosts], 0) == []
    return endpoints


def hosts(found: list[Endpoint]) -> list[str]:
    return [host for endpoint in found for host, _ in endpoint.places]


def take(endpoints: Endpoints, now: float = 0) -> Endpoint:
    endpoint = endpoints.in_order(now)[0]
    endpoints.enter(endpoint)
    return endpoint


def test_fewest_streams_first_and_of_equals_in_turn() -> None:
    endpoints = learned("10.0.0.1", "10.0.0.2", "10.0.0.3")
    taken = [take(endpoints) for _ in range(6)]
    assert hosts(taken) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"] * 2
    endpoints.leave(taken[1])
    assert hosts([take(endpoints)]) == ["10.0.0.2"]
    for endpoint in taken[:1] + taken[2:]:
        endpoints.leave(endpoint)
    endpoints.leave(taken[1])
    assert hosts([take(endpoints), take(endpoints), take(endpoints)]) == ["10.0.0.1", "10.0.0.3", "10.0.0.2"]


def test_one_that_fails_is_behind_for_longer_each_time() -> None:
    endpoints = learned("10.0.0.1", "10.0.0.2")
    first = endpoints.current[0]
    first.failed(0)
    assert hosts(endpoints.in_order(BEHIND_S - 0.1)) == ["10.0.0.2", "10.0.0.1"]
    assert hosts(endpoints.in_order(BEHIND_S)) == ["10.0.0.1", "10.0.0.2"]
    for _ in range(50):
        first.failed(0)
    assert first.is_behind(MAX_BEHIND_S - 0.1)
    assert not first.is_behind(MAX_BEHIND_S)
    first.connected()
    first.failed(0)
    assert not first.is_behind(BEHIND_S)


def test_the_two_addresses_of_one_host_are_one() -> None:
    endpoints = learned("fd00::1", "10.0.0.1")
    assert not endpoints.are_several
    assert hosts(endpoints.current) == ["fd00::1", "10.0.0.1"]
    assert not learned("10.0.0.1", "10.0.0.1").are_several
    assert learned("10.0.0.1", "10.0.0.2").are_several


def test_the_smaller_family_is_spare() -> None:
    endpoints = learned("fd00::1", "10.0.0.1", "10.0.0.2")
    assert hosts([take(endpoints) for _ in range(4)]) == ["10.0.0.1", "10.0.0.2"] * 2
    for endpoint in endpoints.current[1:]:
        endpoint.failed(0)
    assert hosts([take(endpoints)]) == ["fd00::1"]
    even = learned("fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2")
    assert hosts([take(even), take(even), take(even)]) == ["fd00::1", "fd00::2", "fd00::1"]


def test_an_address_that_is_gone_and_comes_back_still_has_its_streams() -> None:
    endpoints = learned("10.0.0.1", "10.0.0.2")
    first, second = take(endpoints), take(endpoints)
    assert endpoints.learn([row("10.0.0.2"), row("10.0.0.3")], 1) == [first]
    assert first.is_gone
    assert hosts([take(endpoints)]) == ["10.0.0.3"]
    assert endpoints.learn([row("10.0.0.1"), row("10.0.0.2")], 2)[0].active == 1
    assert (first.is_gone, first.active) == (False, 1)
    endpoints.learn([row("10.0.0.2"), row("10.0.0.4")], 3)
    endpoints.leave(first)
    assert first not in endpoints.all()
    endpoints.leave(second)
    assert second in endpoints.all()


def test_a_name_that_gives_one_of_many_each_time_is_one_place() -> None:
    endpoints = learned("10.0.0.1")
    only = take(endpoints)
    for host in ("10.0.0.2", "10.0.0.1", "10.0.0.3"):
        assert endpoints.learn([row(host)], 0) == []
        assert (endpoints.current, hosts(endpoints.current), only.active) == ([only], [host], 1)
    endpoints.learn([row("10.0.0.3"), row("10.0.0.4")], 0)
    assert endpoints.current[0] is only


@given(
    st.lists(
        st.one_of(
            st.just("take"),
            st.tuples(st.just("leave"), st.integers(0, 20)),
            st.tuples(st.just("learn"), st.sets(st.integers(1, 5), min_size=1)),
        ),
        max_size=80,
    )
)
def test_counts_are_exact_whatever_comes_and_goes(steps: list[Any]) -> None:
    endpoints, running = learned("10.0.0.1", "10.0.0.2"), []
    for step in steps:
        if step == "take":
            fewest = min(endpoint.active for endpoint in endpoints.current)
            running.append(take(endpoints))
            assert running[-1].active == fewest + 1
        elif step[0] == "learn":
            gone = endpoints.learn([row(f"10.0.0.{number}") for number in sorted(step[1])], 0)
            assert all(endpoint.is_gone for endpoint in gone)
        elif running:
            endpoints.leave(running.pop(step[1] % len(running)))
        for endpoint in endpoints.all():
            assert endpoint.active == running.count(endpoint)
        assert {id(endpoint) for endpoint in running} <= {id(endpoint) for endpoint in endpoints.all()}
