"""What is allowed and yet probably not meant: the warnings of a configuration.

Owns the list of them. Must not refuse anything; `reading` and its sections do that.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sidecar.admission import RANKS, terms_of
from sidecar.certificates import pair_trouble
from sidecar.configuration.fallbacks import warnings_of_fallbacks
from sidecar.descriptors import TooFewDescriptorsError, limit_after_raising, most_connections
from sidecar.routing import covers
from sidecar.secrets import AwsKeys, Secret, SecretUnreadableError
from sidecar.settings import Drain
from sidecar.signing import MISSING, can_sign
from sidecar.telemetry.choices import choose
from sidecar.telemetry.metric_settings import metric_settings
from sidecar.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sidecar.settings import AwsSigning, SecretSource, Settings, Telemetry, Upstream

_COLLECTOR_FILES: Final = (
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
)


def warnings_of(settings: Settings, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Every warning, each beginning with the path of the key it is about. Reads the secret and certificate files."""
    return (
        *_exposure(settings),
        *_unreadable(settings, environ),
        *(warning for upstream in settings.upstreams.values() for warning in _of_upstream(upstream)),
        *_of_routes(settings),
        *warnings_of_fallbacks(settings),
        *_of_drain(settings),
        *_of_connections(settings),
        *_of_limits(settings),
        *_of_telemetry(settings.telemetry, environ),
    )


def _injects(upstream: Upstream) -> bool:
    return upstream.credentials.are_ours


def _exposure(settings: Settings) -> Iterator[str]:
    injects = any(map(_injects, settings.upstreams.values()))
    if injects and settings.auth is None:
        if not settings.listen.is_loopback:
            yield (
                f"listen: {settings.listen} can be reached from other machines, and whoever reaches it spends the "
                "credentials of your upstreams; set auth"
            )
        if "*" in settings.cors.origins:
            yield "cors.origins: any web page can spend the credentials of your upstreams; set auth or name the origins"
    if not settings.admin.is_loopback and settings.admin_auth is None:
        yield f"admin: {settings.admin} can be reached from other machines and needs no bearer; set admin_auth"
    if settings.auth is not None and not settings.listen.is_loopback and not settings.tls.certificate:
        yield f"auth: the bearer travels unencrypted to {settings.listen}; set tls, or encrypt in front of the sidecar"


