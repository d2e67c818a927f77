"""How metrics are exported, by the variables that OpenTelemetry's users know.

Owns the reading of those that are metrics' own. Must not know the configuration file, any exporter or OpenTelemetry's
packages: whoever only checks a configuration imports none of them. What a variable holds is not repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

from sidecar.telemetry.variables import Variables

if TYPE_CHECKING:
    from collections.abc import Mapping

Temporality = Literal["cumulative", "delta", "lowmemory"]
"""As OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE has them; ``lowmemory`` has deltas of all but gauges' kin."""

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
    variables = Variables(environ)
    temporality = variables.one_of(
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", get_args(Temporality), "cumulative"
    )
    settings = MetricSettings(
        interval_s=variables.number("OTEL_METRIC_EXPORT_INTERVAL", int(INTERVAL_S * 1000)) / 1000,
        timeout_s=variables.number("OTEL_METRIC_EXPORT_TIMEOUT", int(TIMEOUT_S * 1000)) / 1000,
        temporality=cast("Temporality", temporality),
        exemplars=_exemplars(variables),
    )
    _aggregation(variables)
    return replace(settings, warnings=tuple(variables.warnings))


def _exemplars(variables: Variables) -> bool:
    name = "OTEL_METRICS_EXEMPLAR_FILTER"
    word = variables.one_of(name, ("always_on", "always_off", "trace_based"), "trace_based")
    if word == "always_on":
        variables.warn(name, "always_on is taken for trace_based, since only sampled traces can be looked up")
    return word != "always_off"


def _aggregation(variables: Variables) -> None:
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    if variables.one_of(name, (_EXPLICIT, _EXPONENTIAL), _EXPLICIT) == _EXPONENTIAL:
        reason = "they have no edges at 300 ms, 700 ms and 1 s to count objectives by"
        variables.warn(name, f"exponential buckets are not kept, since {reason}, so {_EXPLICIT} is used")
