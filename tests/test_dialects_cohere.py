"""Cohere v2: what each event means, and every way it can be odd."""

from __future__ import annotations

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
    Reasoning,
    Start,
    Token,
    ToolCall,
    UpstreamError,
    Usage,
)
from tests.dialect_reading import decode_payloads, error_frame, read

START: dict[str, Any] = {"id": "m-1", "type": "message-start", "delta": {"message": {"role": "assistant"}}}


def decode(*payloads: Any) -> list[Event]:
    return decode_payloads("cohere", payloads)


def after_start(*payloads: Any) -> list[Event]:
    start, *events = decode(START, *payloads)
    assert start == Start("m-1", "")
    return events


def content(kind: str = "content-delta", index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "index": index, "delta": {"message": {"content": fields}}}


def call(kind: str, index: Any, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "index": index, "delta": {"message": {"tool_calls": fields}}}


def message_end(**delta: Any) -> dict[str, Any]:
    return {"type": "message-end", "delta": delta}


def test_text_and_thinking_are_of_one_choice() -> None:
    logprobs = {"text": "b", "token_ids": [1], "logprobs": [-0.5]}
    assert after_start(
        content("content-start", 0, type="thinking", thinking="a"),
        content(thinking="b"),
        {"type": "content-end", "index": 0},
        content("content-start", 1, type="text", text=""),
        {**content(index=1, text="b"), "logprobs": logprobs},
        content(index=1, text="c"),
    ) == [Reasoning(0, "a"), Reasoning(0, "b"), Token(0, "b", logprobs), Token(0, "c")]


def test_a_tool_plan_is_reasoning() -> None:
    plan = {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "I will"}}}
    assert after_start(plan) == [Reasoning(0, "I will")]


def test_calls_are_numbered_apart_from_content() -> None:
    assert after_start(
        content("content-start", 0, type="text", text="x"),
        call("tool-call-start", 0, id="a", type="function", function={"name": "f", "arguments": ""}),
        {"type": "tool-call-end", "index": 0},
        call("tool-call-start", 1, id="b", type="function", function={"name": "g", "arguments": ""}),
        call("tool-call-delta", 1, function={"arguments": '{"q"'}),
        call("tool-call-delta", 1, function={"arguments": ":1}"}),
    ) == [
        Token(0, "x"),
        ToolCall(0, 0, "", "a", "f"),
        ToolCall(0, 1, "", "b", "g"),
        ToolCall(0, 1, '{"q"'),
        ToolCall(0, 1, ":1}"),
    ]


def test_calls_in_a_list_or_with_whole_arguments_are_understood() -> None:
    listed = {"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": [{"id": "a"}]}}}
    whole = call("tool-call-start", 1, id="b", function={"name": "f", "arguments": {"x": 1}})
    assert after_start(listed, whole) == [ToolCall(0, 0, "", "a"), ToolCall(0, 1, '{"x":1}', "b", "f")]


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: [one]])
def test_citations_are_annotations(wrap: Any) -> None:
    citation = {"start": 0, "end": 2, "text": "ab", "sources": [{"type": "document", "id": "d"}], "type": "PLAN"}
    start = {"type": "citation-start", "index": 0, "delta": {"message": {"citations": wrap(citation)}}}
    assert after_start(start, {"type": "citation-end", "index": 0}) == [Annotation(0, citation)]


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("MAX_TOKENS", "length"),
        ("TOOL_CALL", "tool_calls"),
        ("SOMETHING_NEW", "stop"),
    ],
)
def test_finish_reasons(native: str, reason: Any) -> None:
    assert after_start(message_end(finish_reason=native)) == [Finish(0, reason, native)]


