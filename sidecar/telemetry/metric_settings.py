"""How metrics are exported, by the variables that OpenTelemetry's users know.

Owns the reading of those that are metrics' own. Must not know the configuration file, any exporter or OpenTelemetry's
packages: whoever only checks a configuration imports none of them. What a variable holds is not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Temporality = Literal["cumulative", "delta", "lowmemory"]
"""As OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE has them; ``lowmemory`` has deltas of all but gauges' kin."""

INTERVAL_S: Final = 15.0
"""Rather than the SDK's minute: an alert on the time to the first token should not wait for its figures."""
TIMEOUT_S: Final = 10.0

_MAX_DIGITS: Final = 10
_EXPONENTIAL: Final = "base2_exponential_bucket_histogram"
_EXPLICIT: Final = "explicit_bucket_histogram"


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """What the environment says of metrics. ``warnings`` are for people: what it says that cannot be had."""

    interval_s: float = INTERVAL_S
    timeout_s: float = TIMEOUT_S
    temporality: Temporality = "cumulative"
    exemplars: bool = True
    warnings: tuple[str, ...] = ()


def metric_settings(environ: Mapping[str, str]) -> MetricSettings:
    """Read the variables. Never raises: what is no value is warned of, and stays as it is by default."""
    warnings: list[str] = []
    return MetricSettings(
        interval_s=_seconds(environ, "OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_S, warnings),
        timeout_s=_seconds(environ, "OTEL_METRIC_EXPORT_TIMEOUT", TIMEOUT_S, warnings),
        temporality=_temporality(environ, warnings),
        exemplars=_exemplars(environ, warnings),
        warnings=(*warnings, *_aggregation(environ)),
    )


def _seconds(environ: Mapping[str, str], name: str, default: float, warnings: list[str]) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if text.isascii() and text.isdigit() and int(text[:_MAX_DIGITS]) > 0 and len(text) < _MAX_DIGITS:
        return int(text) / 1000
    warnings.append(f"{name}: is no number of milliseconds above zero, so {default * 1000:.0f} is used")
    return default


def _temporality(environ: Mapping[str, str], warnings: list[str]) -> Temporality:
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    text = environ.get(name, "").strip().lower()
    if text in get_args(Temporality):
        return cast("Temporality", text)
    if text:
        warnings.append(f"{name}: is none of {', '.join(get_args(Temporality))}, so cumulative is used")
    return "cumulative"


def _exemplars(environ: Mapping[str, str], warnings: list[str]) -> bool:
    name = "OTEL_METRICS_EXEMPLAR_FILTER"
    text = environ.get(name, "").strip().lower()
    if text == "always_on":
        warnings.append(f"{name}: always_on is taken for trace_based, since only sampled traces can be looked up")
    elif text not in {"", "trace_based", "always_off"}:
        warnings.append(f"{name}: is none of always_on, always_off, trace_based, so trace_based is used")
    return text != "always_off"


def _aggregation(environ: Mapping[str, str]) -> list[str]:
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    text = environ.get(name, "").strip().lower()
    if text == _EXPONENTIAL:
        reason = "they have no edges at 300 ms, 700 ms and 1 s to count objectives by"
        return [f"{name}: exponential buckets are not kept, since {reason}, so {_EXPLICIT} is used"]
    if text not in {"", _EXPLICIT}:
        return [f"{name}: is none of {_EXPLICIT}, {_EXPONENTIAL}, so {_EXPLICIT} is used"]
    return []
