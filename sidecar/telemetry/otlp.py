"""The exporters that speak OTLP, built as the configuration and the environment ask.

Owns the choice between HTTP and gRPC. Headers, TLS, time limits and compression the exporters read from
``OTEL_EXPORTER_OTLP_*`` themselves. Must not know what is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from sidecar.telemetry import otlp_grpc
from sidecar.telemetry.complaints import silence_exporters
from sidecar.telemetry.otlp_session import Session

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

    from sidecar.telemetry.choices import Collector


def span_exporter(collector: Collector) -> SpanExporter:
    """Raises ValueError for what can never work: an extra that is not installed, a variable that makes no sense."""
    silence_exporters()
    if collector.protocol == "grpc":
        return otlp_grpc.span_exporter(collector.endpoint("traces"))
    return OTLPSpanExporter(endpoint=collector.endpoint("traces"), session=Session())


def metric_exporter(collector: Collector) -> MetricExporter:
    """As `span_exporter`."""
    silence_exporters()
    if collector.protocol == "grpc":
        return otlp_grpc.metric_exporter(collector.endpoint("metrics"))
    return OTLPMetricExporter(endpoint=collector.endpoint("metrics"), session=Session())
