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
            self._thread.join(min(_LAST_WAIT_S, timeout_s))

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
            is_sent, why = self._send(piece)
            if is_sent:
                self._metrics.exported("metrics", points)
            else:
                self._metrics.dropped("metrics", "export_failed", points)
            self._say(is_sent, why)

    def _send(self, piece: otel.MetricsData) -> tuple[bool, str]:
        """Whether it arrived, and why not. Never in an exception's own words, which may hold a URL or a header."""
        try:
            result = self._exporter.export(piece, timeout_millis=self._settings.timeout_s * 1000)
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the next one is sent all the same
            return False, type(error).__name__
        is_sent = result is otel.MetricExportResult.SUCCESS
        return is_sent, "" if is_sent else self._last_complaint()

    def _say(self, is_sent: bool, why: str) -> None:
        """Once when it begins to fail, and once when it works again."""
        if is_sent and self._is_failing:
            logger.info("metrics are exported again")
        elif not is_sent and not self._is_failing:
            logger.warning("metrics cannot be exported%s; they are dropped and counted", f" ({why})" if why else "")
        self._is_failing = not is_sent


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
