"""How many connections fit into a limit of descriptors, and what is said of those that do not."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from sidecar.descriptors import (
    RESERVE,
    TooFewDescriptorsError,
    current_limit,
    limit_after_raising,
    most_connections,
    raise_limit,
)
from sidecar.settings import Address, Connections, Limits, Retry, Settings
from tests.app_support import settings_for, upstream_at

HEDGED = Retry(hedge_after_s=1.0)


def settings(**options: Any) -> Settings:
    return settings_for(upstream_at(Address("127.0.0.1", 9)), **options)


@pytest.mark.parametrize(
    ("options", "limit", "most"),
    [
        ({}, 1024, (1024 - RESERVE) // 2),
        ({}, RESERVE + 2, 1),
        ({"connections": Connections(most=100)}, 1024, 100),
        ({"connections": Connections(most=100)}, RESERVE + 200, 100),
        ({"max_streams": 100}, RESERVE + 200, 100),
        ({"max_streams": 400, "workers": 4}, RESERVE + 200, 100),
        ({"route": {"limits": Limits(streams=100)}}, RESERVE + 200, 100),
        ({"route": {"retry": HEDGED}}, RESERVE + 300, 100),
    ],
)
def test_what_fits(options: dict[str, Any], limit: int, most: int) -> None:
    assert most_connections(settings(**options), limit) == most


@pytest.mark.parametrize(
    ("options", "limit", "told"),
    [
        ({}, RESERVE + 1, "RLIMIT_NOFILE"),
        ({}, 10, "RLIMIT_NOFILE"),
        ({"connections": Connections(most=101)}, RESERVE + 200, "connections.most: 101"),
        ({"max_streams": 101}, RESERVE + 200, "max_streams: 101"),
        ({"max_streams": 401, "workers": 4}, RESERVE + 200, "max_streams: 101"),
        ({"route": {"limits": Limits(streams=101)}}, RESERVE + 200, "limits.streams together: 101"),
        ({"max_streams": 67, "route": {"retry": HEDGED}}, RESERVE + 200, "max_streams: 67"),
    ],
)
def test_what_does_not_fit_is_told_with_what_to_do(options: dict[str, Any], limit: int, told: str) -> None:
    with pytest.raises(TooFewDescriptorsError) as caught:
        most_connections(settings(**options), limit)
    assert told in str(caught.value)
    assert "ulimit -n" in str(caught.value)
    assert str(limit) in str(caught.value)


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        assert current_limit() == min(512, hard)
        assert raise_limit() == limit_after_raising() == current_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_limit_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert current_limit() == limit_after_raising() == raise_limit() > 100_000


def test_a_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_which: int, _limits: tuple[int, int]) -> None:
        raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_limit() == 1024
