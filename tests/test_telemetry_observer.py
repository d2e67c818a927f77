"""The one observer: who is told what at a request's end, and what missing parts cost."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from sidecar.record import Content, Record
from sidecar.settings import Logs
from sidecar.settings import Telemetry as Asked
from sidecar.telemetry import otlp_grpc
from sidecar.telemetry.assembly import assemble
from sidecar.telemetry.choices import Queue, Sampling
from sidecar.telemetry.line_output import LineOutput
from sidecar.telemetry.resource import make_resource
from sidecar.telemetry.span_export import SpanExport
from sidecar.telemetry.spans import SpanBuilder
from sidecar.telemetry.telemetry import Telemetry
from sidecar.telemetry.tracing import Tracing
from sidecar.telemetry.waiting import Waiting
from tests.telemetry_support import DEADLINE_S, PLACE, Counted, ended

WALL_NS = 1_700_000_000 * 10**9


class Kept:
    """Metrics that remember what they are told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def started(self) -> None:
        self.told.append("started")

    def ended(self, record: Record) -> None:
        self.told.append(record)

    def turned(self, late_s: float) -> None:
        self.told.append(late_s)

    def prometheus(self, accept: str = "") -> tuple[bytes, str]:
        return b"page", accept


class Memory(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is left of it."""


class Lines(LineOutput):
    """Remembers instead of writing."""

    def __init__(self, *, streams: bool = True) -> None:
        super().__init__(Logs(streams=streams), os.open(os.devnull, os.O_WRONLY))
        self.streams: list[Waiting] = []

    def stream(self, waiting: Waiting) -> None:
        self.streams.append(waiting)


def spans_to(exporter: SpanExporter) -> SpanExport:
    return SpanExport(exporter, SpanBuilder(Resource({}), (), None).build, Counted(), Queue())


def made(**parts: Any) -> Telemetry:
    return Telemetry(lambda: 103.0, lambda: WALL_NS + 5, **parts)


def test_everyone_is_told_once_and_times_are_anchored_at_the_end() -> None:
    exporter, metrics, lines = Memory(), Kept(), Lines()
    telemetry = made(metrics=metrics, spans=spans_to(exporter), lines=lines, tracing=Tracing(Sampling()))
    telemetry.start()
    telemetry.started()
    record = ended()
    telemetry.ended(record)
    telemetry.turned(0.5)
    telemetry.close(DEADLINE_S)
    assert metrics.told == ["started", record, 0.5]
    assert [span.name for span in exporter.spans] == ["POST /v1/**", "chat gpt-5"]
    (told,) = lines.streams
    assert told.at_ns(103.0) == WALL_NS + 5
    assert exporter.spans[0].end_time == WALL_NS + 5 - 500_000_000
    assert telemetry.prometheus("as asked") == (b"page", "as asked")


def test_what_is_not_sampled_is_logged_and_measured_alone() -> None:
    exporter, metrics, lines = Memory(), Kept(), Lines()
    telemetry = made(metrics=metrics, spans=spans_to(exporter), lines=lines)
    telemetry.start()
    for trace in (None, msgspec.structs.replace(PLACE, is_sampled=False)):
        telemetry.ended(ended(trace=trace))
    telemetry.close(DEADLINE_S)
    assert exporter.spans == []
    assert (len(metrics.told), len(lines.streams)) == (2, 2)


def test_lines_hold_no_content() -> None:
    exporter, lines = Memory(), Lines()
    telemetry = made(spans=spans_to(exporter), lines=lines)
    telemetry.start()
    telemetry.ended(ended(content=Content("asked", "answered")))
    telemetry.close(DEADLINE_S)
    assert lines.streams[0].record.content is None
    assert "answered" in str(dict(exporter.spans[1].attributes or {}))


def test_lines_of_streams_can_be_switched_off() -> None:
    lines = Lines(streams=False)
    made(lines=lines).ended(ended())
    assert lines.streams == []


def test_without_parts_nothing_happens() -> None:
    telemetry = made()
    telemetry.start()
    telemetry.started()
    telemetry.ended(ended())
    telemetry.turned(0.1)
    telemetry.close(0.0)
    assert telemetry.trace({}) is None
    assert not telemetry.has_metrics


# Assembled as asked


def assembled(environ: dict[str, str] | None = None, **asked: Any) -> Telemetry:
    return assemble(Asked(**asked), environ or {}, lambda: 0.0, lambda: 0, {})


def test_without_an_exporter_requests_have_their_place_all_the_same() -> None:
    trace = assembled().trace({"traceparent": f"00-{PLACE.trace_id}-{'a' * 16}-00"})
    assert trace is not None
    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (PLACE.trace_id, "a" * 16, False)


def test_switched_off_nobody_traces() -> None:
    assert assembled({"OTEL_SDK_DISABLED": "true"}, otlp="http://127.0.0.1:9").trace({}) is None


def test_grpc_without_its_extra_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.exporter", None)
    with pytest.raises(ValueError, match=r"llm-sidecar\[otlp-grpc\]"):
        assembled(otlp="http://127.0.0.1:9", protocol="grpc")


def test_grpc_knows_no_deflate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "deflate")
    with pytest.raises(ValueError, match=otlp_grpc.ONLY_GZIP):
        assembled(otlp="http://127.0.0.1:9", protocol="grpc")


@pytest.mark.parametrize(("name", "value"), [("TIMEOUT", "10s"), ("ENDPOINT", "http://[::1")])
def test_grpc_says_which_variable_it_cannot_read(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    with pytest.raises(ValueError, match=name) as raised:
        assembled({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, protocol="grpc")
    assert value not in str(raised.value)


# The process itself


@pytest.mark.parametrize(
    ("said", "environ", "name"),
    [
        ("", {}, "llm-sidecar"),
        ("", {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a%20b,x=1"}, "a b"),
        ("", {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a", "OTEL_SERVICE_NAME": "b"}, "b"),
        ("c", {"OTEL_SERVICE_NAME": "b"}, "c"),
    ],
)
def test_the_services_name(said: str, environ: dict[str, str], name: str) -> None:
    assert make_resource(said, environ).attributes["service.name"] == name


def test_a_resource_is_text_and_has_a_name() -> None:
    said = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=,team=\udcff"}
    attributes = make_resource("", said).attributes
    assert (attributes["service.name"], attributes["team"]) == ("llm-sidecar", "?")
    assert make_resource("", {"OTEL_SERVICE_NAME": "\udcff"}).attributes["service.name"] == "?"


def test_the_resource_says_which_process_it_is() -> None:
    attributes = make_resource("", {"OTEL_RESOURCE_ATTRIBUTES": "deployment=prod, ,odd,=x"}).attributes
    assert {"service.version", "service.instance.id", "llm_sidecar.semconv"} <= attributes.keys()
    assert (attributes["deployment"], "odd" in attributes, "" in attributes) == ("prod", False, False)
    assert make_resource("", {}).attributes["service.instance.id"] != attributes["service.instance.id"]
    pinned = make_resource("", {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod-1"})
    assert pinned.attributes["service.instance.id"] == "pod-1"
