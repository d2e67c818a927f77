"""OTLP over gRPC: the one module that knows the extra ``otlp-grpc``.

Owns the clear word where the extra is missing. Must not be imported for its exporters by anyone but `otlp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

MISSING: Final = "OTLP over gRPC needs the extra otlp-grpc: pip install 'llm-sidecar[otlp-grpc]'"
UNREADABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT or _TIMEOUT: is no URL, or no number of seconds, for OTLP over gRPC"
ONLY_GZIP: Final = "OTEL_EXPORTER_OTLP_COMPRESSION: OTLP over gRPC knows gzip alone"


def span_exporter(endpoint: str | None) -> SpanExporter:
    """Raises ValueError where the extra is not installed, or the environment asks for what gRPC has not."""
    try:
        # Imported late: gRPC brings threads and megabytes that nobody else should pay for.
        from opentelemetry.exporter.otlp.proto.grpc.exporter import InvalidCompressionValueException
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ValueError(MISSING) from None
    try:
        return OTLPSpanExporter(endpoint=endpoint)
    except InvalidCompressionValueException:
        raise ValueError(ONLY_GZIP) from None
    except ValueError:  # it says what it cannot read, but not of which variable
        raise ValueError(UNREADABLE) from None


def metric_exporter(endpoint: str | None) -> MetricExporter:
    """As `span_exporter`."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.exporter import InvalidCompressionValueException
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    except ImportError:
        raise ValueError(MISSING) from None
    try:
        return OTLPMetricExporter(endpoint=endpoint)
    except InvalidCompressionValueException:
        raise ValueError(ONLY_GZIP) from None
    except ValueError:  # it says what it cannot read, but not of which variable
        raise ValueError(UNREADABLE) from None
