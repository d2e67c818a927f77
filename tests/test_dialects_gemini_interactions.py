"""Gemini's Interactions API: steps, deltas, how an interaction comes to rest, and a stream taken up again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import (
    Annotation,
    Event,
    Extension,
    Finish,
    Frame,
    Media,
    Reasoning,
    Start,
    Token,
    ToolCall,
    UpstreamError,
    Usage,
)
from tests.dialect_reading import decode_payloads, error_frame, read, summarise
from tests.official_google import read_interactions

NAME = "gemini-interactions"
COUNTS = {"total_input_tokens": 7, "total_output_tokens": 26, "total_thought_tokens": 115, "total_tokens": 148}


def created(**fields: Any) -> dict[str, Any]:
    return {"event_type": "interaction.created", "interaction": {"id": "v1_a", "model": "g", **fields}}


def start(index: int, kind: str, **step: Any) -> dict[str, Any]:
    return {"event_type": "step.start", "index": index, "step": {"type": kind, **step}}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"event_type": "step.delta", "index": index, "delta": {"type": kind, **fields}}


def stop(index: int, **fields: Any) -> dict[str, Any]:
    return {"event_type": "step.stop", "index": index, **fields}


def completed(status: str = "completed", **fields: Any) -> dict[str, Any]:
    return {"event_type": "interaction.completed", "interaction": {"id": "v1_a", "status": status, **fields}}


def events_of(*payloads: Any) -> list[Event]:
    first, *events = decode_payloads(NAME, [created(), *payloads])
    assert first == Start("v1_a", "g")
    return events


def test_steps_become_text_thoughts_and_calls() -> None:
    assert events_of(
        start(0, "thought", summary=[{"type": "text", "text": "First. "}], signature="s0"),
        delta(0, "thought_summary", content={"type": "text", "text": "Hm."}),
        delta(0, "thought_signature", signature="s1"),
        stop(0),
        start(1, "model_output", content=[{"type": "text", "text": "A"}]),
        delta(1, "text", text="b"),
        delta(1, "text", text=""),
        delta(1, "text_annotation_delta", annotations=[{"url": "u"}, {"url": "v"}]),
        stop(1),
        start(2, "function_call", id="c1", name="f", arguments={}, signature="s2"),
        delta(2, "arguments_delta", arguments='{"a":'),
        delta(2, "arguments_delta", arguments="1}"),
        stop(2),
        completed("requires_action", usage=COUNTS),
    ) == [
        Reasoning(0, "First. "),
        Reasoning(0, "", "s0"),
        Reasoning(0, "Hm."),
        Reasoning(0, "", "s1"),
        Token(0, "A"),
        Token(0, "b"),
        Annotation(0, {"url": "u"}),
        Annotation(0, {"url": "v"}),
        Reasoning(0, "", "s2"),
        ToolCall(0, 0, "", "c1", "f"),
        ToolCall(0, 0, '{"a":'),
        ToolCall(0, 0, "1}"),
        Finish(0, "tool_calls", "requires_action"),
        Usage(7, 141, 148, None, 115, COUNTS),
    ]


def test_arguments_in_a_steps_start_count_where_no_delta_comes() -> None:
    steps = [start(0, "function_call", id="a", name="f", arguments={"x": 1})]
    steps += [
        start(1, "function_call", id="b", name="g", arguments={"x": 1}),
        delta(1, "arguments_delta", arguments="{}"),
    ]
    told = summarise(events_of(*steps, stop(1), completed()))
    assert told.calls == {(0, 0): ["a", "f", '{"x":1}'], (0, 1): ["b", "g", "{}"]}


@pytest.mark.parametrize(
    ("fields", "event"),
    [
        ({"type": "image", "mime_type": "image/png", "data": "AA=="}, Media(0, "image", "image/png", "AA==")),
        ({"type": "audio", "mime_type": "audio/mp3", "uri": "https://a"}, Media(0, "audio", "audio/mp3", "https://a")),
        (
            {"type": "document", "mime_type": "application/pdf", "data": "AA=="},
            Media(0, "document", "application/pdf", "AA=="),
        ),
    ],
)
def test_media(fields: dict[str, Any], event: Event) -> None:
    assert events_of(delta(0, fields.pop("type"), **fields)) == [event]


@pytest.mark.parametrize(
    "payload",
    [
        delta(3, "google_search_call", arguments={"queries": ["x"]}),
        delta(3, "mcp_server_tool_result", result=[]),
        delta(3, "function_result", result="x"),
        delta(3, "video"),
        delta(3, "something_new", a=1),
        start(3, "code_execution_call", id="t"),
        start(3, "user_input", content=[{"type": "text", "text": "not the model's"}]),
        start(3, "model_output", error={"code": 3, "message": "bad"}),
        delta(3, "thought_summary", content={"type": "image", "data": "AA=="}),
    ],
)
def test_what_has_no_other_name_passes_whole(payload: dict[str, Any]) -> None:
    (event,) = events_of(payload)
    assert isinstance(event, Extension)
    assert event.data == payload
    assert event.type == payload["delta" if "delta" in payload else "step"]["type"]


def test_other_events_pass_whole() -> None:
    update = {"event_type": "interaction.status_update", "interaction_id": "v1_a", "status": "in_progress"}
    news = {"event_type": "interaction.paused", "a": 1}
    counted = stop(0, step_usage=COUNTS, usage=COUNTS)
    assert events_of(update, news, counted, delta(0, "text", text="a") | {"metadata": {"total_usage": COUNTS}}) == [
        Extension("interaction.status_update", update),
        Extension("interaction.paused", news),
        Extension("step.stop", counted),
        Usage(7, 141, 148, None, 115, COUNTS),
        Token(0, "a"),
        Usage(7, 141, 148, None, 115, COUNTS),
    ]


def test_arguments_of_a_servers_tool_are_no_call() -> None:
    payload = delta(0, "arguments_delta", arguments="{}")
    assert events_of(start(0, "mcp_server_tool_call", id="t"), payload)[1] == Extension("mcp_server_tool_call", payload)


def test_a_stream_taken_up_again_begins_anywhere() -> None:
    payloads = [delta(1, "text", text="rest"), delta(4, "arguments_delta", arguments="}"), completed()]
    events = decode_payloads(NAME, payloads)
    assert events == [Start(), Token(0, "rest"), ToolCall(0, 0, "}"), Finish(0, "stop", "completed")]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("completed", "stop"),
        ("requires_action", "tool_calls"),
        ("incomplete", "length"),
        ("budget_exceeded", "length"),
        ("requires_continuation", "paused"),
    ],
)
def test_an_interaction_rests(status: str, reason: Any) -> None:
    update = {"event_type": "interaction.status_update", "interaction_id": "v1_a", "status": status}
    assert events_of(update, completed(status))[1:] == [Finish(0, reason, status)]
    dialect = DIALECTS[NAME]()
    data = json.dumps(update).encode()
    dialect.decode(Frame(data, data))
    assert (dialect.is_finished, dialect.terminated) == (True, False)


@pytest.mark.parametrize("status", ["in_progress", "queued", "something_new", None])
def test_an_interaction_goes_on(status: Any) -> None:
    events_, dialect = read(
        NAME, [b'data: {"event_type":"interaction.status_update","status":%b}\n\n' % json.dumps(status).encode()]
    )
    assert [type(event) for event in events_] == [Start, Extension]
    assert not dialect.is_finished


def test_nothing_follows_the_last_event() -> None:
    steps = [{"type": "model_output", "content": [{"type": "text", "text": "told before"}]}]
    body = b"".join(
        b"data: %b\n\n" % json.dumps(each).encode() for each in (completed(steps=steps), delta(0, "text", text="x"))
    )
    events, dialect = read(NAME, [body + b"data: [DONE]\n\n"])
    assert events == [Start("v1_a", ""), Finish(0, "stop", "completed")]
    assert dialect.terminated


def test_the_done_mark_ends_a_stream_too() -> None:
    _, dialect = read(NAME, [b"data: [DONE]\n\n"])
    assert dialect.terminated


def test_errors() -> None:
    error = {"code": "gateway_timeout", "message": "too slow"}
    assert events_of({"event_type": "error", "error": error}) == [UpstreamError("too slow", error, "gateway_timeout")]
    assert events_of({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "m"}})[0] == UpstreamError(
        "m", {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "m"}, "RESOURCE_EXHAUSTED", 429, retryable=True
    )


def test_a_failed_interaction_is_an_error() -> None:
    failed = {"id": "v1_a", "status": "failed"}
    assert events_of(completed("failed")) == [
        Finish(0, "error", "failed"),
        UpstreamError("the interaction failed", failed, "failed"),
    ]
    assert events_of(completed("failed", error={"message": "why"}))[1] == UpstreamError("why", {"message": "why"})


def test_a_failed_status_waits_for_the_upstreams_own_words() -> None:
    update = {"event_type": "interaction.status_update", "interaction_id": "v1_a", "status": "failed"}
    told = [Extension("interaction.status_update", update), Finish(0, "error", "failed")]
    words = {"code": "429", "message": "real words"}
    own = UpstreamError("real words", words, "429", 429, retryable=True)
    assert events_of(update, {"event_type": "error", "error": words}, completed("failed")) == [*told, own]
    assert events_of(update, completed("failed", error=words)) == [*told, own]
    bare = UpstreamError("the interaction failed", update, "failed")
    assert events_of(update) == [*told, bare]
    assert events_of(update, b"[DONE]") == [*told, bare]


def test_a_cancelled_interaction_is_an_error() -> None:
    update = {"event_type": "interaction.status_update", "interaction_id": "v1_a", "status": "cancelled"}
    cancelled = {"id": "v1_a", "status": "cancelled"}
    assert events_of(update, completed("cancelled")) == [
        Extension("interaction.status_update", update),
        Finish(0, "error", "cancelled"),
        UpstreamError("the interaction was cancelled", cancelled, "cancelled"),
    ]
    dialect = DIALECTS[NAME]()
    dialect.decode(Frame(json.dumps(update).encode(), b""))
    assert (dialect.is_finished, dialect.terminated) == (True, False)


def test_the_package_hands_our_own_error_out() -> None:
    text = b"data: %b\n\n" % json.dumps(delta(0, "text", text="a")).encode()
    frame = error_frame(NAME, Failure("upstream_reset", "m"))
    told = read_interactions(text + frame)
    assert (told.text, told.error) == ({0: "a"}, "m")
