"""What another configuration changes: at once, or not before the process starts again.

Owns which keys are of which kind, and their names. Never tells a value: it may be nobody else's business.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.settings import Route, Settings

NEEDS_RESTART: Final = ("listen", "admin", "tls", "telemetry", "logs", "connections", "workers")
"""Sockets, threads and processes are made of these at the start."""

_APART: Final = frozenset({"upstreams", "routes", "warnings", *NEEDS_RESTART})
_KEYS: Final = {
    "scheme": "url",
    "address": "url",
    "authority": "url",
    "base_path": "url",
    "set_headers": "headers",
    "remove_headers": "headers",
    "weights": "upstreams",
}
"""Fields of the settings that the file calls otherwise, units aside."""


@dataclass(frozen=True, slots=True)
class Changes:
    """``live``: what is otherwise from now on, in words. ``needs_restart``: keys that stay as they were.
    ``warnings``: those that the configuration before did not give."""

    live: tuple[str, ...]
    needs_restart: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def compare(running: Settings, wanted: Settings) -> tuple[Settings, Changes]:
    """``wanted`` as far as a running process can follow it, and what that changes."""
    stay = tuple(name for name in NEEDS_RESTART if getattr(running, name) != getattr(wanted, name))
    settings = replace(wanted, **{name: getattr(running, name) for name in stay})
    live = (*_of_upstreams(running, settings), *_of_routes(running, settings), *_of_process(running, settings))
    new = tuple(warning for warning in wanted.warnings if warning not in running.warnings)
    return settings, Changes(live, stay, new)


def _of_process(running: Settings, wanted: Settings) -> Iterator[str]:
    for key in _differing(running, wanted):
        if key not in _APART:
            yield f"{key} changed"


def _of_upstreams(running: Settings, wanted: Settings) -> Iterator[str]:
    for name, upstream in wanted.upstreams.items():
        if name not in running.upstreams:
            yield f"upstreams.{name} is new"
        elif keys := _differing(running.upstreams[name], upstream):
            yield f"upstreams.{name} changed ({', '.join(keys)})"
    yield from (f"upstreams.{name} is gone" for name in running.upstreams if name not in wanted.upstreams)


def _of_routes(running: Settings, wanted: Settings) -> Iterator[str]:
    before, after = _by_name(running), _by_name(wanted)
    for name, route in after.items():
        if name not in before:
            yield f"route {name} is new"
        elif keys := _differing(before[name], route):
            yield f"route {name} changed ({', '.join(keys)})"
    yield from (f"route {name} is gone" for name in before if name not in after)
    if [name for name in before if name in after] != [name for name in after if name in before]:
        yield "routes are in another order"


def _by_name(settings: Settings) -> dict[str, Route]:
    return {route.name: route for route in settings.routes}


def _differing(before: Any, after: Any) -> list[str]:
    """The keys in which two of one kind differ, as the file calls them."""
    names = [field.name for field in fields(before) if getattr(before, field.name) != getattr(after, field.name)]
    return list(dict.fromkeys(_KEYS.get(name, name.removesuffix("_s").removesuffix("_bytes")) for name in names))
