"""The page that Prometheus scrapes, in its text format or as OpenMetrics.

Owns the spelling of names, labels and numbers there. Must not know cells: it is written from the same data that OTLP
sends. A page of its own code, since OpenTelemetry's exporter for it drops exemplars and takes six times as long, which
the data loop would feel through the interpreter's lock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.metrics import export as otel

from sidecar.telemetry import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.util.types import AttributeValue

TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_TYPES: Final = {"histogram": "histogram", "counter": "counter", "updown": "gauge", "gauge": "gauge"}
_UNITS: Final = {"s": "seconds", "By": "bytes"}
_NS: Final = 1e9


def exposition(data: otel.MetricsData, accept: str) -> tuple[bytes, str]:
    """The page and its content type, for a request with this ``Accept``. ``data`` must be cumulative."""
    is_openmetrics = "application/openmetrics-text" in accept
    lines: list[str] = []
    for of_resource in data.resource_metrics:
        lines += _target(of_resource.resource.attributes, is_openmetrics=is_openmetrics)
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                time.sleep(0)  # lets the data loop run, which a large page would keep waiting for milliseconds
                lines += _family(metric, is_openmetrics=is_openmetrics)
    if is_openmetrics:
        lines.append("# EOF")
    lines.append("")
    text = "\n".join(lines)
    return text.encode("utf-8", "replace"), OPENMETRICS_TYPE if is_openmetrics else TEXT_TYPE


def _target(resource: Mapping[str, AttributeValue], *, is_openmetrics: bool) -> Iterator[str]:
    name, kind = ("target", "info") if is_openmetrics else ("target_info", "gauge")
    yield f"# HELP {name} Target metadata"
    yield f"# TYPE {name} {kind}"
    yield f"target_info{_braced(_labels(_told_apart(resource)))} 1"


def _told_apart(resource: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """By labels: those whom Prometheus calls alike are one, as the conventions ask, or no scraper would take the page.
    The environment names attributes as it likes."""
    found: dict[str, AttributeValue] = {}
    for name in sorted(resource):
        label = names.prometheus_label(name)
        found[label] = f"{found[label]!s};{resource[name]!s}" if label in found else resource[name]
    return found


def _family(metric: otel.Metric, *, is_openmetrics: bool) -> Iterator[str]:
    known = names.METRICS[metric.name]
    sample = known.prometheus_name
    name = sample.removesuffix("_total") if is_openmetrics else sample
    yield f"# HELP {name} {known.description}"
    yield f"# TYPE {name} {_TYPES[known.kind]}"
    if is_openmetrics and known.unit in _UNITS:
        yield f"# UNIT {name} {_UNITS[known.unit]}"
    for point in metric.data.data_points:
        labels = _labels(point.attributes or {})
        if isinstance(point, otel.HistogramDataPoint):
            yield from _histogram(sample, labels, point, is_openmetrics=is_openmetrics)
        elif isinstance(point, otel.NumberDataPoint):
            yield f"{sample}{_braced(labels)} {point.value}"


def _histogram(name: str, labels: str, point: otel.HistogramDataPoint, *, is_openmetrics: bool) -> Iterator[str]:
    marks = _by_bucket(point.exemplars, point.explicit_bounds) if is_openmetrics else {}
    prefix = f"{name}_bucket{{{labels}{',' if labels else ''}le="
    count = 0
    for bucket, (bound, more) in enumerate(zip((*point.explicit_bounds, "+Inf"), point.bucket_counts, strict=True)):
        count += more
        yield f'{prefix}"{bound}"}} {count}{marks.get(bucket, "")}'
    yield f"{name}_count{_braced(labels)} {count}"
    yield f"{name}_sum{_braced(labels)} {point.sum}"


def _by_bucket(exemplars: Iterable[Exemplar], bounds: Sequence[float]) -> dict[int, str]:
    marks = {}
    for exemplar in exemplars:
        bucket = sum(bound < exemplar.value for bound in bounds)
        ids = f'trace_id="{exemplar.trace_id or 0:032x}",span_id="{exemplar.span_id or 0:016x}"'
        marks[bucket] = f" # {{{ids}}} {exemplar.value} {exemplar.time_unix_nano / _NS:.3f}"
    return marks


def _labels(attributes: Mapping[str, AttributeValue]) -> str:
    return ",".join(f'{names.prometheus_label(name)}="{_escaped(value)}"' for name, value in attributes.items())


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _escaped(value: AttributeValue) -> str:
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
