"""Anthropic Messages streams, event by event."""

from __future__ import annotations

from typing import Any

import msgspec
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
from tests.dialect_reading import decode_payloads, error_frame

MESSAGE = {"type": "message_start", "message": {"id": "msg_1", "model": "c", "content": []}}
START = Start("msg_1", "c")


def events(*payloads: Any) -> list[Event]:
    """The events of ``payloads`` after a ``message_start``, without its Start."""
    decoded = decode_payloads("anthropic", [MESSAGE, *payloads])
    assert decoded[0] == START
    return decoded[1:]


def block(kind: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}}


def delta(kind: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def block_stop(index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def message_delta(reason: str | None, **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}


def test_text_and_thinking() -> None:
    citation = {"type": "char_location", "cited_text": "x"}
    assert events(
        block("thinking", thinking="", signature=""),
        delta("thinking_delta", thinking="hm"),
        delta("signature_delta", signature="sig"),
        block_stop(),
        block("text", 1, text=""),
        delta("text_delta", 1, text="Hi"),
        delta("text_delta", 1, text=""),
        delta("citations_delta", 1, citation=citation),
        block_stop(1),
    ) == [Reasoning(0, "hm"), Reasoning(0, "", "sig"), Token(0, "Hi"), Annotation(0, citation)]


def test_blocks_that_start_with_content() -> None:
    assert events(
        block("text", text="Hi", citations=[{"a": 1}]),
        block("thinking", 1, thinking="hm", signature="sig"),
        block("thinking", 2, thinking="so"),
    ) == [Token(0, "Hi"), Annotation(0, {"a": 1}), Reasoning(0, "hm", "sig"), Reasoning(0, "so")]


def test_tool_calls_count_from_zero_whatever_the_block() -> None:
    assert events(
        block("text", 0, text=""),
        block("tool_use", 1, id="a", name="f", input={}),
        delta("input_json_delta", 1, partial_json=""),
        delta("input_json_delta", 1, partial_json='{"x":'),
        delta("input_json_delta", 1, partial_json="1}"),
        block_stop(1),
        block("tool_use", 2, id="b", name="g", input={}),
        block_stop(2),
    ) == [ToolCall(0, 0, "", "a", "f"), ToolCall(0, 0, '{"x":'), ToolCall(0, 0, "1}"), ToolCall(0, 1, "", "b", "g")]


def test_input_of_a_block_start_counts_only_without_deltas() -> None:
    whole = block("tool_use", id="a", name="f", input={"x": 1})
    assert events(whole, block_stop()) == [ToolCall(0, 0, "", "a", "f"), ToolCall(0, 0, '{"x":1}')]
    assert events(whole, message_delta("tool_use"))[1] == ToolCall(0, 0, '{"x":1}')
    assert events(whole, delta("input_json_delta", partial_json="{}"), block_stop()) == [
        ToolCall(0, 0, "", "a", "f"),
        ToolCall(0, 0, "{}"),
    ]


def test_tool_start_without_input_and_delta_without_start() -> None:
    assert events(block("tool_use", id="a", name="f"), delta("input_json_delta", 7, partial_json="{}")) == [
        ToolCall(0, 0, "", "a", "f"),
        ToolCall(0, 1, "{}"),
    ]


@pytest.mark.parametrize(
    "kind",
    [
        "redacted_thinking",
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_result",
        "web_search_tool_result",
        "container_upload",
        "compaction",
        "fallback",
        "not_invented_yet",
    ],
)
def test_other_blocks_pass_as_extensions(kind: str) -> None:
    start, piece = block(kind, 1, data="x"), delta("input_json_delta", 1, partial_json="{}")
    assert events(start, piece, block_stop(1)) == [Extension(kind, start), Extension(kind, piece)]


def test_unknown_deltas_and_events_pass_as_extensions() -> None:
    strange, vertex = delta("strange_delta", x=1), {"type": "vertex_event"}
    assert events(strange, vertex, {"a": 1}, [1], b"<html>") == [
        Extension("strange_delta", strange),
        Extension("vertex_event", vertex),
        Extension("unknown", {"a": 1}),
        Extension("unknown", [1]),
        Extension("unparsed", "<html>"),
    ]


def test_what_comes_before_the_message_waits_for_it_and_pings_are_nothing() -> None:
    vertex = {"type": "vertex_event"}
    assert decode_payloads("anthropic", [vertex, {"type": "ping"}, MESSAGE]) == [
        START,
        Extension("vertex_event", vertex),
    ]
    assert decode_payloads("anthropic", [{"type": "ping"}]) == []
    assert decode_payloads("anthropic", [delta("text_delta", text="Hi")]) == [Start(), Token(0, "Hi")]


def test_the_event_name_stands_in_for_a_missing_type() -> None:
    dialect = DIALECTS["anthropic"]()
    dialect.decode(Frame(msgspec.json.encode(MESSAGE), b""))
    assert list(
        dialect.decode(Frame(b'{"index":0,"delta":{"type":"text_delta","text":"Hi"}}', b"", b"content_block_delta"))
    ) == [Token(0, "Hi")]
    assert list(dialect.decode(Frame(b"{}", b"", b"message_stop"))) == []
    assert dialect.terminated


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "paused"),
        ("compaction", "paused"),
        ("never heard of", "stop"),
    ],
)
def test_stop_reasons(native: str, reason: Any) -> None:
    assert events(message_delta(native)) == [Finish(0, reason, native)]


