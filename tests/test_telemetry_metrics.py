"""What a request adds to the metrics, as the page that Prometheus scrapes shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sidecar.errors import Failure, Outcome
from sidecar.events import Usage
from sidecar.record import Record
from sidecar.telemetry import calls, names
from sidecar.telemetry.cells import SERIES_LIMIT
from sidecar.telemetry.exposition import OPENMETRICS_TYPE, TEXT_TYPE
from sidecar.telemetry.metrics import Metrics
from tests.made_records import TRACE, made, with_ttft

RESOURCE = {"service.name": "llm-sidecar", "service.instance.id": "i-1", "service.version": "1.2.3"}
TTFT = "llm_sidecar_time_to_first_token_seconds"
DURATION = "gen_ai_client_operation_duration_seconds"
ENDED = "llm_sidecar_streams_ended_total"

Page = list[tuple[str, dict[str, str], float]]


def told(*records: Record, **options: object) -> Metrics:
    metrics = Metrics(resource=RESOURCE, **options)  # type: ignore[arg-type]
    for record in records:
        metrics.started()
        metrics.ended(record)
    return metrics


def page(metrics: Metrics) -> Page:
    text, content_type = metrics.prometheus()
    assert content_type == TEXT_TYPE
    families = parse_text(text.decode())
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def openmetrics(text: bytes) -> list[Metric]:
    return list(parse_openmetrics(text.decode()))  # type: ignore[no-untyped-call]


def value(shown: Page, name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels; NaN where there are none."""
    found = [
        value for sample, has, value in shown if sample == name and all(has.get(key) == labels[key] for key in labels)
    ]
    return sum(found) if found else math.nan


def series(shown: Page, name: str) -> list[dict[str, str]]:
    return [labels for sample, labels, _ in shown if sample == name]


# Buckets