def _unreadable(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    secrets = [("auth.bearer", settings.auth), ("admin_auth.bearer", settings.admin_auth)]
    files = [("tls.certificate", settings.tls.certificate), ("tls.key", settings.tls.key)]
    for name, upstream in settings.upstreams.items():
        secrets.append((f"upstreams.{name}.credentials", upstream.credentials.secret))
        files.append((f"upstreams.{name}.tls.ca_file", upstream.tls.ca_file))
        if upstream.credentials.aws is not None:
            yield from _unsignable(f"upstreams.{name}.credentials.aws", upstream.credentials.aws, environ)
    for path, source in secrets:
        trouble = _secret_trouble(source, environ) if source else ""
        if trouble:
            yield f"{path}: {trouble}"
    for path, file in files:
        if file and not os.access(file, os.R_OK):
            yield f"{path}: {file} cannot be read from here"
    tls = settings.tls
    if tls.certificate and all(os.access(file, os.R_OK) for file in (tls.certificate, tls.key)):
        trouble = pair_trouble(tls, datetime.now(UTC))
        if trouble:
            yield f"tls: {trouble}"


def _unsignable(path: str, signing: AwsSigning, environ: Mapping[str, str]) -> Iterator[str]:
    if not can_sign():
        yield f"{path}: {MISSING}"
    trouble = _trouble(lambda: AwsKeys(signing.keys, environ).read())
    if trouble:
        yield f"{path}: {trouble}"


def _secret_trouble(source: SecretSource, environ: Mapping[str, str]) -> str:
    return _trouble(lambda: Secret(source, environ).read())


def _trouble(read: Callable[[], object]) -> str:
    try:
        read()
    except SecretUnreadableError as error:
        return str(error)
    return ""


def _of_upstream(upstream: Upstream) -> Iterator[str]:
    path = f"upstreams.{upstream.name}"
    timeouts = upstream.timeouts
    if not upstream.tls.verify:
        yield f"{path}.tls.verify: the upstream's certificate is not verified, so anyone on the way can read everything"
    if upstream.scheme == "http" and not upstream.address.is_loopback and _injects(upstream):
        yield f"{path}.url: the credential travels unencrypted to {upstream.authority}"
    for key, value_s in (
        ("connect", timeouts.connect_s),
        ("first_token", timeouts.first_token_s),
        ("idle", timeouts.idle_s),
    ):
        if value_s > timeouts.total_s:
            yield (
                f"{path}.timeouts.{key}: {format_duration(value_s)} is longer than total, "
                f"{format_duration(timeouts.total_s)}, and so never comes to pass"
            )
    check = upstream.health
    if check is not None and check.timeout_s > check.interval_s:
        yield (
            f"{path}.health.timeout: {format_duration(check.timeout_s)} is longer than interval, "
            f"{format_duration(check.interval_s)}, so a check that is not answered delays the next"
        )


def _of_routes(settings: Settings) -> Iterator[str]:
    used = {name for route in settings.routes for name in route.upstreams}
    for name in settings.upstreams:
        if name not in used:
            yield f"upstreams.{name}: no route uses it"
    for position, route in enumerate(settings.routes):
        shadow = next((earlier for earlier in settings.routes[:position] if covers(earlier.match, route.match)), None)
        if shadow is not None:
            yield f"routes[{position}]: {route.name} is never reached, since {shadow.name} before it takes its requests"
        if route.limits.buffer_bytes > settings.max_buffered_bytes:
            yield (
                f"routes[{position}].limits.buffer: {format_size(route.limits.buffer_bytes)} is more than "
                f"max_buffered, {format_size(settings.max_buffered_bytes)}"
            )


def _of_drain(settings: Settings) -> Iterator[str]:
    if settings.mode == "egress":
        if settings.drain.delay_s != Drain().delay_s:
            yield "drain.delay: means nothing in egress mode, which refuses no request"
        return
    if settings.admin.is_loopback:
        yield f"admin: no kubelet reaches {settings.admin}, neither for probes nor for the preStop hook at /drain"
    elif settings.admin_auth is not None:
        yield "admin_auth: a preStop hook at /drain has to bear the token, in its httpHeaders"


def _of_connections(settings: Settings) -> Iterator[str]:
    try:
        most_connections(settings, limit_after_raising())
    except TooFewDescriptorsError as error:
        yield f"connections: it would not start from here: {error}"
    most = settings.connections.most
    if most and settings.max_streams > most * (settings.workers or os.cpu_count() or 1):
        yield f"max_streams: {settings.max_streams} are never reached, since connections.most is {most}"


def _of_limits(settings: Settings) -> Iterator[str]:
    """Limits that say nothing beside the others, and what is to happen at a limit that there is not."""
    callers = settings.callers
    if callers.header and not callers.streams and not any(route.limits.caller_streams for route in settings.routes):
        yield "callers.header: nothing limits a caller; set callers.streams, or limits.caller_streams of a route"
    if callers.streams > settings.max_streams > 0:
        yield f"callers.streams: {callers.streams} is more than max_streams, {settings.max_streams}"
    lowest = min(settings.routes, key=lambda route: RANKS[route.priority]).priority
    for position, route in enumerate(settings.routes):
        path, limits = f"routes[{position}]", route.limits
        if limits.queue and terms_of(route, settings) is None:
            yield f"{path}.limits.queue: nothing limits the streams of {route.name}, so that nobody ever waits"
        for key, count in (("streams", limits.streams), ("caller_streams", limits.caller_streams)):
            if count > settings.max_streams > 0:
                yield f"{path}.limits.{key}: {count} is more than max_streams, {settings.max_streams}"
        if limits.caller_streams > limits.streams > 0:
            yield f"{path}.limits.caller_streams: {limits.caller_streams} is more than streams, {limits.streams}"
        if route.preempt and route.priority == lowest:
            yield f"{path}.preempt: no route has a lower priority than {route.name}, so that it never ends a stream"


def _of_telemetry(telemetry: Telemetry, environ: Mapping[str, str]) -> Iterator[str]:
    choices = choose(telemetry, environ)
    yield from choices.warnings
    if choices.keeps_metrics:
        yield from metric_settings(environ).warnings
    if choices.traces is not None or choices.metrics is not None:
        for name in _COLLECTOR_FILES:
            if (file := environ.get(name, "")) and not os.access(file, os.R_OK):
                yield f"{name}: the file it names cannot be read from here"
    if choices.captures_content:
        yield "telemetry.capture_content: what users and models say is sent to whoever reads the traces"
    if telemetry.otlp and not choices.is_on:
        yield "telemetry.otlp: nothing is sent there, since OTEL_SDK_DISABLED is true"
