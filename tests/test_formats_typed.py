"""The typed format: order, numbers, fields left out, and JSON that always comes out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import CODES, ENDINGS, Failure
from sidecar.events import (
    Annotation,
    Event,
    Extension,
    Finish,
    Frame,
    Media,
    Reasoning,
    Refusal,
    Start,
    Token,
    ToolCall,
    UpstreamError,
    Usage,
)
from sidecar.formats.payloads import PAYLOADS
from sidecar.formats.typed import TypedFormat
from sidecar.framing import make_framing
from sidecar.ports import Ended

FRAME = Frame(b"{}", b"data: {}\n\n")
START = {"stream": "s1", "route": "chat", "upstream": "vllm", "model": "asked", "created": 1700000000}


def typed() -> TypedFormat:
    return TypedFormat("s1", "chat", "vllm", "asked", 1700000000)


def started() -> TypedFormat:
    format_ = typed()
    format_.encode(FRAME, [Start()])
    return format_


def ended(**given_fields: Any) -> Ended:
    fields: dict[str, Any] = {
        "status": "completed",
        "finish_reasons": [],
        "ttft_ms": None,
        "duration_ms": 12.0,
        "content_events": 0,
        "warnings": [],
    }
    return Ended(**(fields | given_fields))


def read(body: bytes) -> list[tuple[int, str, Any]]:
    """Number, name and data of every event, each checked against the published fields of its name."""
    events = []
    for frame in make_framing("sse", 1 << 20, strict=True).feed(body):
        first = frame.raw.split(b"\n", 1)[0]
        assert first.startswith(b"id: s1-")
        name = (frame.name or b"").decode()
        data = json.loads(frame.data or b"")
        msgspec.convert(data, PAYLOADS[name])
        events.append((int(first.removeprefix(b"id: s1-")), name, data))
    return events


def data_of(*events: Event) -> list[tuple[str, Any]]:
    return [(name, data) for _, name, data in read(started().encode(FRAME, events))]


def test_exact_bytes_of_a_short_stream() -> None:
    format_ = typed()
    body = format_.encode(FRAME, [Start("r1", "m1")]) + format_.encode(FRAME, [Token(0, "Hi")])
    assert body == (
        b'id: s1-1\nevent: start\ndata: {"stream":"s1","route":"chat","upstream":"vllm","model":"m1",'
        b'"created":1700000000,"response_id":"r1"}\n\n'
        b'id: s1-2\nevent: token\ndata: {"index":0,"text":"Hi"}\n\n'
    )


def test_start_is_made_up_where_the_upstream_gives_none() -> None:
    assert read(typed().encode(FRAME, [Token(0, "Hi")])) == [
        (1, "start", START),
        (2, "token", {"index": 0, "text": "Hi"}),
    ]


def test_start_is_sent_once() -> None:
    assert started().encode(FRAME, [Start("r2", "m2")]) == b""


def test_what_the_end_tells_sends_nothing_and_starts_nothing() -> None:
    format_ = typed()
    silent: list[Event] = [Usage(1, 2, 3), Finish(0, "stop", "stop"), UpstreamError("no")]
    assert format_.encode(FRAME, silent) == b""
    assert [format_.encode(FRAME, [event]) for event in silent] == [b"", b"", b""]
    assert format_.encode(FRAME, []) == b""
    assert read(format_.encode(FRAME, [Start("", "m1")])) == [(1, "start", START | {"model": "m1"})]


@pytest.mark.parametrize(
    ("event", "name", "data"),
    [
        (Token(1, "a\nb"), "token", {"index": 1, "text": "a\nb"}),
        (Token(0, "a", [{"p": 1}]), "token", {"index": 0, "text": "a", "logprobs": [{"p": 1}]}),
        (Reasoning(2, "hm"), "reasoning", {"index": 2, "text": "hm"}),
        (Reasoning(0, "", "sig"), "reasoning", {"index": 0, "text": "", "signature": "sig"}),
        (Refusal(0, "no"), "refusal", {"index": 0, "text": "no"}),
        (
            ToolCall(0, 1, "", "c1", "f"),
            "tool_call",
            {"index": 0, "call": 1, "arguments": "", "id": "c1", "name": "f"},
        ),
        (ToolCall(0, 1, '{"a'), "tool_call", {"index": 0, "call": 1, "arguments": '{"a'}),
        (Annotation(0, {"url": "u"}), "annotation", {"index": 0, "annotation": {"url": "u"}}),
        (
            Media(0, "audio", "audio/wav", "AAAA"),
            "media",
            {"index": 0, "kind": "audio", "mime_type": "audio/wav", "data": "AAAA"},
        ),
        (Extension("x", {"a": [1, None]}), "extension", {"type": "x", "data": {"a": [1, None]}}),
        (Extension("unparsed", "{"), "extension", {"type": "unparsed", "data": "{"}),
    ],
)
def test_data_of_each_event(event: Event, name: str, data: dict[str, Any]) -> None:
    assert data_of(event) == [(name, data)]


def test_several_events_of_one_frame_are_numbered_in_order() -> None:
    format_ = typed()
    body = format_.encode(FRAME, [Reasoning(0, "hm"), Finish(0, "stop", "stop"), Token(0, "a")])
    body += format_.encode(FRAME, [Token(0, "b")]) + format_.close(ended())
    assert [(number, name) for number, name, _ in read(body)] == [
        (1, "start"),
        (2, "reasoning"),
        (3, "token"),
        (4, "token"),
        (5, "done"),
    ]


def test_close_tells_error_usage_and_done_in_this_order() -> None:
    failure = Failure("upstream_status", "it said no", upstream_status=429, native={"e": 1}, retryable=True)
    body = typed().close(
        ended(
            status="failed",
            finish_reasons=[Finish(0, "tool_calls", "tool_use"), Finish(1, "stop", "end_turn")],
            ttft_ms=1.23456,
            duration_ms=9.87654,
            content_events=3,
            warnings=["terminator_missing"],
            usage=Usage(5, 7, None, cached_input_tokens=0, reasoning_tokens=2, native={"n": 1}),
            failure=failure,
        )
    )
    assert read(body) == [
        (1, "start", START),
        (
            2,
            "error",
            {
                "code": "upstream_status",
                "message": "it said no",
                "retryable": True,
                "upstream_status": 429,
                "native": {"e": 1},
            },
        ),
        (
            3,
            "usage",
            {
                "input_tokens": 5,
                "output_tokens": 7,
                "total_tokens": None,
                "native": {"n": 1},
                "cached_input_tokens": 0,
                "reasoning_tokens": 2,
            },
        ),
        (
            4,
            "done",
            {
                "status": "failed",
                "finish_reasons": [
                    {"index": 0, "reason": "tool_calls", "native": "tool_use"},
                    {"index": 1, "reason": "stop", "native": "end_turn"},
                ],
                "ttft_ms": 1.235,
                "duration_ms": 9.877,
                "content_events": 3,
                "warnings": ["terminator_missing"],
            },
        ),
    ]


def test_close_leaves_out_what_is_not_known() -> None:
    body = started().close(ended(usage=Usage(), failure=Failure("idle_timeout", "silence")))
    assert [data for _, _, data in read(body)] == [
        {"code": "idle_timeout", "message": "silence", "retryable": True},
        {"input_tokens": None, "output_tokens": None, "total_tokens": None, "native": None},
        {"status": "completed", "finish_reasons": [], "ttft_ms": None, "duration_ms": 12.0, "content_events": 0},
    ]


@pytest.mark.parametrize("status", sorted({ending.done_status for ending in ENDINGS.values() if ending.done_status}))
def test_every_ending_can_be_told(status: str) -> None:
    assert read(started().close(ended(status=status)))[-1][2]["status"] == status


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_code_can_be_told(code: str) -> None:
    assert read(started().close(ended(failure=Failure(code, "m"))))[0][2]["code"] == code


@given(text=st.text(), index=st.integers(min_value=0, max_value=1000))
def test_templates_say_what_the_published_fields_say(text: str, index: int) -> None:
    assert data_of(Token(index, text), Reasoning(index, text)) == [
        ("token", {"index": index, "text": text}),
        ("reasoning", {"index": index, "text": text}),
    ]


def test_half_of_a_surrogate_pair_becomes_a_replacement_character() -> None:
    lone = "a\ud83d"
    assert data_of(
        Token(0, lone + " \U0001f600"),
        Refusal(0, lone, [1]),
        ToolCall(0, 0, "{}"),
        Extension("x", {lone: [lone, 1.5, {"b": lone}]}),
    ) == [
        ("token", {"index": 0, "text": "a\ufffd \U0001f600"}),
        ("refusal", {"index": 0, "text": "a\ufffd", "logprobs": [1]}),
        ("tool_call", {"index": 0, "call": 0, "arguments": "{}"}),
        ("extension", {"type": "x", "data": {"a\ufffd": ["a\ufffd", 1.5, {"b": "a\ufffd"}]}}),
    ]


def test_close_survives_half_of_a_surrogate_pair() -> None:
    failure = Failure("upstream_error", "\udc00", native=("\udc00",))
    events = read(started().close(ended(failure=failure, finish_reasons=[Finish(0, "stop", "\udc00")])))
    assert events[0][2]["native"] == ["\ufffd"]
    assert events[1][2]["finish_reasons"] == [{"index": 0, "reason": "stop", "native": "\ufffd"}]


def test_what_is_nested_too_deeply_is_cut_off() -> None:
    nested: Any = "core"
    for _ in range(100_000):
        nested = [nested]
    ((name, data),) = data_of(Extension("x", nested))
    assert name == "extension"
    assert "(nested too deeply)" in json.dumps(data)
    while nested != "core":  # taken apart by hand: letting go of it at once would recurse as deep
        nested = nested[0]


def test_line_ends_never_leave_a_data_line() -> None:
    body = started().encode(FRAME, [Token(0, "a\r\n\n\u2028\u0085b"), Extension("a\nb", "c\rd")])
    assert body.count(b"\n") == 8
    assert b"\r" not in body


def test_heartbeat_is_a_comment_of_its_own() -> None:
    assert typed().heartbeat == b": keep-alive\n\n"
    assert typed().content_type == "text/event-stream; charset=utf-8"
