"""What the configuration and the environment together ask of telemetry.

Owns the meaning of the ``OTEL_*`` variables that no exporter reads by itself, and the rule between the two: the file
goes before the environment where it says something, the environment before the defaults. Must not know OpenTelemetry's
packages: `sidecar check` asks here too, and waits for no import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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
_MAX_NUMBER: Final = 9


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
    captures_content: bool = False
    warnings: tuple[str, ...] = ()


def choose(settings: Telemetry, environ: Mapping[str, str]) -> Choices:
    """What is asked for; whatever of it is no use is warned of and left at its default."""
    variables = _Variables(environ)
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
        captures_content=_captures(settings, variables),
        warnings=tuple(dict.fromkeys(variables.warnings)),
    )


def _sampling(settings: Telemetry, variables: _Variables) -> Sampling:
    if settings.sample is not None:
        return Sampling(settings.sample)
    name = variables.one_of("OTEL_TRACES_SAMPLER", _SAMPLERS, "parentbased_always_on")
    share, follows_caller = _SAMPLERS[name]
    return Sampling(variables.share("OTEL_TRACES_SAMPLER_ARG") if share is None else share, follows_caller)


def _collector(
    signal: str, settings: Telemetry, switch: bool | None, variables: _Variables, exporters: Collection[str]
) -> Collector | None:
    exporter = f"OTEL_{signal}_EXPORTER"
    asked = variables.words(exporter, exporters)
    if switch is False or (switch is None and variables.text(exporter) and "otlp" not in asked):
        return None
    names = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not settings.otlp and "otlp" not in asked and not any(variables.text(name) for name in names):
        return None
    return Collector(settings.protocol or _protocol(signal, variables), settings.otlp)


def _protocol(signal: str, variables: _Variables) -> OtlpProtocol:
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if variables.text(name):
            return _GRPC if variables.one_of(name, (_HTTP, _GRPC), _HTTP) == _GRPC else _HTTP
    return _HTTP


def _queue(variables: _Variables) -> Queue:
    items = variables.number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_ITEMS)
    batch = variables.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_ITEMS)
    delay_ms = variables.number("OTEL_BSP_SCHEDULE_DELAY", int(BATCH_DELAY_S * 1000))
    return Queue(items, min(batch, items), delay_ms / 1000)


def _captures(settings: Telemetry, variables: _Variables) -> bool:
    if settings.capture_content is not None:
        return settings.capture_content
    name = variables.one_of(_CAPTURE, _CAPTURES, "no_content")
    if name == "event_only":
        variables.warn(_CAPTURE, "event_only is not supported, so no content is captured")
    return _CAPTURES[name]


class _Variables:
    """The environment, and what was found wrong in it. A value is never repeated: it may be a secret gone astray."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.warnings: list[str] = []

    def warn(self, name: str, message: str) -> None:
        self.warnings.append(f"{name}: {message}")

    def text(self, name: str) -> str:
        """An empty variable is an unset one."""
        return self._environ.get(name, "").strip()

    def word(self, name: str) -> str:
        return self.text(name).lower()

    def words(self, name: str, known: Collection[str]) -> set[str]:
        found = {word.strip() for word in self.word(name).split(",")} - {""}
        if found - set(known):
            self.warn(name, f"holds what is not supported; known are {', '.join(known)}")
        return found & set(known)

    def one_of(self, name: str, known: Collection[str], default: str) -> str:
        word = self.word(name)
        if word and word not in known:
            self.warn(name, f"is none of {', '.join(known)}, so {default} is used")
        return word if word in known else default

    def number(self, name: str, default: int) -> int:
        text = self.text(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > _MAX_NUMBER or int(text) == 0:
            self.warn(name, f"is no whole number above zero, so {default} is used")
            return default
        return int(text)

    def share(self, name: str) -> float:
        """As the SDK has it, everything where the argument is missing or wrong."""
        try:
            share = float(self.text(name) or "1.0")
        except ValueError:
            share = -1.0
        if not 0.0 <= share <= 1.0:
            self.warn(name, "is no share from 0.0 to 1.0, so 1.0 is used")
            return 1.0
        return share
