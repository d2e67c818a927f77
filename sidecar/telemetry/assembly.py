"""Telemetry as the configuration and the environment want it, built of its parts.

Owns which parts there are. Must not start any of them: threads begin in the process that serves.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sidecar.telemetry import names
from sidecar.telemetry.choices import choose
from sidecar.telemetry.complaints import last_complaint
from sidecar.telemetry.metric_export import MetricExport
from sidecar.telemetry.metric_settings import metric_settings
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.otlp import metric_exporter, span_exporter
from sidecar.telemetry.resource import make_resource
from sidecar.telemetry.span_export import SpanExport
from sidecar.telemetry.spans import SpanBuilder
from sidecar.telemetry.telemetry import Telemetry
from sidecar.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.resources import Resource

    from sidecar import settings
    from sidecar.telemetry.choices import Choices
    from sidecar.telemetry.line_output import LineOutput
    from sidecar.telemetry.metric_settings import MetricSettings
    from sidecar.telemetry.snapshot import Reading
    from sidecar.telemetry.span_export import Counts


def assemble(
    asked: settings.Telemetry,
    environ: Mapping[str, str],
    clock: Callable[[], float],
    wall_clock_ns: Callable[[], int],
    gauges: Mapping[str, Callable[[], Reading]],
    lines: LineOutput | None = None,
) -> Telemetry:
    """``gauges`` are the data plane's own, by their names. Raises ValueError for what can never work, such as an extra
    that is not installed."""
    choices = choose(asked, environ)
    if not choices.is_on:
        return Telemetry(clock, wall_clock_ns, lines=lines)
    resource = make_resource(asked.service_name, environ)
    exporting = metric_settings(environ)
    metrics = _metrics(asked, choices, resource, gauges, exporting) if choices.keeps_metrics else None
    spans = _spans(asked, choices, resource, Uncounted() if metrics is None else metrics)
    if metrics is not None:
        _watch_queues(metrics, spans, lines)
    return Telemetry(
        clock,
        wall_clock_ns,
        tracing=Tracing(choices.sampling, joins_traces=choices.joins_traces),
        metrics=metrics,
        metric_export=_metric_export(metrics, choices, exporting),
        spans=spans,
        lines=lines,
        captures_content=choices.captures_content,
    )


def _metrics(
    asked: settings.Telemetry,
    choices: Choices,
    resource: Resource,
    gauges: Mapping[str, Callable[[], Reading]],
    exporting: MetricSettings,
) -> Metrics:
    return Metrics(
        resource={key: value for key, value in resource.attributes.items() if isinstance(value, str | int)},
        models=asked.models,
        model_limit=asked.model_limit,
        gauges=gauges,
        exemplars=exporting.exemplars and choices.traces is not None,
    )


def _metric_export(metrics: Metrics | None, choices: Choices, exporting: MetricSettings) -> MetricExport | None:
    if metrics is None or choices.metrics is None:
        return None
    return MetricExport(metrics, metric_exporter(choices.metrics), exporting, last_complaint)


def _watch_queues(metrics: Metrics, spans: SpanExport | None, lines: LineOutput | None) -> None:
    if spans is not None:
        metrics.watch(names.TELEMETRY_QUEUE, lambda: spans.queued, {names.SIGNAL: "traces"})
    if lines is not None:
        metrics.watch(names.TELEMETRY_QUEUE, lambda: lines.queued, {names.SIGNAL: "logs"})
        lines.dropped = partial(metrics.dropped, "logs")
        lines.written = partial(metrics.exported, "logs")


def _spans(asked: settings.Telemetry, choices: Choices, resource: Resource, counts: Counts) -> SpanExport | None:
    if choices.traces is None:
        return None
    builder = SpanBuilder(resource, asked.compat, min(asked.slo_ttft_s, default=None), choices.max_attribute_chars)
    return SpanExport(span_exporter(choices.traces), builder.build, counts, choices.queue, last_complaint)


class Uncounted:
    """Where no metrics are kept, nobody counts."""

    def dropped(self, signal: str, reason: str, items: int) -> None:
        """Nobody wants to know."""

    def exported(self, signal: str, items: int) -> None:
        """Nobody wants to know."""
