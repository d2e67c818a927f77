"""Spans over gRPC, to a real server of it."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource

from sidecar.telemetry.choices import Collector, Queue
from sidecar.telemetry.complaints import last_complaint
from sidecar.telemetry.otlp import span_exporter
from sidecar.telemetry.span_export import SpanExport
from sidecar.telemetry.spans import SpanBuilder
from tests.telemetry_support import DEADLINE_S, Counted, refusing_url, waiting

# Neither has types.
GRPC: Any = importlib.import_module("grpc")
GENERATED: Any = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc")
SECRET = "sk-very-secret"


class Service:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.metadata: dict[str, str] = {}

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
        spans = [span for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
        self.names += [span.name for span in spans]
        self.metadata = dict(context.invocation_metadata())
        return ExportTraceServiceResponse()


def export_one(url: str) -> Counted:
    counted = Counted()
    builder = SpanBuilder(Resource({}), (), None)
    exporter = span_exporter(Collector("grpc", url))
    export = SpanExport(exporter, builder.build, counted, Queue(10, 1, 0.01), last_complaint)
    export.start()
    export.put(waiting())
    counted.until(1)
    export.close(DEADLINE_S)
    return counted


def test_spans_arrive_with_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={SECRET}")
    service, server = Service(), GRPC.server(ThreadPoolExecutor(1))
    GENERATED.add_TraceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        counted = export_one(f"http://127.0.0.1:{port}")
    finally:
        server.stop(None).wait(DEADLINE_S)
    assert counted.exported_items == {"traces": 1}
    assert service.names == ["POST /v1/**", "chat gpt-5"]
    assert service.metadata["api-key"] == SECRET


def test_a_refusing_collector_is_said_in_a_word(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={SECRET}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    counted = export_one(refusing_url())
    assert counted.dropped_items == {("traces", "export_failed"): 1}
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("traces cannot be exported (")
    assert SECRET not in caplog.text