def test_usage_counts_tokens_not_what_is_billed() -> None:
    native = {
        "billed_units": {"input_tokens": 7.0, "output_tokens": 5.0},
        "tokens": {"input_tokens": 71.0, "output_tokens": 9.0},
        "cached_tokens": 64.0,
    }
    expected = Usage(71, 9, 80, 64, None, native)
    assert after_start(message_end(finish_reason="COMPLETE", usage=native))[1:] == [expected]
    assert after_start(message_end(usage={"tokens": None}))[0] == Usage(native={"tokens": None})


@pytest.mark.parametrize(("word", "is_retryable"), [("ERROR", False), ("TIMEOUT", True)])
def test_a_message_may_end_in_an_error(word: str, is_retryable: bool) -> None:
    delta = {"finish_reason": word, "error": "out of memory", "usage": {"tokens": {"input_tokens": 1}}}
    finish, usage, error = after_start(message_end(**delta))
    assert finish == Finish(0, "error", word)
    assert isinstance(usage, Usage)
    assert error == UpstreamError("out of memory", delta, word, None, is_retryable)


def test_an_error_without_words_is_one_too() -> None:
    assert after_start(message_end(finish_reason="ERROR"))[1] == UpstreamError(
        "ERROR", {"finish_reason": "ERROR"}, "ERROR"
    )
    assert after_start(message_end(error="why")) == [UpstreamError("why", {"error": "why"})]


def test_errors_in_other_shapes() -> None:
    dialect = DIALECTS["cohere"]()
    data = b'{"message":"too many"}'
    start, error = dialect.decode(Frame(data, data, b"error"))
    assert (start, error) == (Start(), UpstreamError("too many", {"message": "too many"}))
    data = b'{"type":"internal","message":"why"}'
    assert list(dialect.decode(Frame(data, data, b"error"))) == [
        UpstreamError("why", {"type": "internal", "message": "why"}, "internal")
    ]
    assert after_start({"error": {"message": "m", "status_code": 503}}) == [
        UpstreamError("m", {"message": "m", "status_code": 503}, "", 503, retryable=True)
    ]


def test_what_has_no_other_name_is_an_extension() -> None:
    debug = {"type": "debug", "prompt": "<BOS>"}
    image = content("content-start", 0, type="image", image="x")
    novel = {"type": "plan-delta", "delta": {}}
    assert after_start(debug, image, novel) == [
        Extension("debug", debug),
        Extension("content-start", image),
        Extension("plan-delta", novel),
    ]


def test_the_event_name_serves_where_the_type_is_missing() -> None:
    dialect = DIALECTS["cohere"]()
    data = b'{"delta":{"message":{"content":{"text":"a"}}}}'
    assert list(dialect.decode(Frame(data, data, b"content-delta"))) == [Start(), Token(0, "a")]


@pytest.mark.parametrize(
    ("tail", "is_finished", "terminated"),
    [
        (b"", False, False),
        (b'data: {"type":"message-end","delta":{}}\n\n', True, False),
        (b'data: {"type":"message-end","delta":{"finish_reason":"COMPLETE"}}\n\ndata: [DONE]\n\n', True, True),
        (b'data: [DONE]\n\ndata: {"type":"content-delta"}\n\n', False, True),
    ],
)
def test_ends(tail: bytes, is_finished: bool, terminated: bool) -> None:
    body = b'data: {"type":"message-start","id":"m"}\n\n' + tail
    events, dialect = read("cohere", [body])
    assert (dialect.is_finished, dialect.terminated) == (is_finished, terminated)
    assert not any(isinstance(event, Extension) for event in events)


def test_error_frames() -> None:
    frame = error_frame("cohere", Failure("upstream_reset", "gone"))
    assert frame == (
        b'event: message-end\ndata: {"type":"message-end","delta":{"finish_reason":"ERROR","error":"gone"}}\n\n'
    )
    assert b'"TIMEOUT"' in error_frame("cohere", Failure("idle_timeout", "silent"))
    events, _ = read("cohere", [frame])
    assert events[0] == Start()
    assert isinstance(events[2], UpstreamError)
    assert events[2].message == "gone"
