"""The log: bytes in order, one cursor, and how far behind it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.log import Log
from tests.core_support import Client


def ready_client(capacity: int | None = None) -> Client:
    client = Client(capacity)
    client.start(b"head", is_chunked=True)
    return client


def test_a_subscriber_that_keeps_up_is_given_each_append_itself() -> None:
    client = ready_client()
    log = Log(client)
    data = b"abc"
    log.append(data)
    assert client.pieces[0] is data
    assert (log.held, log.end) == (0, 3)


def test_what_comes_behind_held_bytes_waits_with_them() -> None:
    client = ready_client(capacity=1)
    log = Log(client)
    for data in (b"a", b"b", b"c"):
        log.append(data)
    assert (client.body, log.held, log.end) == (b"a", 2, 3)
    client.drain()
    log.append(b"d")
    assert (client.body, log.held) == (b"a", 3)
    log.flush()
    assert (client.body, log.held) == (b"abcd", 0)


def test_a_flush_stops_where_the_subscriber_is_full_again() -> None:
    client = ready_client(capacity=1)
    log = Log(client)
    for data in (b"x", b"a" * 40_000, b"b" * 40_000, b"c"):
        log.append(data)
    client.drain()
    log.flush()
    assert client.pieces[1:] == [b"a" * 40_000]
    client.drain()
    log.flush()
    assert client.pieces[2:] == [b"b" * 40_000 + b"c"]
    assert log.held == 0


def test_one_piece_is_always_handed_over_whole() -> None:
    client = ready_client(capacity=1)
    log = Log(client)
    log.append(b"x")
    log.append(b"y" * 1_000_000)
    client.drain()
    log.flush()
    assert client.pieces[1] == b"y" * 1_000_000


def test_what_is_dropped_is_never_written() -> None:
    client = ready_client(capacity=1)
    log = Log(client)
    log.append(b"a")
    log.append(b"b")
    log.drop()
    client.drain()
    log.flush()
    assert (client.body, log.held, log.end) == (b"a", 0, 2)


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=50), st.none())), st.integers(1, 60))
def test_every_byte_arrives_once_and_in_order(steps: list[bytes | None], capacity: int) -> None:
    client = ready_client(capacity)
    log = Log(client)
    appended = b""
    for step in steps:
        if step is None:
            client.drain()
            log.flush()
        else:
            appended += step
            log.append(step)
        assert client.body == appended[: len(appended) - log.held]
        assert log.end == len(appended)
    while log.held:
        client.drain()
        log.flush()
    assert client.body == appended
