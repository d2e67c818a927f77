"""Spans on their way to collectors that take them, refuse them, hang, fail or are something else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from sidecar.events import Usage
from sidecar.record import Content
from sidecar.telemetry import span_export
from sidecar.telemetry.choices import Collector as Target
from sidecar.telemetry.choices import Queue
from sidecar.telemetry.complaints import last_complaint
from sidecar.telemetry.otlp import span_exporter
from sidecar.telemetry.span_export import SpanExport
from sidecar.telemetry.spans import SpanBuilder
from sidecar.telemetry.waiting import Waiting
from tests.telemetry_support import DEADLINE_S, PLACE, Counted, collecting, refusing_url, values, waiting

SOON = Queue(items=100, batch=10, delay_s=0.01)
SECRET = "sk-very-secret"
BUILD = SpanBuilder(Resource({"service.name": "test"}), (), 0.3).build


@contextmanager
def exporting(url: str, queue: Queue = SOON) -> Iterator[tuple[SpanExport, Counted]]:
    counted = Counted()
    export = SpanExport(span_exporter(Target(url=url)), BUILD, counted, queue, last_complaint)
    export.start()
    try:
        yield export, counted
    finally:
        export.close(DEADLINE_S)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# A collector that takes them


def test_spans_arrive_as_they_are() -> None:
    with collecting() as collector, exporting(collector.url) as (export, counted):
        export.put(waiting())
        counted.until(1)
        server, client = collector.spans
        assert (server.name, client.name) == ("POST /v1/**", "chat gpt-5")
        assert (server.kind, client.kind) == (2, 3)
        assert server.trace_id == client.trace_id == bytes.fromhex(PLACE.trace_id)
        assert client.parent_span_id == server.span_id == bytes.fromhex(PLACE.server_id)
        assert values(client.attributes)["gen_ai.response.time_to_first_chunk"] == 0.247
        assert values(client.attributes)["gen_ai.response.finish_reasons"] == ["stop"]
        assert values(client.attributes)["gen_ai.usage.input_tokens"] == 100
        assert [event.name for event in client.events] == ["llm_sidecar.first_token"]
        assert (collector.paths, collector.scopes) == (["/v1/traces"], ["llm_sidecar"])
        assert collector.resources[0]["service.name"] == "test"
    assert (counted.exported_items["traces"], counted.dropped_items) == (1, {})


def test_batches_are_bounded_and_the_rest_is_sent_at_the_end() -> None:
    with collecting() as collector, exporting(collector.url, Queue(100, 10, delay_s=DEADLINE_S)) as (export, counted):
        for _ in range(25):
            export.put(waiting())
        counted.until(20)
        assert export.queued <= 5
    assert sum(collector.batches) == 50
    assert max(collector.batches) <= 20
    assert counted.exported_items["traces"] == 25


def test_the_environment_is_the_exporters(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url + "/")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key={SECRET}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        with exporting("") as (export, counted):
            export.put(waiting())
            counted.until(1)
        (headers,) = collector.headers
    assert (headers["api-key"], headers["content-encoding"]) == (SECRET, "gzip")
    assert len(collector.spans) == 2


def test_the_files_url_goes_before_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", refusing_url())
    with collecting() as collector, exporting(f"{collector.url}/otel") as (export, counted):
        export.put(waiting())
        counted.until(1)
        assert collector.paths == ["/otel/v1/traces"]


# Collectors that do not


def test_a_refusing_collector_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")  # less than the first wait for another try
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer {SECRET}")
    with exporting(refusing_url()) as (export, counted):
        for number in range(1, 4):
            export.put(waiting())
            counted.until(number)
    assert counted.dropped_items == {("traces", "export_failed"): 3}
    assert said(caplog) == ["traces cannot be exported (Connection refused); they are dropped and counted"]
    assert SECRET not in caplog.text


@pytest.mark.parametrize(("status", "why"), [(400, "HTTP 400"), (401, "HTTP 401"), (500, "HTTP 500")])
def test_a_failing_collector_is_said_once_and_so_is_its_recovery(
    status: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with collecting(status) as collector, exporting(collector.url) as (export, counted):
        for number in (1, 2):
            export.put(waiting())
            counted.until(number)
        collector.status = 200
        export.put(waiting())
        counted.until(3)
    assert counted.dropped_items == {("traces", "export_failed"): 2}
    assert counted.exported_items == {"traces": 1}
    assert said(caplog) == [
        f"traces cannot be exported ({why}); they are dropped and counted",
        "traces are exported again",
    ]


def test_a_redirect_is_no_success(caplog: pytest.LogCaptureFixture) -> None:
    with collecting(308) as collector, collecting() as other, exporting(collector.url) as (export, counted):
        collector.location = other.url
        export.put(waiting())
        counted.until(1)
        assert other.paths == []
    assert counted.dropped_items == {("traces", "export_failed"): 1}
    assert said(caplog) == ["traces cannot be exported (RedirectedError); they are dropped and counted"]


def test_a_hanging_collector_holds_a_bounded_queue(caplog: pytest.LogCaptureFixture) -> None:
    with collecting() as collector, exporting(collector.url) as (export, counted):
        collector.hangs.set()
        export.put(waiting())
        assert collector.asked.wait(DEADLINE_S)
        for _ in range(1000):
            export.put(waiting())
            assert export.queued <= SOON.items
        assert counted.dropped_items == {("traces", "queue_full"): 900}
        export.close(0.01)
        assert export.queued == 0
    counted.until(1001)
    assert counted.dropped_items == {("traces", "queue_full"): 900, ("traces", "closed"): 101}


def test_closing_gives_a_dead_collector_up(caplog: pytest.LogCaptureFixture) -> None:
    with exporting(refusing_url(), Queue(100, 10, delay_s=DEADLINE_S)) as (export, counted):
        for _ in range(100):
            export.put(waiting())
        export.close(0.01)
        counted.until(100)
    assert counted.exported_items == {}
    assert counted.dropped_items.total() == 100
    assert len(said(caplog)) == 1, "what is lost at the end is said, too"


def test_a_full_queue_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    gate, exporter = threading.Event(), Slow()
    counted = Counted()
    export = SpanExport(exporter, BUILD, counted, Queue(10, 1, 0.01))
    export.start()
    exporter.gate = gate
    for _ in range(50):
        export.put(waiting())
    gate.set()
    counted.until(50)
    export.close(DEADLINE_S)
    assert counted.dropped_items["traces", "queue_full"] >= 39
    assert said(caplog) == ["traces come faster than they are exported; some are dropped and counted"]


class Slow(SpanExporter):
    """Exports where its gate is open."""

    def __init__(self) -> None:
        self.gate: threading.Event | None = None
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_S)
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is left of it."""


