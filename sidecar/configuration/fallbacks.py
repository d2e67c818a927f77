"""What a route says of several upstreams: their weights, when another is tried, when an answer is the client's.

Owns the meaning of those keys, what is odd about them, and how `sidecar check` tells them. Must not know how it is
done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from sidecar.configuration.fields import whole_number
from sidecar.configuration.yaml_tree import Mapping
from sidecar.dialects import DIALECTS, OPAQUE
from sidecar.settings import Commit, Retry
from sidecar.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.configuration.fields import Section
    from sidecar.settings import Route, Settings, Upstream

MAX_ATTEMPTS: Final = 20
MAX_WEIGHT: Final = 1_000_000
BAD_REQUESTS: Final = frozenset({400, 405, 406, 411, 413, 414, 415, 422, 431})
"""Statuses that say the request itself is wrong."""

_OPAQUE: Final = frozenset(dialect.name for dialect in OPAQUE.values())


def read_upstream_names(section: Section) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A route's upstreams in order, with their weights where ``upstreams`` is no list but names and weights."""
    if not isinstance(section.node("upstreams"), Mapping):
        return section.texts("upstreams", str), ()
    pairs = section.pairs("upstreams", _weighted)
    weights = tuple([int(weight) for _, weight in pairs])
    if pairs and not any(weights):
        section.complain("upstreams", "needs a weight above zero: who would be asked first?")
    return tuple([name for name, _ in pairs]), weights


def read_commit(section: Section) -> Commit:
    """When the client's answer begins."""
    commit: Commit = section.choice("commit", get_args(Commit), "headers")
    return commit


def read_retry(section: Section) -> Retry:
    """When a request is tried again."""
    default = Retry()
    return Retry(
        attempts=section.count("attempts", default.attempts, 0, MAX_ATTEMPTS),
        statuses=section.texts("statuses", _status, only_text=False) if "statuses" in section else default.statuses,
        budget=section.checked("budget", _share, default.budget),
        max_wait_s=section.duration("max_wait", default.max_wait_s, zero=True),
        hedge_after_s=section.duration("hedge_after", default.hedge_after_s, zero=True),
    )


def warnings_of_fallbacks(settings: Settings) -> Iterator[str]:
    """What is allowed and yet never does what it says."""
    for position, route in enumerate(settings.routes):
        upstreams = [settings.upstreams[name] for name in route.upstreams]
        path = f"routes[{position}]"
        yield from _of_hedging(f"{path}.retry.hedge_after", route, upstreams)
        yield from _of_commit(f"{path}.commit", route, upstreams)


def _of_hedging(path: str, route: Route, upstreams: list[Upstream]) -> Iterator[str]:
    after_s = route.retry.hedge_after_s
    if not after_s:
        return
    if len(upstreams) == 1 or route.retry.attempts == 1 or not route.retry.budget:
        yield f"{path}: no second upstream is ever asked, since there is none, or no attempt or budget for it"
    for upstream in upstreams:
        if after_s >= upstream.timeouts.first_token_s:
            first_token = format_duration(upstream.timeouts.first_token_s)
            yield f"{path}: {upstream.name} has failed by then, after first_token, {first_token}"


def _of_commit(path: str, route: Route, upstreams: list[Upstream]) -> Iterator[str]:
    if route.commit == "headers":
        return
    for upstream in upstreams:
        if upstream.dialect in _OPAQUE:
            yield f"{path}: nothing in {upstream.name}'s streams is known to be content, so its headers commit"
        elif route.commit == "request" and route.format == "native" and not _may_be_opened(upstream):
            yield (
                f"{path}: in native, {upstream.name}'s streams cannot begin before it has answered, since "
                f"{upstream.dialect} is not always server-sent events; such requests commit at first_content"
            )
    if route.commit == "request" and route.format == "native" and not (route.native_heartbeat and route.heartbeat_s):
        yield f"{path}: native streams have no heartbeats, so that nothing but the head goes out early"


def _may_be_opened(upstream: Upstream) -> bool:
    return upstream.dialect == "auto" or DIALECTS[upstream.dialect].framings == ("sse",)


def described(route: Route) -> list[str]:
    """What differs from the usual."""
    retry, usual, parts = route.retry, Retry(), []
    if route.commit != "headers":
        parts.append(f"commit at {route.commit}")
    if retry.attempts:
        parts.append(f"{retry.attempts} attempts")
    if retry.statuses != usual.statuses:
        parts.append(f"again after {', '.join(map(str, retry.statuses)) or 'no status'}")
    if retry.budget != usual.budget:
        parts.append(f"budget {retry.budget:g}")
    if retry.max_wait_s != usual.max_wait_s:
        parts.append(f"wait at most {format_duration(retry.max_wait_s)}")
    if retry.hedge_after_s:
        parts.append(f"hedge after {format_duration(retry.hedge_after_s)}")
    return parts


def named_upstreams(route: Route) -> str:
    """The upstreams, with their weights if they have any."""
    if not route.weights:
        return ", ".join(route.upstreams)
    return ", ".join(f"{name} ({weight})" for name, weight in zip(route.upstreams, route.weights, strict=True))


def _weighted(name: str, weight: str) -> tuple[str, str]:
    return name, str(whole_number(weight, 0, MAX_WEIGHT))


def _status(text: str) -> int:
    status = whole_number(text, 400, 599)
    if status in BAD_REQUESTS:
        raise ValueError("says that the request is wrong, and it would be so elsewhere")
    return status


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ValueError("must be a share of all requests, from 0.0 to 1.0")
    return share