def test_finished_by_a_stop_reason_ended_by_message_stop() -> None:
    dialect = DIALECTS["anthropic"]()
    seen = []
    for payload in (MESSAGE, message_delta(None), message_delta("end_turn"), {"type": "message_stop"}):
        dialect.decode(Frame(msgspec.json.encode(payload), b""))
        seen.append((dialect.is_finished, dialect.terminated))
    assert seen == [(False, False), (False, False), (True, False), (True, True)]
    assert dialect.decode(Frame(msgspec.json.encode(delta("text_delta", text="late")), b"")) == ()


def test_usage_is_merged_key_by_key() -> None:
    first = {"input_tokens": 5, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 3, "output_tokens": 1}
    started = {"type": "message_start", "message": {"id": "msg_1", "model": "c", "usage": first}}
    last = {"output_tokens": 40, "input_tokens": None, "output_tokens_details": {"thinking_tokens": 30}}
    merged = {**first, "output_tokens": 40, "output_tokens_details": {"thinking_tokens": 30}}
    assert decode_payloads("anthropic", [started, message_delta("end_turn", **last)]) == [
        START,
        Usage(28, 1, 29, 20, native=first),
        Finish(0, "stop", "end_turn"),
        Usage(28, 40, 68, 20, 30, native=merged),
    ]


def test_a_second_message_start_resets_nothing() -> None:
    spliced = {"type": "message_start", "message": {"id": "msg_2", "model": "d", "usage": {"output_tokens": 1}}}
    tool = block("tool_use", id="a", name="f")
    assert events(message_delta(None, output_tokens=9), tool, MESSAGE, spliced, tool, message_delta("tool_use")) == [
        Usage(None, 9, None, native={"output_tokens": 9}),
        ToolCall(0, 0, "", "a", "f"),
        Extension("message_start", spliced),
        ToolCall(0, 1, "", "a", "f"),
        Finish(0, "tool_calls", "tool_use"),
    ]


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [
        ("overloaded_error", True),
        ("rate_limit_error", True),
        ("api_error", True),
        ("timeout_error", True),
        ("invalid_request_error", False),
    ],
)
def test_error_event(kind: str, *, retryable: bool) -> None:
    error = {"type": kind, "message": "no"}
    assert events({"type": "error", "error": error, "request_id": "r"}) == [
        UpstreamError("no", error, kind, None, retryable)
    ]


def test_error_event_that_is_not_json() -> None:
    decoded = DIALECTS["anthropic"]().decode(Frame(b"gateway gone", b"", b"error"))
    assert list(decoded) == [Start(), UpstreamError("gateway gone", "gateway gone")]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("idle_timeout", "timeout_error"),
        ("overloaded", "overloaded_error"),
        ("shutting_down", "overloaded_error"),
        ("upstream_reset", "api_error"),
    ],
)
def test_error_frame_is_what_the_package_raises_on(code: str, kind: str) -> None:
    name, data, *rest = error_frame("anthropic", Failure(code, "a\nb")).split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert msgspec.json.decode(data.removeprefix(b"data: ")) == {
        "type": "error",
        "error": {"type": kind, "message": "a\nb"},
    }