def test_an_exporter_that_raises_costs_one_batch(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(Slow):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            if not self.spans:
                self.spans += spans
                raise ZeroDivisionError(SECRET)
            return super().export(spans)

    counted = Counted()
    export = SpanExport(Raising(), BUILD, counted, SOON)
    export.start()
    for number in (1, 2):
        export.put(waiting())
        counted.until(number)
    export.close(DEADLINE_S)
    assert (counted.dropped_items.total(), counted.exported_items.total()) == (1, 1)
    assert said(caplog) == ["traces cannot be exported (ZeroDivisionError); they are dropped and counted"]


def test_a_request_that_no_span_can_be_made_of_costs_no_other_its_own(caplog: pytest.LogCaptureFixture) -> None:
    def build(one: Waiting) -> list[ReadableSpan]:
        if one.record.stream_id == "odd":
            raise OverflowError(SECRET)
        return BUILD(one)

    exporter, counted = Slow(), Counted()
    export = SpanExport(exporter, build, counted, Queue(100, 10, delay_s=DEADLINE_S))
    export.start()
    for stream_id in ("odd", "1", "2", "odd"):
        export.put(waiting(stream_id=stream_id))
    export.close(DEADLINE_S)
    assert (counted.dropped_items["traces", "export_failed"], counted.exported_items["traces"]) == (2, 2)
    assert len(exporter.spans) == 4
    assert said(caplog) == ["no spans can be made of a request (OverflowError); it is dropped and counted"]


def test_a_count_that_fits_nowhere_is_left_out_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with collecting() as collector, exporting(collector.url) as (export, counted):
        export.put(waiting(usage=Usage(10**30, 2)))
        counted.until(1)
        found = values(collector.spans[1].attributes)
    assert (found.get("gen_ai.usage.input_tokens"), found["gen_ai.usage.output_tokens"]) == (None, 2)
    assert said(caplog) == []


def test_content_that_waits_is_bounded() -> None:
    counted = Counted()
    export = SpanExport(Slow(), BUILD, counted, Queue(1000, 10, DEADLINE_S))  # not started: nothing is taken
    content = Content("x" * 1024 * 1024, "y" * 1024 * 1024)
    for _ in range(10):
        export.put(waiting(content=content))
    export.put(waiting())
    assert export.queued == span_export.MAX_CONTENT_CHARS // (2 * 1024 * 1024) + 1
    assert counted.dropped_items == {("traces", "queue_full"): 6}


def test_content_that_was_sent_makes_room() -> None:
    content = Content("x" * span_export.MAX_CONTENT_CHARS, "")
    counted = Counted()
    export = SpanExport(Slow(), BUILD, counted, SOON)
    export.start()
    for number in (1, 2, 3):
        export.put(waiting(content=content))
        counted.until(number)
    export.close(DEADLINE_S)
    assert counted.exported_items == {"traces": 3}


# What the exporters would say themselves


@pytest.mark.parametrize("text", [f"authorization Bearer {SECRET}", f"a=b,{SECRET}"])
def test_a_malformed_header_is_not_repeated(
    text: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", text)
    with collecting() as collector, exporting(collector.url) as (export, counted):
        export.put(waiting())
        counted.until(1)
    assert said(caplog) == ["a header in OTEL_EXPORTER_OTLP_*HEADERS is malformed, and is not sent"]
    assert SECRET not in caplog.text


def test_a_key_in_the_collectors_url_is_not_repeated(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    for url in (refusing_url(), "http://collector.invalid:4318"):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{url}/v1/traces?api-key={SECRET}")
        with exporting("") as (export, counted):
            export.put(waiting())
            counted.until(1)
    assert len(said(caplog)) == 2
    assert SECRET not in caplog.text


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    with collecting() as collector, exporting(collector.url) as (export, counted):
        collector.is_endless = True
        export.put(waiting())
        counted.until(1)
        assert collector.hung_up.wait(DEADLINE_S)
    assert counted.exported_items == {"traces": 1}


def test_nothing_is_sent_before_the_start_and_closing_without_it_is_nothing() -> None:
    exporter = Slow()
    export = SpanExport(exporter, BUILD, Counted(), SOON)
    export.put(waiting())
    export.close(0.0)
    assert exporter.spans == []
