"""Sends the metrics to a collector, again and again, in a thread of its own.

Owns that thread, its pace and what becomes of metrics that nobody takes. Must not know what the metrics are, nor how
the exporter speaks: ``last_complaint`` says why the thread's last export failed, in words that may be logged.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.metrics import export as otel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sidecar.telemetry.metric_settings import MetricSettings
    from sidecar.telemetry.metrics import Metrics

logger = logging.getLogger("sidecar.telemetry")

PIECE_POINTS: Final = 64
"""How many points are encoded at once. Encoding is Python and holds the interpreter's lock, which the data loop needs
too; between two pieces it is let go."""
_LAST_WAIT_S: Final = 1.0


class MetricExport:
    """The thread that exports. `close` sends what is there one last time and ends it, whatever the collector does."""

    def __init__(
        self,
        metrics: Metrics,
        exporter: otel.MetricExporter,
        settings: MetricSettings,
        last_complaint: Callable[[], str] = str,
    ) -> None:
        self._metrics = metrics
        self._exporter = exporter
        self._settings = settings
        self._last_complaint = last_complaint
        self._thread = threading.Thread(target=self._run, name="sidecar-metrics", daemon=True)
        self._closing = threading.Event()
        self._is_over = False
        self._is_failing = False

    def start(self) -> None:
        """Export from now on. Called after a fork, never before one."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Export one last time, for ``timeout_s`` at most. Blocks: not for the data loop. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._is_over = True
        self._exporter.shutdown()  # of one that is still at it, this ends the waiting between its attempts
        if self._thread.ident is not None:
            self._thread.join(_LAST_WAIT_S)

    def _run(self) -> None:
        while not self._closing.wait(self._settings.interval_s):
            self._export()
        self._export()

    def _export(self) -> None:
        data = self._metrics.collect(self._settings.temporality)
        for piece, points in pieces(data, PIECE_POINTS):
            if self._is_over:
                self._metrics.dropped("metrics", "closed", points)
                continue
            error = self._send(piece)
            if error is None:
                self._metrics.exported("metrics", points)
            else:
                self._metrics.dropped("metrics", "export_failed", points)
            self._say(error)

    def _send(self, piece: otel.MetricsData) -> str | None:
        """What went wrong, without the text of any error, which may hold a header or a URL; None where nothing did."""
        try:
            result = self._exporter.export(piece, timeout_millis=self._settings.timeout_s * 1000)
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the next one is sent all the same
            return type(error).__name__  # its words may hold a URL with a key in it
        if result is otel.MetricExportResult.SUCCESS:
            return None
        return self._last_complaint() or "the exporter failed"

    def _say(self, error: str | None) -> None:
        if error is not None and not self._is_failing:
            logger.warning("metrics are not delivered and dropped until they can be: %s", error)
        elif error is None and self._is_failing:
            logger.info("metrics are delivered again")
        self._is_failing = error is not None


def pieces(data: otel.MetricsData, size: int) -> Iterator[tuple[otel.MetricsData, int]]:
    """``data`` in parts of about ``size`` points, each with how many it has. Metrics stay whole where they are not
    larger than that themselves."""
    for of_resource in data.resource_metrics:
        for of_scope in of_resource.scope_metrics:
            batch: list[otel.Metric] = []
            count = 0
            for metric, points in _cut(of_scope.metrics, size):
                if batch and count + points > size:
                    yield _wrapped(of_resource, of_scope, batch), count
                    batch, count = [], 0
                batch.append(metric)
                count += points
            if batch:
                yield _wrapped(of_resource, of_scope, batch), count


def _cut(metrics: Iterable[otel.Metric], size: int) -> Iterator[tuple[otel.Metric, int]]:
    for metric in metrics:
        points = metric.data.data_points
        for start in range(0, len(points), size):
            part: Any = points[start : start + size]  # of the kind that they were of
            yield replace(metric, data=replace(metric.data, data_points=part)), len(part)


def _wrapped(
    of_resource: otel.ResourceMetrics, of_scope: otel.ScopeMetrics, metrics: list[otel.Metric]
) -> otel.MetricsData:
    return otel.MetricsData([replace(of_resource, scope_metrics=[replace(of_scope, metrics=metrics)])])
