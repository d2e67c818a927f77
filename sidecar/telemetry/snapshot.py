"""Cells as OpenTelemetry's own data: what both the scraper's page and the exporter are made from.

Owns temporality, start times and which exemplars are new. Must not know where the data goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics import export as otel
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from sidecar.telemetry import names

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable

    from sidecar.telemetry.cells import Attributes, CounterCell, Family, HistogramCell, Mark
    from sidecar.telemetry.metric_settings import Temporality
    from sidecar.telemetry.rows import Families

Reading = float | Mapping[str, float]
"""What a gauge gives: one value, or one for each value of its metric's one attribute."""

_NS: Final = 1_000_000_000
_UNKNOWN = cast("float", None)
"""A minimum or maximum. OTLP lets them be left out, and of all time together they say nothing."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The data plane's clock, and the wall clock that people read."""

    monotonic: Callable[[], float]
    wall_ns: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Gauge:
    """A series that is read when somebody asks; or several, where ``read`` gives values of the metric's one attribute
    and what each is at."""

    name: str
    read: Callable[[], Reading]
    attributes: Attributes = ()

    def series(self) -> list[tuple[Attributes, float]]:
        """What is read now."""
        read = self.read()
        if not isinstance(read, Mapping):
            return [(self.attributes, read)]
        (attribute,) = names.METRICS[self.name].attributes
        return [(((attribute, of),), value) for of, value in read.items()]


@dataclass(frozen=True, slots=True)
class _Window:
    """The time that points are about. ``marks_after``: exemplars up to then were told before, on the data plane's
    clock, which ``wall_offset_ns`` leads from to the wall's."""

    start_ns: int
    end_ns: int
    marks_after: float
    wall_offset_ns: int
    is_delta: bool

    @property
    def temporality(self) -> otel.AggregationTemporality:
        return otel.AggregationTemporality.DELTA if self.is_delta else otel.AggregationTemporality.CUMULATIVE


Held = TypeVar("Held")


