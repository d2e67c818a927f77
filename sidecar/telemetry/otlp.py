"""The exporters that speak OTLP, built as the configuration and the environment ask.

Owns the choice between HTTP and gRPC. Headers, TLS, time limits and compression the exporters read from
``OTEL_EXPORTER_OTLP_*`` themselves. Must not know what is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from sidecar.telemetry import otlp_grpc
from sidecar.telemetry.complaints import silence_exporters
from sidecar.telemetry.otlp_session import Session
from sidecar.telemetry.span_bytes import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from sidecar.telemetry.choices import Collector


class _SpanExporter(OTLPSpanExporter):
    """The SDK's, but for the encoding, which takes most of the time that a span costs."""

    _is_over = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the SDK's; where a release has no such client to hand bytes to, it is the SDK's."""
        client = getattr(self, "_client", None)
        if client is None:
            return super().export(spans)
        if self._is_over:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS if client.export(encode(spans)).success else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing is sent from here on."""
        self._is_over = True
        super().shutdown()  # type: ignore[no-untyped-call]  # the SDK says no types there


def span_exporter(collector: Collector) -> SpanExporter:
    """Raises ValueError for what can never work: an extra that is not installed, a variable that makes no sense."""
    silence_exporters()
    if collector.protocol == "grpc":
        return otlp_grpc.span_exporter(collector.endpoint("traces"))
    return _SpanExporter(endpoint=collector.endpoint("traces"), session=Session())


def metric_exporter(collector: Collector) -> MetricExporter:
    """As `span_exporter`."""
    silence_exporters()
    if collector.protocol == "grpc":
        return otlp_grpc.metric_exporter(collector.endpoint("metrics"))
    return OTLPMetricExporter(endpoint=collector.endpoint("metrics"), session=Session())
