"""Metrics on their way to a collector: what arrives, what is counted as lost, and that nothing stays behind."""

from __future__ import annotations

import gzip
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.sdk.metrics import export as otel

from sidecar.record import Record
from sidecar.telemetry import names
from sidecar.telemetry.metric_export import MetricExport, pieces
from sidecar.telemetry.metric_settings import MetricSettings, Temporality, metric_settings
from sidecar.telemetry.metrics import Metrics
from tests.made_records import TRACE, made, with_ttft

RESOURCE = {"service.name": "llm-sidecar", "service.instance.id": "i-1", "service.version": "1.2.3"}
PATIENCE_S = 20.0
NEVER_S = 3600.0
DELTA, CUMULATIVE = pb.AGGREGATION_TEMPORALITY_DELTA, pb.AGGREGATION_TEMPORALITY_CUMULATIVE
START_NS = 1_700_000_000_000_000_000


class Times:
    """Both clocks, moved by hand. The data plane's began 50 s before the wall's 2023-11-14 22:13:20."""

    def __init__(self) -> None:
        self.at = 50.0

    def monotonic(self) -> float:
        return self.at

    def wall_ns(self) -> int:
        return START_NS + int((self.at - 50.0) * 1e9)


class Collector:
    """A collector of one's own: what it was sent, and the status it answers."""

    def __init__(self) -> None:
        collector = self

        class Door(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.sent.put((self.path, ExportMetricsServiceRequest.FromString(body)))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Silent."""

        self.status = 200
        self.sent: Queue[tuple[str, ExportMetricsServiceRequest]] = Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def received(self) -> dict[str, pb.Metric]:
        """Everything that has come, by metric."""
        found: dict[str, pb.Metric] = {}
        while not self.sent.empty():
            path, request = self.sent.get()
            assert path == "/v1/metrics"
            for of_resource in request.resource_metrics:
                for metric in of_resource.scope_metrics[0].metrics:
                    found.setdefault(metric.name, pb.Metric()).MergeFrom(metric)
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


class Exporter(otel.MetricExporter):
    """An exporter in memory that does as it is told."""

    def __init__(self, *results: otel.MetricExportResult | Exception) -> None:
        super().__init__()
        self.results = list(results)
        self.exported: Queue[otel.MetricsData] = Queue()
        self.shutdowns = 0

    def export(
        self, metrics_data: otel.MetricsData, timeout_millis: float = 0, **kwargs: Any
    ) -> otel.MetricExportResult:
        result = self.results.pop(0) if self.results else otel.MetricExportResult.SUCCESS
        self.exported.put(metrics_data)
        if isinstance(result, Exception):
            raise result
        return result

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        self.shutdowns += 1


class StuckExporter(Exporter):
    """One whose collector never answers; it gives up when it is shut down."""

    def __init__(self) -> None:
        super().__init__()
        self._given_up = threading.Event()

    def export(
        self, metrics_data: otel.MetricsData, timeout_millis: float = 0, **kwargs: Any
    ) -> otel.MetricExportResult:
        self.exported.put(metrics_data)
        assert self._given_up.wait(PATIENCE_S)
        return otel.MetricExportResult.FAILURE

    def shutdown(self, timeout_millis: float = 0, **kwargs: Any) -> None:
        super().shutdown()
        self._given_up.set()


def told(*records: Record, times: Times | None = None, **options: Any) -> Metrics:
    times = times or Times()
    metrics = Metrics(resource=RESOURCE, clock=times.monotonic, wall_clock_ns=times.wall_ns, **options)
    for record in records:
        metrics.ended(record)
    return metrics


def sent(metrics: Metrics, collector: Collector, temporality: Temporality = "cumulative") -> dict[str, pb.Metric]:
    """What a collector is sent at the end, through the real exporter."""
    exporter = OTLPMetricExporter(collector.url, compression=Compression.Gzip)
    export = MetricExport(metrics, exporter, MetricSettings(NEVER_S, temporality=temporality))
    export.start()
    export.close(PATIENCE_S)
    return collector.received()


def lost(metrics: Metrics) -> dict[str, float]:
    """Points that were dropped, by reason, and those that were delivered."""
    found: dict[str, float] = {}
    for metric in metrics.collect().resource_metrics[0].scope_metrics[0].metrics:
        if metric.name in {names.TELEMETRY_DROPPED, names.TELEMETRY_EXPORTED}:
            for point in metric.data.data_points:
                assert isinstance(point, otel.NumberDataPoint)
                attributes = point.attributes or {}
                assert attributes[names.SIGNAL] == "metrics"
                found[str(attributes.get(names.REASON, "exported"))] = point.value
    return found


def metric_threads() -> list[str]:
    """Other tests' threads of spans may still be on their way out."""
    return [thread.name for thread in threading.enumerate() if thread.name == "sidecar-metrics"]


# What arrives


def test_a_collector_is_sent_every_point_whole(collector: Collector) -> None:
    metrics = told(with_ttft(0.7, trace=TRACE), with_ttft(0.6), gauges={names.BUFFERED: lambda: 512})
    received = sent(metrics, collector)
    ttft = received[names.TIME_TO_FIRST_TOKEN]
    assert (ttft.unit, ttft.histogram.aggregation_temporality) == ("s", CUMULATIVE)
    (point,) = ttft.histogram.data_points
    counts = dict(zip(point.explicit_bounds, point.bucket_counts, strict=False))
    assert {bound: count for bound, count in counts.items() if count} == {0.64: 1, 0.7: 1}
    assert (point.count, point.sum) == (2, 0.7 + 0.6)
    assert not point.HasField("min")
    assert {each.key: each.value.string_value or each.value.int_value for each in point.attributes} == {
        names.OPERATION: "chat",
        names.PROVIDER: "openai",
        names.REQUEST_MODEL: "gpt-5",
        names.RESPONSE_MODEL: "gpt-5-2026",
        names.SERVER_ADDRESS: "api.openai.com",
        names.SERVER_PORT: 443,
        names.ROUTE: "chat",
        names.UPSTREAM: "main",
    }
    assert received[names.BUFFERED].gauge.data_points[0].as_int == 512
    assert received[names.STREAMS_ENDED].sum.is_monotonic
    assert not received[names.SERVER_ACTIVE_REQUESTS].sum.is_monotonic


def test_a_collector_is_told_whose_metrics_they_are(collector: Collector) -> None:
    export = MetricExport(told(), OTLPMetricExporter(collector.url), MetricSettings(NEVER_S))
    export.start()
    export.close(PATIENCE_S)
    _, request = collector.sent.get_nowait()
    (of_resource,) = request.resource_metrics
    assert {each.key: each.value.string_value for each in of_resource.resource.attributes} == RESOURCE
    (of_scope,) = of_resource.scope_metrics
    assert (of_scope.scope.name, of_scope.scope.version) == ("llm_sidecar", "1.2.3")


@pytest.mark.parametrize(
    ("name", "span_id"),
    [(names.TIME_TO_FIRST_TOKEN, TRACE.server_id), (names.TIME_TO_FIRST_CHUNK, TRACE.client_id)],
)
def test_an_exemplar_says_when_and_where(collector: Collector, name: str, span_id: str) -> None:
    times = Times()
    times.at = 110.0
    received = sent(told(with_ttft(0.5, ended_at=104.5, trace=TRACE), times=times), collector)
    (exemplar,) = received[name].histogram.data_points[0].exemplars
    assert exemplar.trace_id.hex() == TRACE.trace_id
    assert exemplar.span_id.hex() == span_id
    assert exemplar.as_double == 0.5
    assert exemplar.time_unix_nano == START_NS + 54_500_000_000


def test_what_no_utf8_can_hold_is_not_sent(collector: Collector) -> None:
    received = sent(told(made(sent_model="\ud800", response_model="a\x00b")), collector)
    (point,) = received[names.OPERATION_DURATION].histogram.data_points
    values = {each.key: each.value.string_value for each in point.attributes}
    assert values[names.REQUEST_MODEL] == values[names.RESPONSE_MODEL] == "_OTHER"


# Temporality


def histogram(data: otel.MetricsData, name: str) -> otel.HistogramDataPoint:
    (found,) = [metric for metric in data.resource_metrics[0].scope_metrics[0].metrics if metric.name == name]
    (point,) = found.data.data_points
    assert isinstance(point, otel.HistogramDataPoint)
    return point


def points(data: otel.MetricsData) -> dict[str, otel.NumberDataPoint]:
    """One point of each metric that has no buckets."""
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    found = {metric.name: metric.data.data_points[0] for metric in metrics}
    return {name: point for name, point in found.items() if isinstance(point, otel.NumberDataPoint)}


def test_cumulative_points_go_back_to_the_start() -> None:
    times = Times()
    metrics = told(with_ttft(0.5), times=times)
    times.at = 60.0
    metrics.collect()
    metrics.ended(with_ttft(0.25))
    times.at = 75.0
    point = histogram(metrics.collect(), names.TIME_TO_FIRST_TOKEN)
    assert (point.count, point.sum) == (2, 0.75)
    assert (point.start_time_unix_nano, point.time_unix_nano) == (START_NS, START_NS + 25_000_000_000)


def test_deltas_are_of_what_came_since() -> None:
    times = Times()
    metrics = told(with_ttft(0.5), times=times)
    times.at = 60.0
    first = metrics.collect("delta")
    metrics.ended(with_ttft(0.25))
    times.at = 75.0
    second = metrics.collect("delta")
    assert histogram(first, names.TIME_TO_FIRST_TOKEN).sum == 0.5
    point = histogram(second, names.TIME_TO_FIRST_TOKEN)
    assert (point.count, sum(point.bucket_counts), point.sum) == (1, 1, 0.25)
    assert (point.start_time_unix_nano, point.time_unix_nano) == (
        START_NS + 10_000_000_000,
        START_NS + 25_000_000_000,
    )
    assert points(second)[names.INPUT_TOKENS].value == 100


def test_a_series_that_stood_still_has_no_delta() -> None:
    metrics = told(made())
    metrics.collect("delta")
    told_names = {metric.name for metric in metrics.collect("delta").resource_metrics[0].scope_metrics[0].metrics}
    assert told_names == {names.SERVER_ACTIVE_REQUESTS, names.PROCESS_CPU_TIME, names.PROCESS_MEMORY}


@pytest.mark.parametrize(
    ("temporality", "kept", "read"),
    [("cumulative", CUMULATIVE, CUMULATIVE), ("delta", DELTA, DELTA), ("lowmemory", DELTA, CUMULATIVE)],
)
def test_each_preference_is_that_of_the_specification(
    collector: Collector, temporality: Temporality, kept: int, read: int
) -> None:
    received = sent(told(made()), collector, temporality)
    assert received[names.OPERATION_DURATION].histogram.aggregation_temporality == kept
    assert received[names.STREAMS_ENDED].sum.aggregation_temporality == kept
    assert received[names.PROCESS_CPU_TIME].sum.aggregation_temporality == read
    assert received[names.SERVER_ACTIVE_REQUESTS].sum.aggregation_temporality == CUMULATIVE


def test_scraping_takes_nothing_from_the_collector() -> None:
    metrics = told(with_ttft(0.5, trace=TRACE, ended_at=51.0))
    shown = metrics.prometheus("application/openmetrics-text")[0]
    assert TRACE.trace_id.encode() in shown
    point = histogram(metrics.collect("delta"), names.TIME_TO_FIRST_TOKEN)
    assert (point.count, len(point.exemplars)) == (1, 1)
    assert metrics.prometheus("application/openmetrics-text")[0].count(b"trace_id") == shown.count(b"trace_id")


def test_an_exemplar_is_sent_once() -> None:
    times = Times()
    metrics = told(with_ttft(0.5, trace=TRACE, ended_at=51.0), times=times)
    times.at = 60.0
    assert len(histogram(metrics.collect(), names.TIME_TO_FIRST_TOKEN).exemplars) == 1
    assert histogram(metrics.collect(), names.TIME_TO_FIRST_TOKEN).exemplars == []


# The thread


def test_metrics_are_sent_again_and_again() -> None:
    exporter = Exporter()
    export = MetricExport(told(made()), exporter, MetricSettings(0.001))
    export.start()
    for _ in range(3):
        exporter.exported.get(timeout=PATIENCE_S)
    export.close(PATIENCE_S)
    assert metric_threads() == []
    assert exporter.shutdowns == 1


def test_closing_twice_or_without_a_start_is_closing() -> None:
    exporter = Exporter()
    export = MetricExport(told(), exporter, MetricSettings())
    export.close(PATIENCE_S)
    export.close(PATIENCE_S)
    assert exporter.shutdowns == 1
    assert exporter.exported.empty()


def test_a_large_lot_is_sent_in_small_pieces() -> None:
    metrics = told(*(made(route_path=f"/{number}", sent_model=f"m{number}") for number in range(100)))
    data = metrics.collect()
    cut = list(pieces(data, 64))
    assert len(cut) > 10
    counts = [
        sum(len(metric.data.data_points) for metric in piece.resource_metrics[0].scope_metrics[0].metrics)
        for piece, _ in cut
    ]
    assert counts == [count for _, count in cut]
    assert max(counts) <= 64
    whole = [
        (metric.name, point)
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    ]
    assert whole == [
        (metric.name, point)
        for piece, _ in cut
        for metric in piece.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    ]


def test_what_nobody_takes_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    failure = otel.MetricExportResult.FAILURE
    exporter = Exporter(OSError("no route to http://user:secret@collector"), failure, failure)
    metrics = told()  # so little that it is one piece
    with caplog.at_level(logging.INFO, "sidecar.telemetry"):
        export = MetricExport(metrics, exporter, MetricSettings(0.001))
        export.start()
        for _ in range(5):
            exporter.exported.get(timeout=PATIENCE_S)
        exporter.results.append(failure)
        for _ in range(3):
            exporter.exported.get(timeout=PATIENCE_S)
        export.close(PATIENCE_S)
    said = [record.getMessage() for record in caplog.records if record.name == "sidecar.telemetry"]
    assert said == [
        "metrics cannot be exported (OSError); they are dropped and counted",
        "metrics are exported again",
        "metrics cannot be exported; they are dropped and counted",
        "metrics are exported again",
    ]
    counts = lost(metrics)
    assert counts["export_failed"] >= 4 * 4  # at least the process's points, four times
    assert counts["exported"] > 0


def test_why_nobody_takes_them_is_said_but_not_what_an_error_holds(caplog: pytest.LogCaptureFixture) -> None:
    for result, why in (
        (OSError("https://collector/?key=sk-1"), "OSError"),
        (otel.MetricExportResult.FAILURE, "HTTP 401"),
    ):
        export = MetricExport(told(), Exporter(result), MetricSettings(NEVER_S), lambda: "HTTP 401")
        export.start()
        export.close(PATIENCE_S)
        assert caplog.messages == [f"metrics cannot be exported ({why}); they are dropped and counted"]
        caplog.clear()


def test_a_collector_that_refuses_costs_points_alone(collector: Collector) -> None:
    collector.status = 400
    metrics = told(made())
    received = sent(metrics, collector)
    sent_points = sum(
        len(metric.histogram.data_points) + len(metric.sum.data_points) + len(metric.gauge.data_points)
        for metric in received.values()
    )
    assert lost(metrics) == {"export_failed": sent_points}


def test_a_collector_that_hangs_does_not_hold_the_end_up() -> None:
    exporter = StuckExporter()
    metrics = told(*(made(route_path=f"/{number}") for number in range(200)))
    export = MetricExport(metrics, exporter, MetricSettings(NEVER_S))
    export.start()
    export.close(0.01)
    assert metric_threads() == []
    assert exporter.exported.qsize() == 1
    assert lost(metrics)["closed"] > 0


def test_a_collector_that_is_not_there_does_not_hold_the_end_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    exporter = OTLPMetricExporter(f"http://127.0.0.1:{port}/v1/metrics")
    metrics = told(made())
    export = MetricExport(metrics, exporter, MetricSettings(NEVER_S))
    export.start()
    export.close(0.01)
    assert metric_threads() == []
    assert lost(metrics)["export_failed"] > 0


def test_readers_and_the_loop_do_not_disturb_each_other() -> None:
    metrics = Metrics(resource=RESOURCE)
    rounds, readers = 400, 2
    is_over = threading.Event()
    broken: list[str] = []

    def read() -> None:
        while not is_over.is_set():
            point = histogram(metrics.collect(), names.TIME_TO_FIRST_TOKEN)
            if point.sum != point.count * 0.5 or point.count != sum(point.bucket_counts):
                broken.append(f"{point.count} streams took {point.sum} s")

    metrics.ended(with_ttft(0.5))
    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        metrics.started()
        metrics.ended(with_ttft(0.5, route_path=f"/{number}"))
    is_over.set()
    for thread in threads:
        thread.join()
    assert broken == []
    assert histogram(metrics.collect(), names.TIME_TO_FIRST_TOKEN).count == rounds + 1


# Settings


def test_nothing_said_is_the_defaults() -> None:
    assert metric_settings({}) == MetricSettings(15.0, 10.0, "cumulative", exemplars=True, warnings=())


def test_the_variables_are_heard() -> None:
    environ = {
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
        "OTEL_METRIC_EXPORT_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": " Delta ",
        "OTEL_METRICS_EXEMPLAR_FILTER": "always_off",
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "explicit_bucket_histogram",
    }
    assert metric_settings(environ) == MetricSettings(5.0, 2.5, "delta", exemplars=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "15s"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "9" * 5000),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "-1"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "both"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "always_on"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "sometimes"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "summary"),
    ],
)
def test_what_cannot_be_had_is_warned_of_and_changes_nothing(name: str, value: str) -> None:
    settings = metric_settings({name: value})
    (warning,) = settings.warnings
    assert warning.startswith(f"{name}: ")
    assert settings == MetricSettings(warnings=(warning,))
