"""How metrics are exported, by the variables that OpenTelemetry's users know.

Owns the reading of those that are metrics' own. Must not know the configuration file nor any exporter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast, get_args

from sidecar.telemetry.snapshot import Temporality

if TYPE_CHECKING:
    from collections.abc import Mapping

INTERVAL_S: Final = 15.0
"""Rather than the SDK's minute: an alert on the time to the first token should not wait for its figures."""
TIMEOUT_S: Final = 10.0

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
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text) / 1000
    warnings.append(f"{name} is no number of milliseconds: {text!r}; it stays at {default * 1000:.0f}")
    return default


def _temporality(environ: Mapping[str, str], warnings: list[str]) -> Temporality:
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    text = environ.get(name, "").strip().lower()
    if text in get_args(Temporality):
        return cast("Temporality", text)
    if text:
        warnings.append(f"{name} is none of {', '.join(get_args(Temporality))}: {text!r}; it stays at cumulative")
    return "cumulative"


def _exemplars(environ: Mapping[str, str], warnings: list[str]) -> bool:
    name = "OTEL_METRICS_EXEMPLAR_FILTER"
    text = environ.get(name, "").strip().lower()
    if text == "always_on":
        warnings.append(f"{name} is always_on: exemplars are of sampled traces all the same, as with trace_based")
    elif text not in {"", "trace_based", "always_off"}:
        warnings.append(f"{name} is none of always_on, always_off, trace_based: {text!r}; it stays at trace_based")
    return text != "always_off"


def _aggregation(environ: Mapping[str, str]) -> list[str]:
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    text = environ.get(name, "").strip().lower()
    if text == _EXPONENTIAL:
        reason = "they have no edges at 300 ms, 700 ms and 1 s to count objectives by"
        return [f"{name} is {text}: exponential buckets are not kept, since {reason}; histograms stay explicit"]
    if text not in {"", _EXPLICIT}:
        return [f"{name} is none of {_EXPLICIT}, {_EXPONENTIAL}: {text!r}; histograms stay explicit"]
    return []
