"""A record as two spans: names, parents, times, attributes, endings, and the words of other readers."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from sidecar.errors import CODES, ENDINGS, Failure, Outcome
from sidecar.events import Usage
from sidecar.record import Content
from sidecar.telemetry import names
from sidecar.telemetry.spans import SpanBuilder
from sidecar.telemetry.waiting import make_writable
from tests.telemetry_support import ANCHOR_NS, PLACE, ended, waiting

RESOURCE = Resource({"service.name": "test"})
READERS = ("langfuse", "legacy", "openinference", "openlit")


def spans_of(*, compat: tuple[str, ...] = (), slo_ttft_s: float | None = 0.3, **changes: Any) -> list[ReadableSpan]:
    return SpanBuilder(RESOURCE, compat, slo_ttft_s).build(waiting(**changes))


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def both(**changes: Any) -> tuple[ReadableSpan, ReadableSpan]:
    server, client = spans_of(**changes)
    return server, client


def test_the_request_and_the_call_behind_it() -> None:
    server, client = both()
    assert (server.name, server.kind, server.parent) == ("POST /v1/**", SpanKind.SERVER, None)
    assert (client.name, client.kind) == ("chat gpt-5", SpanKind.CLIENT)
    assert server.context is not None
    assert client.context is not None
    assert client.parent == server.context
    assert f"{server.context.trace_id:032x}" == f"{client.context.trace_id:032x}" == PLACE.trace_id
    assert f"{server.context.span_id:016x}" == PLACE.server_id
    assert f"{client.context.span_id:016x}" == PLACE.client_id
    assert server.resource is client.resource is RESOURCE


def test_times_are_the_marks_on_one_anchor() -> None:
    server, client = both()
    assert (server.start_time, server.end_time) == (ANCHOR_NS + 100_000_000_000, ANCHOR_NS + 102_500_000_000)
    assert client.start_time == pytest.approx(ANCHOR_NS + 100.003e9, abs=1000)
    assert client.end_time == server.end_time
    (event,) = client.events
    assert (event.name, event.timestamp) == (names.EVENT_FIRST_TOKEN, ANCHOR_NS + 100_250_000_000)
    assert server.events == ()


def test_what_stands_on_the_request() -> None:
    server, _ = both()
    assert attributes_of(server) == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.route": "/v1/**",
        "http.response.status_code": 200,
        "llm_sidecar.stream.id": "01a203e4daa6a0f8d06f8d3dc7e920bb",
        "llm_sidecar.outcome": "completed",
        "llm_sidecar.route": "chat",
        "llm_sidecar.upstream": "main",
        "llm_sidecar.format": "native",
        "llm_sidecar.dialect": "openai-chat",
        "llm_sidecar.requested_model": "gpt-5",
        "llm_sidecar.attempts": 1,
        "llm_sidecar.ttft": 0.2505,
        "llm_sidecar.slo.ttft_violated": False,
        "llm_sidecar.overhead.request": 0.002,
        "llm_sidecar.overhead.first_token": 0.0005,
        "llm_sidecar.stream.content_events": 21,
        "llm_sidecar.stream.max_gap": 0.4,
    }


def test_what_stands_on_the_call() -> None:
    _, client = both()
    assert attributes_of(client) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-5-2026",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.247,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 21,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.usage.reasoning.output_tokens": 8,
        "server.address": "api.openai.com",
        "server.port": 443,
        "http.response.status_code": 200,
        "llm_sidecar.outcome": "completed",
        "llm_sidecar.route": "chat",
        "llm_sidecar.upstream": "main",
        "llm_sidecar.ttft": 0.2505,
        "llm_sidecar.slo.ttft_violated": False,
    }


def test_every_attribute_is_one_of_the_table_and_in_its_place() -> None:
    place = msgspec.structs.replace(PLACE, parent_id="aaaaaaaaaaaaaaaa", state="a=1")
    pairs = [
        both(
            compat=READERS,
            trace=place,
            method="BREW",
            attempts=attempts,
            queued_s=0.0005,
            warnings=("terminator_missing",),
            outcome=Outcome.UPSTREAM_BROKEN,
            failure=Failure("upstream_reset", "gone"),
            usage=Usage(1, 2, None, 3, 4, {"cache_creation_input_tokens": 5}),
            content=Content('{"prompt":"hi"}', "yes", is_cut=True),
        )
        for attempts in (1, 2)
    ]
    for spans, where in zip(zip(*pairs, strict=True), ("server span", "client span"), strict=True):
        found = {name for span in spans for name in attributes_of(span)}
        known = {name for name, attribute in names.ATTRIBUTES.items() if where in attribute.places}
        assert known == found, where
    assert {event.name for event in pairs[0][1].events} == names.EVENTS.keys()


def test_another_upstreams_failure_is_no_overhead_of_ours() -> None:
    shares = [attributes_of(both(attempts=attempts)[0]).get("llm_sidecar.overhead.request") for attempts in (1, 2)]
    assert shares == [pytest.approx(0.002), None]


def test_attributes_are_cut_where_the_environment_says_so() -> None:
    builder = SpanBuilder(Resource({}), (), None, max_chars=4)
    server, client = builder.build(waiting())
    texts = [value for span in (server, client) for value in attributes_of(span).values() if isinstance(value, str)]
    assert texts
    assert max(map(len, texts)) == 4


def test_a_caller_is_the_parent_and_its_state_travels() -> None:
    place = msgspec.structs.replace(PLACE, parent_id="aaaaaaaaaaaaaaaa", state="a=1,b=2")
    server, client = both(trace=place)
    assert server.parent is not None
    assert (f"{server.parent.span_id:016x}", server.parent.is_remote) == (place.parent_id, True)
    for span in (server, client):
        assert span.context is not None
        assert dict(span.context.trace_state) == {"a": "1", "b": "2"}


def test_no_place_in_a_trace_is_no_span() -> None:
    assert spans_of(trace=None) == []


# Endings


def failure_of(code: str) -> Failure:
    if code == "upstream_status":
        return Failure(code, "no", upstream_status=429)
    return Failure(code, "no", provider_code="overloaded_error" if code == "upstream_error" else "")


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_its_status_and_error_type(code: str) -> None:
    failure = failure_of(code)
    status = failure.http_status
    server, client = both(outcome=failure.outcome, failure=failure, status=status, upstream_status=None)
    known = {"upstream_status": "429", "upstream_error": "overloaded_error"}
    expected = known.get(code, CODES[code].otel_error_type)
    is_error = ENDINGS[failure.outcome].is_span_error
    assert client.status.status_code is (StatusCode.ERROR if is_error else StatusCode.UNSET)
    assert client.status.description == (code if is_error else None)
    assert attributes_of(client).get("error.type") == expected
    assert attributes_of(client)["llm_sidecar.outcome"] == failure.outcome.value
    is_server_error = is_error and not 400 <= status < 500
    assert server.status.status_code is (StatusCode.ERROR if is_server_error else StatusCode.UNSET)
    if is_server_error or failure.outcome is Outcome.REFUSED:
        assert attributes_of(server)["error.type"] == expected


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.CLIENT_CANCELLED])
def test_an_ending_without_a_failure_is_no_error(outcome: Outcome) -> None:
    for span in spans_of(outcome=outcome, status=None if outcome is Outcome.CLIENT_CANCELLED else 200):
        assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in attributes_of(span)


def test_a_cut_after_200_is_an_error_of_both() -> None:
    for span in spans_of(outcome=Outcome.UPSTREAM_BROKEN, failure=Failure("upstream_truncated", "cut")):
        assert span.status.status_code is StatusCode.ERROR
        assert attributes_of(span)["error.type"] == "truncated"
        if span.kind is SpanKind.CLIENT:
            assert attributes_of(span)["gen_ai.usage.output_tokens"] == 21, "the usage seen so far is kept"


def test_an_error_type_is_of_a_closed_list() -> None:
    failure = Failure("upstream_error", "no", provider_code="sk-astray")
    for span in spans_of(outcome=Outcome.UPSTREAM_FAILED, failure=failure):
        assert attributes_of(span)["error.type"] == "_OTHER"
        assert "sk-astray" not in span.to_json()


def test_a_refusal_has_no_call() -> None:
    (server,) = spans_of(
        outcome=Outcome.REFUSED,
        failure=Failure("route_not_found", "no"),
        status=404,
        attempts=0,
        route="",
        route_path="",
        upstream="",
    )
    assert (server.name, server.status.status_code) == ("POST", StatusCode.UNSET)
    assert attributes_of(server)["error.type"] == "404"


def test_plain_traffic_is_a_call_of_no_model() -> None:
    _, client = both(
        method="GET",
        path="/v1/models",
        dialect="",
        is_stream=False,
        requested_model="",
        sent_model="",
        first_content_at=None,
        first_sent_at=None,
    )
    assert client.name == "GET"
    assert client.events == ()
    assert [name for name in attributes_of(client) if name.startswith("gen_ai.")] == []


# When the call began


@pytest.mark.parametrize(
    ("changes", "start_s"),
    [
        ({}, 100.003),
        ({"attempts": 2}, 100.001),
        ({"sent_at": None}, 100.001),
        ({"sent_at": None, "body_read_at": None}, 100.0),
        ({"sent_at": 100.3}, 100.25),
    ],
)
def test_a_call_begins_with_its_first_attempt(changes: dict[str, Any], start_s: float) -> None:
    _, client = both(**changes)
    assert client.start_time == pytest.approx(ANCHOR_NS + start_s * 1e9, abs=1000)
    assert attributes_of(client).get("http.request.resend_count") == (1 if "attempts" in changes else None)


# Objectives and readers


@pytest.mark.parametrize(("slo_ttft_s", "violated"), [(0.25, True), (0.2505, False), (0.3, False), (None, None)])
def test_the_strictest_objective_marks(slo_ttft_s: float | None, violated: bool | None) -> None:
    for span in spans_of(slo_ttft_s=slo_ttft_s):
        assert attributes_of(span).get("llm_sidecar.slo.ttft_violated") is violated


def test_a_stream_without_a_first_token_has_no_ttft() -> None:
    for span in spans_of(compat=READERS, first_content_at=None, first_sent_at=None):
        found = attributes_of(span)
        assert {"llm_sidecar.ttft", "llm_sidecar.slo.ttft_violated", names.LANGFUSE_COMPLETION_START}.isdisjoint(found)
        assert span.events == ()


def more(*compat: str, **changes: Any) -> dict[str, Any]:
    """What a switch adds to the call."""
    plain, switched = (attributes_of(both(compat=each, **changes)[1]) for each in ((), compat))
    assert plain.items() <= switched.items()
    return {name: value for name, value in switched.items() if name not in plain}


def test_langfuse() -> None:
    (start,) = more("langfuse").values()
    assert start == "2023-11-14T22:15:00.250000Z"
    assert datetime.fromisoformat(start).timestamp() == ANCHOR_NS / 1e9 + 100.25


def test_openlit() -> None:
    assert more("openlit") == {"gen_ai.server.time_to_first_token": 0.247}


def test_legacy() -> None:
    usage = Usage(10, 1, native={"cache_creation_input_tokens": 7})
    assert more("legacy", usage=usage) == {
        "gen_ai.system": "openai",
        "gen_ai.usage.cache_creation.input_tokens": 7,
    }


def test_openinference() -> None:
    assert more("openinference", content=Content("asked", "answered")) == {
        "openinference.span.kind": "LLM",
        "llm.model_name": "gpt-5-2026",
        "llm.provider": "openai",
        "llm.token_count.prompt": 100,
        "llm.token_count.completion": 21,
        "llm.token_count.total": 121,
        "llm.token_count.prompt_details.cache_read": 40,
        "llm.token_count.completion_details.reasoning": 8,
        "input.value": "asked",
        "output.value": "answered",
    }
    _, client = both(compat=("openinference",))
    assert [event.name for event in client.events] == [names.EVENT_FIRST_TOKEN, "First Token Stream Event"]


def test_a_total_that_is_not_told_is_the_sum() -> None:
    assert more("openinference", usage=Usage(3, 4))["llm.token_count.total"] == 7
    assert "llm.token_count.total" not in more("openinference", usage=Usage(3))


# Content


def test_content_is_told_only_where_it_was_kept() -> None:
    _, client = both()
    assert {names.INPUT_MESSAGES, names.OUTPUT_MESSAGES}.isdisjoint(attributes_of(client))
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
    _, client = both(content=Content(body, "yes"))
    found = attributes_of(client)
    assert json.loads(found[names.INPUT_MESSAGES]) == [
        {"role": "user", "parts": [{"type": "text", "content": "hi"}]},
    ]
    assert json.loads(found[names.OUTPUT_MESSAGES]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "yes"}], "finish_reason": "stop"},
    ]


# Text that no encoding takes


def test_text_that_cannot_be_written_is_made_writable() -> None:
    bad = "\udcff"
    record = ended(path=f"/{bad}{'x' * 5000}", requested_model=bad, response_model=f"é{bad}", response_id=bad)
    make_writable(record)
    assert (record.requested_model, record.response_model, record.response_id) == ("?", "é?", "?")
    assert len(record.path) == 1024
    assert record.path.encode()
    assert record.sent_model == "gpt-5"
