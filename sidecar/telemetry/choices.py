"""What the configuration and the environment together ask of telemetry.

Owns the meaning of the ``OTEL_*`` variables that no exporter reads by itself, and the rule between the two: the file
goes before the environment where it says something, the environment before the defaults. Must not know OpenTelemetry's
packages: `sidecar check` asks here too, and waits for no import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sidecar.telemetry.variables import Variables

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sidecar.settings import OtlpProtocol, Telemetry

QUEUE_ITEMS: Final = 8192
BATCH_ITEMS: Final = 128
BATCH_DELAY_S: Final = 1.0

_HTTP: Final[OtlpProtocol] = "http/protobuf"
_GRPC: Final[OtlpProtocol] = "grpc"
_SAMPLERS: Final = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "traceidratio": (None, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "parentbased_traceidratio": (None, True),
}
"""Name → the share kept (None for what the argument says), and whether the caller's decision goes before it."""

_PROPAGATORS: Final = ("tracecontext", "baggage", "none")
_CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CAPTURES: Final = {
    "true": True,
    "span_only": True,
    "span_and_event": True,
    "no_content": False,
    "false": False,
    "event_only": False,
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which traces are kept: ``share`` of those begun here; of the others, where ``follows_caller``, what their
    callers keep."""

    share: float = 1.0
    follows_caller: bool = True


@dataclass(frozen=True, slots=True)
class Collector:
    """Where one signal is sent. ``url`` is the configuration's base URL; "" where the exporter asks the environment."""

    protocol: OtlpProtocol = _HTTP
    url: str = ""

    def endpoint(self, signal: str) -> str | None:
        """What the exporter is told; None for what the environment says."""
        if not self.url or self.protocol == _GRPC:
            return self.url or None
        return f"{self.url.removesuffix('/')}/v1/{signal}"


@dataclass(frozen=True, slots=True)
class Queue:
    """Bounds of what waits for an exporter."""

    items: int = QUEUE_ITEMS
    batch: int = BATCH_ITEMS
    delay_s: float = BATCH_DELAY_S


@dataclass(frozen=True, slots=True)
class Choices:
    """Everything that is decided before telemetry begins.

    ``is_on``: OpenTelemetry is used at all. ``joins_traces``: trace context is read from clients and sent upstream.
    ``traces``, ``metrics``: where they are exported to, None for nowhere. ``keeps_metrics``: they are kept, whoever
    reads them.
    """

    is_on: bool = True
    joins_traces: bool = True
    sampling: Sampling = Sampling()
    traces: Collector | None = None
    metrics: Collector | None = None
    keeps_metrics: bool = True
    queue: Queue = Queue()
    max_attribute_chars: int = 0
    """Longer values of spans are cut; 0 for as long as they are."""
    captures_content: bool = False
    warnings: tuple[str, ...] = ()


def choose(settings: Telemetry, environ: Mapping[str, str]) -> Choices:
    """What is asked for; whatever of it is no use is warned of and left at its default."""
    variables = Variables(environ)
    if variables.word("OTEL_SDK_DISABLED") == "true":
        return Choices(is_on=False, joins_traces=False, keeps_metrics=False)
    propagators = variables.words("OTEL_PROPAGATORS", _PROPAGATORS) or {"tracecontext"}
    return Choices(
        joins_traces="tracecontext" in propagators and "none" not in propagators,
        sampling=_sampling(settings, variables),
        traces=_collector("TRACES", settings, settings.traces, variables, ("otlp", "none")),
        metrics=_collector("METRICS", settings, settings.metrics, variables, ("otlp", "prometheus", "none")),
        keeps_metrics=settings.metrics is not False,
        queue=_queue(variables),
        max_attribute_chars=variables.number("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", 0)
        or variables.number("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", 0),
        captures_content=_captures(settings, variables),
        warnings=tuple(dict.fromkeys(variables.warnings)),
    )


def _sampling(settings: Telemetry, variables: Variables) -> Sampling:
    if settings.sample is not None:
        return Sampling(settings.sample)
    name = variables.one_of("OTEL_TRACES_SAMPLER", _SAMPLERS, "parentbased_always_on")
    share, follows_caller = _SAMPLERS[name]
    return Sampling(variables.share("OTEL_TRACES_SAMPLER_ARG") if share is None else share, follows_caller)


def _collector(
    signal: str, settings: Telemetry, switch: bool | None, variables: Variables, exporters: Collection[str]
) -> Collector | None:
    exporter = f"OTEL_{signal}_EXPORTER"
    asked = variables.words(exporter, exporters)
    if switch is False or (switch is None and variables.text(exporter) and "otlp" not in asked):
        return None
    names = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not settings.otlp and "otlp" not in asked and not any(variables.text(name) for name in names):
        return None
    return Collector(settings.protocol or _protocol(signal, variables), settings.otlp)


def _protocol(signal: str, variables: Variables) -> OtlpProtocol:
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if variables.text(name):
            return _GRPC if variables.one_of(name, (_HTTP, _GRPC), _HTTP) == _GRPC else _HTTP
    return _HTTP


def _queue(variables: Variables) -> Queue:
    items = variables.number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_ITEMS)
    batch = variables.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_ITEMS)
    delay_ms = variables.number("OTEL_BSP_SCHEDULE_DELAY", int(BATCH_DELAY_S * 1000))
    return Queue(items, min(batch, items), delay_ms / 1000)


def _captures(settings: Telemetry, variables: Variables) -> bool:
    if settings.capture_content is not None:
        return settings.capture_content
    name = variables.one_of(_CAPTURE, _CAPTURES, "no_content")
    if name == "event_only":
        variables.warn(_CAPTURE, "event_only is not supported, so no content is captured")
    return _CAPTURES[name]