class Snapshots:
    """Makes `MetricsData` out of cells. ``lock`` is the one of the cells' writer, held here for one cell at a time."""

    def __init__(
        self, resource: Mapping[str, str | int], families: Families, lock: threading.Lock, clocks: Clocks
    ) -> None:
        self._resource = Resource(dict(resource))
        self._scope = InstrumentationScope(names.SCOPE, str(resource.get(names.SERVICE_VERSION, "")))
        self._families = families
        self._lock = lock
        self._clocks = clocks
        self._started_ns = self._told_ns = clocks.wall_ns()
        self._told_at = float("-inf")
        self._told: dict[tuple[str, Attributes], Any] = {}
        """What each series held when its delta was last taken."""

    def show(self, gauges: Iterable[Gauge]) -> otel.MetricsData:
        """All since the start, with the latest exemplars. Shown to any number of readers."""
        now, now_ns = self._clocks.monotonic(), self._clocks.wall_ns()
        window = _Window(self._started_ns, now_ns, float("-inf"), now_ns - int(now * _NS), is_delta=False)
        return self._data(gauges, window, window)

    def tell(self, gauges: Iterable[Gauge], temporality: Temporality) -> otel.MetricsData:
        """The same for the one reader who is told of each exemplar and each delta once."""
        now, now_ns = self._clocks.monotonic(), self._clocks.wall_ns()
        offset_ns = now_ns - int(now * _NS)
        whole = _Window(self._started_ns, now_ns, self._told_at, offset_ns, is_delta=False)
        latest = _Window(self._told_ns, now_ns, self._told_at, offset_ns, is_delta=True)
        self._told_ns, self._told_at = now_ns, now
        return self._data(
            gauges,
            whole if temporality == "cumulative" else latest,
            latest if temporality == "delta" else whole,
        )

    def _data(self, gauges: Iterable[Gauge], window: _Window, gauges_window: _Window) -> otel.MetricsData:
        found = [self._histogram(family, window) for family in self._families.histograms]
        found += [self._counter(family, window) for family in self._families.counters]
        found += self._read(gauges, gauges_window)
        scope = otel.ScopeMetrics(self._scope, [metric for metric in found if metric.data.data_points], "")
        return otel.MetricsData([otel.ResourceMetrics(self._resource, [scope], "")])

    def _series(self, family: Family[Any]) -> list[tuple[Attributes, Any]]:
        with self._lock:
            return list(family.series.items())

    def _since(self, name: str, attributes: Attributes, held: Held, nothing: Held) -> Held:
        """What a series held when it was last told; ``held`` is told by this call."""
        before = self._told.get((name, attributes), nothing)
        self._told[name, attributes] = held
        return cast("Held", before)

    def _histogram(self, family: Family[HistogramCell], window: _Window) -> otel.Metric:
        points = []
        for attributes, cell in self._series(family):
            with self._lock:
                counts, total, marks = cell.counts[:], cell.total, cell.marks and cell.marks[:]
            if window.is_delta:
                nothing = ([0] * len(counts), 0.0)
                told, told_total = self._since(family.metric.name, attributes, (counts, total), nothing)
                counts = [count - before for count, before in zip(counts, told, strict=True)]
                total -= told_total
            if not any(counts):
                continue
            points.append(
                otel.HistogramDataPoint(
                    dict(attributes),
                    window.start_ns,
                    window.end_ns,
                    sum(counts),
                    total,
                    counts,
                    cell.bounds,
                    _UNKNOWN,
                    _UNKNOWN,
                    _exemplars(marks, window, family.metric.span),
                )
            )
        return _metric(family.metric, otel.Histogram(points, window.temporality))

    def _counter(self, family: Family[CounterCell], window: _Window) -> otel.Metric:
        points = []
        for attributes, cell in self._series(family):
            value = cell.value
            if window.is_delta:
                value -= self._since(family.metric.name, attributes, value, 0)
            if value:
                points.append(otel.NumberDataPoint(dict(attributes), window.start_ns, window.end_ns, value))
        return _metric(family.metric, otel.Sum(points, window.temporality, is_monotonic=True))

    def _read(self, gauges: Iterable[Gauge], window: _Window) -> list[otel.Metric]:
        points: dict[str, list[otel.NumberDataPoint]] = {}
        for gauge in gauges:
            for attributes, value in gauge.series():
                if window.is_delta and names.METRICS[gauge.name].kind == "counter":
                    value -= self._since(gauge.name, attributes, value, 0.0)
                point = otel.NumberDataPoint(dict(attributes), window.start_ns, window.end_ns, value)
                points.setdefault(gauge.name, []).append(point)
        return [_metric(names.METRICS[name], _readings(names.METRICS[name], of, window)) for name, of in points.items()]


def _readings(metric: names.Metric, points: list[otel.NumberDataPoint], window: _Window) -> otel.Sum | otel.Gauge:
    if metric.kind == "gauge":
        return otel.Gauge(points)
    if metric.kind == "counter":
        return otel.Sum(points, window.temporality, is_monotonic=True)
    return otel.Sum(points, otel.AggregationTemporality.CUMULATIVE, is_monotonic=False)


def _metric(metric: names.Metric, data: otel.Sum | otel.Gauge | otel.Histogram) -> otel.Metric:
    return otel.Metric(metric.name, metric.description, metric.unit, data)


def _exemplars(marks: list[Mark | None] | None, window: _Window, span: str) -> list[Exemplar]:
    return [
        Exemplar(
            {},
            value,
            int(ended_at * _NS) + window.wall_offset_ns,
            int(trace.server_id if span == "server" else trace.client_id, 16),
            int(trace.trace_id, 16),
        )
        for value, ended_at, trace in filter(None, marks or ())
        if ended_at > window.marks_after
    ]
