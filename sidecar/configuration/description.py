"""What `sidecar check` prints of a good configuration.

Owns the wording. Must not know how the configuration was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.units import format_duration, format_size

if TYPE_CHECKING:
    from sidecar.settings import Match, Route, Settings, Upstream


def describe(settings: Settings) -> str:
    """Addresses, routes as they are tried, upstreams and warnings; of secrets, only where each is read."""
    lines = [
        f"listen {settings.listen}, {_guard(settings.auth)}",
        f"admin  {settings.admin}, {_guard(settings.admin_auth)}",
    ]
    if settings.workers != 1:
        lines.append(f"workers {settings.workers or 'auto, one for each core'}")
    lines += ["routes, the first that fits:", *map(_route_line, settings.routes)]
    lines += ["upstreams:", *map(_upstream_line, settings.upstreams.values())]
    lines += [f"warning: {warning}" for warning in settings.warnings]
    return "\n".join(lines)


def _guard(source: object | None) -> str:
    return f"bearer from {source}" if source else "open"


def _route_line(route: Route) -> str:
    limits = route.limits
    parts = [f"  {route.name}: {_match(route.match)} → {', '.join(route.upstreams)}", f"format {route.format}"]
    if route.strip_prefix:
        parts.append(f"without {route.strip_prefix}")
    if route.rewrite:
        parts.append(f"as {route.rewrite}")
    parts.append(f"buffer {format_size(limits.buffer_bytes)}, then {limits.on_slow_client}")
    return "; ".join(parts)


def _match(match: Match) -> str:
    parts = [match.path]
    parts += [f"{name} {value}" for name, value in (("model", match.model), ("host", match.host)) if value]
    parts += [f"{name}: {value}" for name, value in match.headers]
    return ", ".join(parts)


def _upstream_line(upstream: Upstream) -> str:
    timeouts = upstream.timeouts
    deadlines = (
        ("connect", timeouts.connect_s),
        ("first token", timeouts.first_token_s),
        ("idle", timeouts.idle_s),
        ("total", timeouts.total_s),
    )
    return f"  {upstream.name}: {upstream.url}; dialect {upstream.dialect}; {_credentials(upstream)}; " + ", ".join(
        f"{name} {format_duration(value_s)}" for name, value_s in deadlines
    )


def _credentials(upstream: Upstream) -> str:
    credentials = upstream.credentials
    if (aws := credentials.aws) is not None:
        return f"signed for AWS {aws.service} in {aws.region} with {aws.keys}"
    if credentials.secret is None:
        return "the client's own credentials" if credentials.policy == "client" else "no credentials"
    when = " if the client sends none" if credentials.policy == "if_missing" else ""
    return f"{credentials.header} from {credentials.secret}{when}"
