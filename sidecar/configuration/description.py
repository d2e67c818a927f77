"""What `sidecar check` prints of a good configuration.

Owns the wording. Must not know how the configuration was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.configuration.fallbacks import described, named_upstreams
from sidecar.settings import Connections
from sidecar.units import format_duration, format_size

if TYPE_CHECKING:
    from sidecar.settings import Match, Route, Settings, Upstream

GRACE_MARGIN_S: Final = 15.0
"""What a Pod's grace period needs beyond the drain: hooks and signals, telemetry, the container's own end."""


def describe(settings: Settings) -> str:
    """Addresses, routes as they are tried, upstreams and warnings; of secrets, only where each is read."""
    lines = [
        f"listen {settings.listen}, {_guard(settings.auth)}",
        f"admin  {settings.admin}, {_guard(settings.admin_auth)}",
        f"drain  {_drain(settings)}",
    ]
    if (connections := settings.connections) != Connections():
        most = f"{connections.most} at a time, " if connections.most else ""
        lines.append(
            f"clients {most}head within {format_duration(connections.header_timeout_s)}, "
            f"body within {format_duration(connections.body_timeout_s)}"
        )
    if settings.max_streams or settings.callers.streams:
        lines.append(f"limits {', '.join(_limits(settings))}")
    if settings.workers != 1:
        lines.append(f"workers {settings.workers or 'auto, one for each core'}")
    lines += ["routes, the first that fits:", *map(_route_line, settings.routes)]
    lines += ["upstreams:", *(_upstream_line(upstream, settings) for upstream in settings.upstreams.values())]
    lines += [f"warning: {warning}" for warning in settings.warnings]
    return "\n".join(lines)


def _drain(settings: Settings) -> str:
    drain = settings.drain
    timeout = format_duration(drain.timeout_s)
    if settings.mode == "egress":
        return f"in egress mode: nothing is refused; once stopped, streams have {timeout} to end"
    grace_s = drain.delay_s + drain.timeout_s + GRACE_MARGIN_S
    return (
        f"in ingress mode: requests are taken for {format_duration(drain.delay_s)}, then streams have {timeout} to "
        f"end; grace period at least {format_duration(grace_s)}"
    )


def _limits(settings: Settings) -> list[str]:
    callers = settings.callers
    parts = [f"{settings.max_streams} streams"] if settings.max_streams else []
    if callers.streams:
        parts.append(f"{callers.streams} of one caller, by {callers.header or 'its key'}")
    return parts


def _guard(source: object | None) -> str:
    return f"bearer from {source}" if source else "open"


def _route_line(route: Route) -> str:
    limits = route.limits
    parts = [f"  {route.name}: {_match(route.match)} → {named_upstreams(route)}", f"format {route.format}"]
    if route.strip_prefix:
        parts.append(f"without {route.strip_prefix}")
    if route.rewrite:
        parts.append(f"as {route.rewrite}")
    parts += described(route)
    parts.append(f"buffer {format_size(limits.buffer_bytes)}, then {limits.on_slow_client}")
    parts += _places(route)
    return "; ".join(parts)


def _places(route: Route) -> list[str]:
    limits = route.limits
    parts = [f"{limits.streams} streams"] if limits.streams else []
    if limits.caller_streams:
        parts.append(f"{limits.caller_streams} streams of one caller")
    if limits.queue:
        parts.append(f"{limits.queue} wait for up to {format_duration(limits.queue_timeout_s)}")
    if route.priority != "normal":
        parts.append(f"priority {route.priority}")
    if route.preempt:
        parts.append("preempts")
    return parts


def _match(match: Match) -> str:
    parts = [match.path]
    parts += [f"{name} {value}" for name, value in (("model", match.model), ("host", match.host)) if value]
    parts += [f"{name}: {value}" for name, value in match.headers]
    return ", ".join(parts)


def _upstream_line(upstream: Upstream, settings: Settings) -> str:
    timeouts = upstream.timeouts
    deadlines = (
        ("connect", timeouts.connect_s),
        ("first token", timeouts.first_token_s),
        ("idle", timeouts.idle_s),
        ("total", timeouts.total_s),
    )
    times = ", ".join(f"{name} {format_duration(value_s)}" for name, value_s in deadlines)
    limit = (f"at most {upstream.max_streams} streams",) if upstream.max_streams else ()
    parts = (f"dialect {upstream.dialect}", _credentials(upstream), times, _health(upstream, settings), *limit)
    return f"  {upstream.name}: {upstream.url}; " + "; ".join(parts)


def _health(upstream: Upstream, settings: Settings) -> str:
    check, circuit = settings.check_of(upstream), upstream.circuit
    checked = (
        f"checked at {check.path} every {format_duration(check.interval_s)}" if check is not None else "not checked"
    )
    if not circuit.failures:
        return checked
    return f"{checked}, left alone for {format_duration(circuit.backoff_s)} after {circuit.failures} failures in a row"


def _credentials(upstream: Upstream) -> str:
    credentials = upstream.credentials
    if (aws := credentials.aws) is not None:
        return f"signed for AWS {aws.service} in {aws.region} with {aws.keys}"
    if credentials.secret is None:
        return "the client's own credentials" if credentials.policy == "client" else "no credentials"
    when = " if the client sends none" if credentials.policy == "if_missing" else ""
    return f"{credentials.header} from {credentials.secret}{when}"