@pytest.mark.parametrize("edge", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(("step", "is_within"), [(-1, True), (0, True), (1, False)])
def test_a_value_on_an_objective_is_within_it(edge: float, step: int, is_within: bool) -> None:
    ttft = math.nextafter(edge, math.inf * step) if step else edge
    shown = page(told(with_ttft(ttft)))
    assert value(shown, f"{TTFT}_bucket", le=str(edge)) == is_within
    assert value(shown, f"{TTFT}_bucket", le="+Inf") == 1
    assert value(shown, f"{TTFT}_sum") == ttft


def test_buckets_are_cumulative_and_sums_are_exact() -> None:
    shown = page(told(with_ttft(0.25), with_ttft(0.5), with_ttft(0.5), with_ttft(90.0)))
    buckets = {labels["le"]: count for name, labels, count in shown if name == f"{TTFT}_bucket"}
    assert {le: buckets[le] for le in ("0.16", "0.25", "0.3", "0.5", "81.92", "+Inf")} == {
        "0.16": 0,
        "0.25": 1,
        "0.3": 1,
        "0.5": 3,
        "81.92": 3,
        "+Inf": 4,
    }
    assert value(shown, f"{TTFT}_sum") == 91.25
    assert value(shown, f"{TTFT}_count") == 4


@pytest.mark.parametrize("name", [names.TIME_TO_FIRST_TOKEN, names.TIME_TO_FIRST_CHUNK])
def test_the_objectives_are_edges_beside_those_of_the_conventions(name: str) -> None:
    bounds = names.METRICS[name].bounds
    assert {0.3, 0.7, 1.0, *names.GEN_AI_SECONDS} <= set(bounds)


@pytest.mark.parametrize("metric", [each for each in names.METRICS.values() if each.bounds], ids=lambda each: each.name)
def test_edges_rise(metric: names.Metric) -> None:
    assert list(metric.bounds) == sorted(set(metric.bounds))


# Figures


def test_a_stream_that_went_well() -> None:
    shown = page(told(made()))
    assert value(shown, f"{DURATION}_sum") == pytest.approx(2.497)
    assert value(shown, "gen_ai_client_operation_time_to_first_chunk_seconds_sum") == pytest.approx(0.247)
    assert value(shown, f"{TTFT}_sum") == pytest.approx(0.2505)
    overhead = "llm_sidecar_overhead_duration_seconds_sum"
    assert value(shown, overhead, llm_sidecar_phase="request") == pytest.approx(0.002)
    assert value(shown, overhead, llm_sidecar_phase="first_token") == pytest.approx(0.0005)
    assert value(shown, "llm_sidecar_time_per_output_token_seconds_sum") == pytest.approx(0.1)
    assert value(shown, "llm_sidecar_stream_max_gap_seconds_sum") == pytest.approx(0.4)
    assert value(shown, "http_server_request_duration_seconds_sum") == pytest.approx(2.5)
    assert value(shown, ENDED, llm_sidecar_outcome="completed") == 1
    assert value(shown, "http_server_active_requests") == 0


def test_tokens_are_those_that_the_provider_counted() -> None:
    usage = Usage(100, 21, 121, 40, 8, {"cache_creation_input_tokens": 12})
    shown = page(told(made(usage=usage), made(usage=usage)))
    counters = {
        "input_tokens": 200,
        "output_tokens": 42,
        "cache_read_input_tokens": 80,
        "cache_write_input_tokens": 24,
        "reasoning_output_tokens": 16,
    }
    for name, count in counters.items():
        sample = f"gen_ai_client_inference_usage_{name}_total"
        assert value(shown, sample, gen_ai_token_modality="unknown") == count
    assert value(shown, "gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 200
    assert value(shown, "gen_ai_client_token_usage_bucket", gen_ai_token_type="output", le="64.0") == 2


@pytest.mark.parametrize("usage", [None, Usage(), Usage(-5, -5), Usage(10**30, 10**30)])
def test_counts_that_are_none_count_nothing(usage: Usage | None) -> None:
    shown = page(told(made(usage=usage)))
    assert series(shown, "gen_ai_client_inference_usage_input_tokens_total") == []
    assert series(shown, "llm_sidecar_time_per_output_token_seconds_sum") == []


def test_only_streams_have_first_tokens() -> None:
    shown = page(told(made(is_stream=False)))
    assert series(shown, f"{TTFT}_count") == []
    assert series(shown, "llm_sidecar_overhead_duration_seconds_count") == []
    assert value(shown, f"{DURATION}_count") == 1


def test_traffic_that_asks_no_model_is_no_call() -> None:
    shown = page(told(made(method="GET", path="/v1/models", dialect="", is_stream=False, usage=None, sent_model="")))
    assert series(shown, f"{DURATION}_count") == []
    assert value(shown, "http_server_request_duration_seconds_count", http_request_method="GET") == 1
    assert value(shown, ENDED) == 1


def test_an_upload_sent_before_it_was_read_whole_took_no_time_of_ours() -> None:
    shown = page(told(made(body_read_at=100.2)))
    assert value(shown, "llm_sidecar_overhead_duration_seconds_sum", llm_sidecar_phase="request") == 0


def test_an_answer_before_the_request_was_sent_took_no_time() -> None:
    shown = page(told(made(sent_at=100.3)))
    assert value(shown, "gen_ai_client_operation_time_to_first_chunk_seconds_sum") == 0
    assert value(shown, f"{DURATION}_sum") == pytest.approx(2.25)


def test_of_several_attempts_the_call_began_before_the_first() -> None:
    assert value(page(told(made(attempts=2))), f"{DURATION}_sum") == pytest.approx(2.499)


def test_a_second_attempt_is_not_the_sidecars_share() -> None:
    shown = page(told(made(attempts=2)))
    assert math.isnan(value(shown, "llm_sidecar_overhead_duration_seconds_count", llm_sidecar_phase="request"))
    assert value(shown, "llm_sidecar_overhead_duration_seconds_count", llm_sidecar_phase="first_token") == 1


# Endings

FAILED = [
    (Failure("client_too_slow", ""), 200, None, None),
    (Failure("upstream_dns", ""), 502, "connect_error", "connect_error"),
    (Failure("upstream_connect_timeout", ""), 504, "timeout", "timeout"),
    (Failure("upstream_status", "", upstream_status=429), 429, "429", None),
    (Failure("upstream_status", "", upstream_status=500), 500, "500", "500"),
    (Failure("upstream_status", "", upstream_status=77777), 502, "_OTHER", "_OTHER"),
    (Failure("upstream_reset", ""), 200, "upstream_reset", "upstream_reset"),
    (Failure("upstream_truncated", ""), 200, "truncated", "truncated"),
    (Failure("malformed_upstream", ""), 200, "parse_error", "parse_error"),
    (Failure("upstream_error", "", provider_code="overloaded_error"), 200, "overloaded_error", "overloaded_error"),
    (Failure("upstream_error", "", provider_code="529"), 200, "529", "529"),
    (Failure("upstream_error", "", provider_code="sk-made-up"), 200, "_OTHER", "_OTHER"),
    (Failure("idle_timeout", ""), 200, "timeout", "timeout"),
    (Failure("overloaded", ""), 503, "503", "503"),
    (Failure("caller_limit", ""), 429, "429", None),
    (Failure("interrupted", ""), 200, None, None),
    (Failure("shutting_down", ""), None, "shutting_down", "shutting_down"),
    (Failure("internal", ""), 500, "_OTHER", "_OTHER"),
]


@pytest.mark.parametrize(("failure", "status", "error_type", "request_error_type"), FAILED)
def test_how_a_failed_stream_is_told(
    failure: Failure, status: int | None, error_type: str | None, request_error_type: str | None
) -> None:
    record = made(outcome=failure.outcome, failure=failure, status=status)
    assert calls.error_type(record) == error_type
    assert calls.request_error_type(record) == request_error_type
    shown = page(told(record))
    (ended,) = series(shown, ENDED)
    assert ended == {
        "llm_sidecar_route": "chat",
        "llm_sidecar_upstream": "main",
        "llm_sidecar_outcome": failure.outcome.value,
        "llm_sidecar_stage": "after_first_token",
        **({"error_type": error_type} if error_type is not None else {}),
    }
    (duration,) = series(shown, f"{DURATION}_count")
    assert duration.get("error_type") == error_type
    (request,) = series(shown, "http_server_request_duration_seconds_count")
    assert request.get("error_type") == request_error_type
    assert request.get("http_response_status_code") == (None if status is None else str(status))
    assert value(shown, "gen_ai_client_inference_usage_input_tokens_total") == 100


def test_a_clients_cancel_is_no_error() -> None:
    shown = page(told(made(outcome=Outcome.CLIENT_CANCELLED, first_sent_at=None, first_content_at=None, usage=None)))
    (ended,) = series(shown, ENDED)
    assert ended["llm_sidecar_outcome"] == "client_cancelled"
    assert ended["llm_sidecar_stage"] == "before_first_token"
    assert "error_type" not in ended
    assert series(shown, f"{TTFT}_count") == []


def test_what_was_refused_called_nobody() -> None:
    failure = Failure("overloaded", "")
    nowhere = {"upstream": "", "server_address": "", "server_port": 0, "attempts": 0, "usage": None}
    shown = page(told(made(outcome=failure.outcome, failure=failure, status=503, **nowhere)))
    assert series(shown, f"{DURATION}_count") == []
    assert value(shown, ENDED, llm_sidecar_outcome="refused", error_type="503") == 1


def test_a_call_that_never_connected_lasted_from_when_it_could_have() -> None:
    failure = Failure("upstream_refused", "")
    unsent = {"sent_at": None, "first_content_at": None, "first_sent_at": None, "last_content_at": None, "usage": None}
    shown = page(told(made(outcome=failure.outcome, failure=failure, status=502, upstream_status=None, **unsent)))
    assert value(shown, f"{DURATION}_sum", error_type="connect_error") == pytest.approx(2.499)


# Words


@pytest.mark.parametrize(
    ("changes", "operation", "provider"),
    [
        ({}, "chat", "openai"),
        ({"server_address": "x.openai.azure.com"}, "chat", "azure.ai.openai"),
        ({"server_address": "us-central1-aiplatform.googleapis.com", "dialect": "anthropic"}, "chat", "gcp.vertex_ai"),
        ({"server_address": "not-really.notapi.x.ai"}, "chat", "openai"),
        ({"server_address": "10.0.0.1", "dialect": "ollama-generate"}, "text_completion", "ollama"),
        ({"server_address": "", "dialect": "gemini"}, "generate_content", "gcp.gemini"),
        ({"server_address": "", "dialect": "opaque-sse"}, "generate_content", "main"),
        ({"server_address": "", "dialect": "", "is_stream": False, "path": "/v1/embeddings"}, "embeddings", "main"),
        ({"dialect": "", "is_stream": False}, "", "openai"),
    ],
)
def test_what_a_call_is_called(changes: dict[str, object], operation: str, provider: str) -> None:
    record = made(**changes)
    assert (calls.operation(record), calls.provider(record)) == (operation, provider)


def test_every_dialect_that_is_recognised_has_words() -> None:
    from sidecar.dialects import DIALECTS

    spoken = {name for name in DIALECTS if name != "raw" and not name.startswith("opaque")}
    assert spoken == calls.OPERATIONS.keys() == calls.PROVIDERS.keys()


def test_a_method_nobody_knows_is_one_of_many() -> None:
    shown = page(told(made(method="BREW")))
    assert series(shown, "http_server_request_duration_seconds_count")[0]["http_request_method"] == "_OTHER"


# Bounds


def models(shown: Page) -> dict[str, float]:
    counts: dict[str, float] = {}
    for name, labels, count in shown:
        if name == f"{DURATION}_count":
            counts[labels["gen_ai_request_model"]] = counts.get(labels["gen_ai_request_model"], 0) + count
    return counts


def asked_for(model: str, **changes: object) -> Record:
    return made(requested_model=model, sent_model=model, response_model="", **changes)


def test_beyond_the_bound_models_share_one_series() -> None:
    records = [asked_for(model) for model in ("a", "b", "c", "a", "d", "listed")]
    shown = page(told(*records, models=["listed"], model_limit=2))
    assert models(shown) == {"a": 2, "b": 1, "_OTHER": 2, "listed": 1}


def test_a_model_nobody_answered_to_is_not_learnt() -> None:
    failure = Failure("upstream_status", "", upstream_status=404)
    refused = [
        asked_for(f"made-up-{n}", outcome=failure.outcome, failure=failure, status=404, upstream_status=404)
        for n in range(50)
    ]
    shown = page(told(*refused, asked_for("real"), model_limit=1))
    assert models(shown) == {"_OTHER": 50, "real": 1}


@pytest.mark.parametrize("model", ["x" * 129, "line\nbreak", "\x00", "\ud800"])
def test_a_name_that_is_none_is_not_learnt(model: str) -> None:
    assert models(page(told(asked_for(model)))) == {"_OTHER": 1}


def test_answers_models_are_bounded_too() -> None:
    records = [made(response_model=f"m-{n}") for n in range(50)]
    shown = page(told(*records, model_limit=3))
    assert {labels["gen_ai_response_model"] for labels in series(shown, f"{DURATION}_count")} == {
        "m-0",
        "m-1",
        "m-2",
        "_OTHER",
    }


def test_series_are_bounded_whatever_tells_them_apart() -> None:
    surplus = 50
    records = [made(route_path=f"/{number}") for number in range(SERIES_LIMIT + surplus)]
    shown = page(told(*records))
    counted = "http_server_request_duration_seconds_count"
    assert len(series(shown, counted)) == SERIES_LIMIT + 1
    assert value(shown, counted, otel_metric_overflow="true") == surplus


def allowed_labels(sample: str) -> set[str]:
    for metric in names.METRICS.values():
        if sample.startswith(metric.prometheus_name):
            return {*map(names.prometheus_label, metric.attributes), "le"}
    raise AssertionError(sample)


def all_sorts() -> Iterable[Record]:
    yield made()
    yield made(is_stream=False, usage=Usage(1, 2, native={"cacheWriteInputTokens": 3}))
    for failure, status, *_ in FAILED:
        yield made(outcome=failure.outcome, failure=failure, status=status, warnings=("odd",), response_id="resp_1")


def test_no_point_has_a_label_but_those_of_the_table() -> None:
    metrics = told(*all_sorts(), gauges={names.STREAMS_ACTIVE: lambda: 3})
    metrics.turned(0.002)
    metrics.dropped("traces", "queue_full", 2)
    metrics.exported("traces", 5)
    metrics.watch(names.TELEMETRY_QUEUE, lambda: 4, {names.SIGNAL: "logs"})
    shown = [sample for sample in page(metrics) if sample[0] != "target_info"]
    assert [sample for sample in shown if not sample[1].keys() <= allowed_labels(sample[0])] == []
    text = metrics.prometheus()[0].decode()
    assert "resp_1" not in text
    assert "sk-made-up" not in text


def test_every_metric_of_the_table_is_measured() -> None:
    bounded = (names.BUFFERED, names.BUFFERED_LIMIT, names.CONNECTIONS, names.CONNECTIONS_LIMIT)
    gauges: dict[str, Any] = dict.fromkeys((names.STREAMS_ACTIVE, names.QUEUE, *bounded), float)
    gauges[names.UPSTREAM_UP] = lambda: {"llm": 1.0}
    metrics = told(*all_sorts(), gauges=gauges)
    metrics.turned(0.002)
    metrics.dropped("traces", "queue_full", 2)
    metrics.exported("traces", 5)
    metrics.watch(names.TELEMETRY_QUEUE, lambda: 4, {names.SIGNAL: "logs"})
    (of_resource,) = metrics.collect().resource_metrics
    (of_scope,) = of_resource.scope_metrics
    measured = {metric.name: (metric.unit, metric.description) for metric in of_scope.metrics}
    of_a_process = [metric for metric in names.METRICS.values() if metric.name != names.WORKER_UP]  # their parent's
    assert measured == {metric.name: (metric.unit, metric.description) for metric in of_a_process}


# The process and the loop


def test_requests_that_run_are_counted() -> None:
    metrics = told()
    for _ in range(3):
        metrics.started()
    metrics.ended(made())
    assert value(page(metrics), "http_server_active_requests") == 2


def test_gauges_are_read_when_they_are_asked_for() -> None:
    held = [7.0]
    metrics = told(gauges={names.BUFFERED: lambda: held[0], names.BUFFERED_LIMIT: lambda: 1024})
    metrics.watch(names.TELEMETRY_QUEUE, lambda: 4, {names.SIGNAL: "logs"})
    assert value(page(metrics), "llm_sidecar_buffered_bytes") == 7
    held[0] = 9.0
    shown = page(metrics)
    assert value(shown, "llm_sidecar_buffered_bytes") == 9
    assert value(shown, "llm_sidecar_buffered_limit_bytes") == 1024
    assert value(shown, "llm_sidecar_telemetry_queue", llm_sidecar_signal="logs") == 4


def test_a_gauge_may_have_several_series_that_come_and_go() -> None:
    up = {"llm": 1.0, "second": 0.0}
    metrics = told(gauges={names.UPSTREAM_UP: lambda: dict(up)})
    shown = page(metrics)
    assert value(shown, "llm_sidecar_upstream_up", llm_sidecar_upstream="llm") == 1
    assert value(shown, "llm_sidecar_upstream_up", llm_sidecar_upstream="second") == 0
    del up["second"]
    assert [labels for name, labels, *_ in page(metrics) if name == "llm_sidecar_upstream_up"] == [
        {"llm_sidecar_upstream": "llm"}
    ]


def test_the_loops_lateness_and_what_telemetry_lost() -> None:
    metrics = told()
    metrics.turned(0.004)
    metrics.turned(-0.001)
    metrics.dropped("traces", "queue_full", 2)
    metrics.dropped("traces", "queue_full", 3)
    metrics.exported("metrics", 11)
    shown = page(metrics)
    assert value(shown, "llm_sidecar_event_loop_lag_seconds_bucket", le="0.001") == 1
    assert value(shown, "llm_sidecar_event_loop_lag_seconds_sum") == 0.004
    dropped = "llm_sidecar_telemetry_dropped_total"
    assert value(shown, dropped, llm_sidecar_signal="traces", llm_sidecar_reason="queue_full") == 5
    assert value(shown, "llm_sidecar_telemetry_exported_total", llm_sidecar_signal="metrics") == 11


def test_the_process_is_measured() -> None:
    shown = page(told())
    assert value(shown, "process_cpu_time_seconds_total", cpu_mode="user") > 0
    assert value(shown, "process_memory_usage_bytes") > 1024 * 1024


# The page


def test_the_page_says_whose_it_is_and_escapes_what_it_says() -> None:
    metrics = Metrics(resource={**RESOURCE, "deployment.environment.name": 'a"b\\c\nd'})
    (target,) = series(page(metrics), "target_info")
    assert target == {
        "service_name": "llm-sidecar",
        "service_instance_id": "i-1",
        "service_version": "1.2.3",
        "deployment_environment_name": 'a"b\\c\nd',
    }


def test_what_the_environment_calls_attributes_breaks_no_page() -> None:
    metrics = Metrics(resource={**RESOURCE, "team.name": "a", "team_name": "b", "1st": "\udcff"})
    (target,) = series(page(metrics), "target_info")
    assert (target["team_name"], target["key_1st"]) == ("a;b", "?")
    (parsed,) = (
        one for one in openmetrics(metrics.prometheus("application/openmetrics-text")[0]) if one.name == "target"
    )
    assert parsed.samples[0].labels == target


def test_both_formats_say_the_same() -> None:
    metrics = told(*all_sorts(), made(trace=TRACE))
    metrics.dropped("traces", "queue_full", 2)
    text, content_type = metrics.prometheus("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3")
    assert content_type == OPENMETRICS_TYPE
    families = openmetrics(text)
    moving = ("process_", "target_")
    open_page = [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]
    assert [sample for sample in open_page if not sample[0].startswith(moving)] == [
        sample for sample in page(metrics) if not sample[0].startswith(moving)
    ]


def test_a_bucket_points_at_the_latest_trace_that_fell_into_it() -> None:
    metrics = told(with_ttft(0.28, trace=made_trace("a")), with_ttft(0.29, trace=made_trace("b")), with_ttft(0.6))
    text, _ = metrics.prometheus("application/openmetrics-text")
    exemplars = {
        sample.labels["le"]: sample.exemplar
        for family in openmetrics(text)
        for sample in family.samples
        if sample.name == f"{TTFT}_bucket" and sample.exemplar is not None
    }
    assert exemplars.keys() == {"0.3"}
    assert exemplars["0.3"].labels == {"trace_id": "b" * 32, "span_id": "b" * 16}
    assert exemplars["0.3"].value == 0.29


def made_trace(digit: str) -> object:
    return type(TRACE)(digit * 32, digit * 16, "c" * 16)


@pytest.mark.parametrize(
    ("options", "trace"),
    [({"exemplars": False}, TRACE), ({}, type(TRACE)("a" * 32, "b" * 16, "c" * 16, is_sampled=False)), ({}, None)],
)
def test_only_traces_that_somebody_keeps_are_pointed_at(options: dict[str, object], trace: object) -> None:
    text, _ = told(made(trace=trace), **options).prometheus("application/openmetrics-text")
    assert b"trace_id" not in text
