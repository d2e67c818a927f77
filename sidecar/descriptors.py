"""How many connections a process has descriptors for.

Owns the sum: what the system allows, what is kept back, what a stream needs. Must not know who opens them.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.settings import Settings

RESERVE: Final = 128
"""Kept back for what is no client's: the ports, the admin port's callers, exporters, health checks, files, name
look-ups."""

_CONNECTIONS_PER_STREAM: Final = 2
_CONNECTIONS_PER_HEDGED_STREAM: Final = 3
_UNLIMITED: Final = 1 << 20


class TooFewDescriptorsError(ValueError):
    """What is configured cannot be held. The message says which limit to raise or to lower."""


def raise_limit() -> int:
    """Let this process have as many descriptors as it may have. How many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS has a bound of its own below an unlimited hard limit
            return _bounded(soft)
    return _bounded(hard)


def current_limit() -> int:
    """How many descriptors this process may have open."""
    return _bounded(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def limit_after_raising() -> int:
    """What `raise_limit` would give a process that is started from here."""
    return _bounded(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _bounded(limit: int) -> int:
    return _UNLIMITED if limit == resource.RLIM_INFINITY else limit


def most_connections(settings: Settings, limit: int) -> int:
    """How many client connections one process of ``settings`` takes, where it may have ``limit`` descriptors.

    Raises TooFewDescriptorsError where what is asked for does not fit.
    """
    each = descriptors_per_stream(settings)
    room = max(0, limit - RESERVE) // each
    asked = settings.connections.most
    if room < 1:
        raise TooFewDescriptorsError(
            f"the process may open {limit} files (RLIMIT_NOFILE), of which {RESERVE} are kept back: none is left for "
            f"clients; raise the limit (ulimit -n, LimitNOFILE=) to {RESERVE + each} at least"
        )
    if asked > room:
        raise TooFewDescriptorsError(_too_many("connections.most", asked, room, limit, each))
    key, streams = streams_wanted(settings)
    if streams > room:
        raise TooFewDescriptorsError(_too_many(key, streams, room, limit, each))
    return asked or room


def descriptors_per_stream(settings: Settings) -> int:
    """A stream's client, its upstream, and where streams are hedged another upstream for a while."""
    is_hedged = any(route.retry.hedge_after_s for route in settings.routes)
    return _CONNECTIONS_PER_HEDGED_STREAM if is_hedged else _CONNECTIONS_PER_STREAM


def streams_wanted(settings: Settings) -> tuple[str, int]:
    """How many streams one process may have to hold, and which key says so; 0 where none bounds them.

    Of several ``workers`` each has its share of ``max_streams``.
    """
    workers = settings.workers or os.cpu_count() or 1
    if settings.max_streams:
        return "max_streams", -(-settings.max_streams // workers)
    limits = [route.limits.streams for route in settings.routes]
    if limits and all(limits):
        return "the routes' limits.streams together", -(-sum(limits) // workers)
    return "", 0


def _too_many(key: str, asked: int, room: int, limit: int, each: int) -> str:
    return (
        f"{key}: {asked} in one process need {asked * each + RESERVE} open files, {each} each and {RESERVE} besides, "
        f"and it may open {limit} (RLIMIT_NOFILE), enough for {room}; raise that limit (ulimit -n, LimitNOFILE=) or "
        "lower the key"
    )
