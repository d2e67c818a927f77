"""The ``routes`` section.

Owns its meaning and how it hangs together with the upstreams. Must not know how a request is matched.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sidecar.configuration.addresses import parse_path
from sidecar.configuration.fallbacks import read_commit, read_retry, read_upstream_names
from sidecar.configuration.fields import NAME_RULE, Section, header_name, is_name
from sidecar.settings import Limits, Match, Route

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sidecar.configuration.upstreams import UpstreamDraft


def read_routes(root: Section, upstreams: Mapping[str, UpstreamDraft], formats: Collection[str]) -> tuple[Route, ...]:
    """Every route in file order; one upstream and no routes make one route for everything, named "default"."""
    if "routes" not in root:
        if len(upstreams) > 1:
            root.complain("routes", "is missing: with several upstreams, say which requests go to which")
        return tuple(Route("default", (name,)) for name in upstreams)
    routes: list[Route] = []
    sections = list(root.listed_sections("routes"))
    if not sections:
        root.complain("routes", "needs at least one route")
    for section in sections:
        route = _read_route(section, formats)
        if route.name and any(route.name == other.name for other in routes):
            section.complain("name", "is the name of an earlier route")
        _check_upstreams(section, route, upstreams)
        routes.append(route)
    return tuple(routes)


def _read_route(section: Section, formats: Collection[str]) -> Route:
    if "name" not in section:
        section.complain("name", "is missing: start events and the admin port show it")
    default = Route("", ())
    names, weights = read_upstream_names(section)
    return Route(
        name=section.checked("name", _route_name, ""),
        upstreams=names,
        match=_read_match(section.section("match")),
        format=section.choice("format", formats, default.format),
        limits=_read_limits(section.section("limits")),
        strip_prefix=section.checked("strip_prefix", _prefix, ""),
        rewrite=section.checked("rewrite", parse_path, ""),
        heartbeat_s=section.duration("heartbeat", default.heartbeat_s, zero=True),
        native_heartbeat=section.boolean("native_heartbeat", default.native_heartbeat),
        usage=section.choice("usage", ("as_asked", "request"), default.usage),
        weights=weights,
        retry=read_retry(section.section("retry")),
        commit=read_commit(section),
        priority=section.choice("priority", ("low", "normal", "high"), default.priority),
        preempt=section.boolean("preempt", default.preempt),
    )


def _read_match(section: Section) -> Match:
    return Match(
        path=section.checked("path", _path_pattern, Match().path),
        model=section.text("model"),
        host=section.checked("host", str.lower, ""),
        headers=section.pairs("headers", lambda name, value: (header_name(name), value)),
    )


def _read_limits(section: Section) -> Limits:
    default = Limits()
    return Limits(
        buffer_bytes=section.size("buffer", default.buffer_bytes),
        on_slow_client=section.choice("on_slow_client", ("pause", "evict"), default.on_slow_client),
        stall_timeout_s=section.duration("stall_timeout", default.stall_timeout_s),
        max_body_bytes=section.size("max_body", default.max_body_bytes),
        max_frame_bytes=section.size("max_frame", default.max_frame_bytes),
        streams=section.count("streams", default.streams),
        caller_streams=section.count("caller_streams", default.caller_streams),
        queue=section.count("queue", default.queue),
        queue_timeout_s=section.duration("queue_timeout", default.queue_timeout_s),
    )


def _check_upstreams(section: Section, route: Route, upstreams: Mapping[str, UpstreamDraft]) -> None:
    if not route.upstreams:
        section.complain("upstreams", "needs at least one upstream's name")
    if len(set(route.upstreams)) < len(route.upstreams):
        section.complain("upstreams", "names an upstream twice")
    if any(name not in upstreams for name in route.upstreams):
        known = ", ".join(upstreams) or "none"
        section.complain("upstreams", f"names an upstream that does not exist; there is {known}")
    dialects = {upstreams[name].upstream.dialect for name in route.upstreams if name in upstreams} - {"auto"}
    if len(dialects) > 1:
        section.complain("upstreams", "are of different dialects; the fallbacks of one route speak the same")
    if route.rewrite and route.strip_prefix:
        section.complain("rewrite", "replaces the whole path, so strip_prefix beside it means nothing")


def _route_name(text: str) -> str:
    if not is_name(text):
        raise ValueError(NAME_RULE)
    return text


def _path_pattern(text: str) -> str:
    if not text.startswith("/") or not text.isprintable() or re.search(r"[?#%\\\s]|//|/\.{1,2}(?:/|\Z)", text):
        raise ValueError("must be a path that begins with /, with * for one segment and ** for any")
    if re.search(r"\*{3}|[^/]\*\*|\*\*[^/]", text):
        raise ValueError("must have ** as a segment of its own, as in /v1/**")
    return text


def _prefix(text: str) -> str:
    return parse_path(text).rstrip("/")
