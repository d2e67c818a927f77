"""What is kept of each series: counts in plain lists, bumped in well under a microsecond.

Owns how a value is added and how many series there may be. Must not know what is measured, nor who reads it when: the
instruments of the OpenTelemetry SDK take some 7 µs a value, and a short stream has ten of them.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from sidecar.telemetry.names import OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.record import Trace
    from sidecar.telemetry.names import Metric

Value: TypeAlias = str | int | bool
Attributes: TypeAlias = tuple[tuple[str, Value], ...]
Mark: TypeAlias = "tuple[float, float, Trace]"
"""An exemplar: the value, when its request ended on the data plane's clock, and where it is in a trace."""

SERIES_LIMIT: Final = 2000
"""Sets of attributes of one metric; the bound that the OpenTelemetry specification sets, too."""


class HistogramCell:
    """One series of a histogram. A value on an edge falls into the bucket below it."""

    __slots__ = ("bounds", "counts", "marks", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.marks: list[Mark | None] | None = None
        """The latest exemplar of each bucket, once there is one."""

    def add(self, value: float, ended_at: float, trace: Trace | None) -> None:
        """Count a value; ``trace`` is where it may be looked up, None where it may not."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if trace is not None:
            if self.marks is None:
                self.marks = [None] * len(self.counts)
            self.marks[bucket] = (value, ended_at, trace)


class CounterCell:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


Cell = TypeVar("Cell", HistogramCell, CounterCell)


class Family(Generic[Cell]):
    """The series of one metric, by their attributes. Beyond the limit all share one that says so."""

    def __init__(self, metric: Metric, make: Callable[[], Cell]) -> None:
        self.metric = metric
        self.series: dict[Attributes, Cell] = {}
        self._make: Callable[[], Cell] = make

    def cell(self, attributes: dict[str, Value | None]) -> Cell:
        """The series of those of ``attributes`` that the metric has and that are known (not None, not "")."""
        known = tuple(
            (name, value)
            for name in self.metric.attributes
            if (value := attributes.get(name)) is not None and value != ""
        )
        cell = self.series.get(known)
        if cell is None:
            if len(self.series) >= SERIES_LIMIT:
                known = ((OVERFLOW, True),)
            cell = self.series.setdefault(known, self._make())
        return cell
