"""OpenAI Responses streams: how a response begins, ends, fails and is resumed."""

from __future__ import annotations

from typing import Any

import msgspec
import openai
import pytest

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, Frame, Media, Start, Token, ToolCall, UpstreamError, Usage
from tests.dialect_reading import decode_payloads, error_frame, only_start_first
from tests.official_openai import client_of, read_responses, read_resumed_response
from tests.responses_payloads import CREATED, START, added, call, completed, delta, done, events, message, part

USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 16,
}


def terminal(status: str, kind: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind or status}", "response": {"id": "resp_1", "status": status, **fields}}


def numbered(first: int, *payloads: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**payload, "sequence_number": first + at} for at, payload in enumerate(payloads)]


def test_start_is_the_responses_name_and_its_progress_says_nothing_more() -> None:
    progress = {"type": "response.in_progress", "response": {"id": "resp_1"}}
    assert decode_payloads("openai-responses", [CREATED, progress]) == [START]
    queued = {"type": "response.queued", "response": {"id": "resp_1"}}
    assert decode_payloads("openai-responses", [queued, progress]) == [
        Start("resp_1", ""),
        Extension("response.queued", queued),
    ]


def test_a_second_response_in_the_stream_passes_as_an_extension() -> None:
    spliced = {"type": "response.created", "response": {"id": "resp_2"}}
    assert events(CREATED, spliced) == [Extension("response.created", spliced)]


def test_keepalives_say_nothing() -> None:
    assert events({"type": "keepalive", "sequence_number": 1}, {"type": "ping"}) == []
    assert decode_payloads("openai-responses", [{"type": "keepalive"}]) == []


def test_usage_and_finish_come_with_the_end() -> None:
    assert events(terminal("completed", usage=USAGE)) == [
        Usage(9, 7, 16, 4, 3, native=USAGE),
        Finish(0, "stop", "completed"),
    ]


@pytest.mark.parametrize(
    ("payload", "reason", "native"),
    [
        (terminal("completed"), "stop", "completed"),
        (terminal("", "completed"), "stop", "completed"),
        (terminal("", "done"), "stop", "completed"),
        (terminal("in_progress", "completed"), "stop", "completed"),
        (terminal("incomplete"), "length", "incomplete"),
        (terminal("incomplete", "completed"), "length", "incomplete"),
        (terminal("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length", "max_output_tokens"),
        (terminal("incomplete", incomplete_details={"reason": "max_messages"}), "length", "max_messages"),
        (terminal("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter", "content_filter"),
        (terminal("incomplete", incomplete_details={"reason": "steered"}), "paused", "steered"),
        (terminal("completed", output=[call("call_a", "f", "{}")]), "tool_calls", "completed"),
        (terminal("failed"), "error", "failed"),
        (terminal("cancelled"), "error", "cancelled"),
        (terminal("cancelled", "incomplete"), "error", "cancelled"),
    ],
)
def test_finish_reasons(payload: dict[str, Any], reason: Any, native: str) -> None:
    assert [event for event in events(payload) if isinstance(event, Finish)] == [Finish(0, reason, native)]


def test_a_call_finishes_with_tool_calls_although_the_snapshot_is_empty() -> None:
    assert events(added(0, call("call_a", "f")), terminal("completed", output=[]))[-1] == Finish(
        0, "tool_calls", "completed"
    )


def test_only_the_last_event_ends_a_response() -> None:
    dialect = DIALECTS["openai-responses"]()
    seen = []
    for payload in (CREATED, delta("a"), b"[DONE]", terminal("completed"), delta("late"), b"[DONE]"):
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        seen.append((len(dialect.decode(Frame(data, data))), dialect.is_finished, dialect.terminated))
    assert [emitted for emitted, _, _ in seen] == [1, 1, 0, 1, 0, 0]
    assert [ended for _, *ended in seen] == [[False, False]] * 3 + [[True, True]] * 3


ERROR = {"type": "invalid_request_error", "code": "x", "message": "no", "param": None}


@pytest.mark.parametrize(
    ("payloads", "error"),
    [
        ([{"type": "error", "error": ERROR}], UpstreamError("no", ERROR, "x")),
        ([{"type": "error", "error": ERROR}, terminal("failed", error=ERROR)], UpstreamError("no", ERROR, "x")),
        ([{**ERROR, "type": "error"}], UpstreamError("no", {**ERROR, "type": "error"}, "x")),
        ([{"error": ERROR}], UpstreamError("no", ERROR, "x")),
        ([terminal("failed", error=ERROR)], UpstreamError("no", ERROR, "x")),
        ([terminal("completed", error=ERROR)], UpstreamError("no", ERROR, "x")),
        ([terminal("failed")], UpstreamError("the response failed", {"status": "failed"}, "failed")),
        ([terminal("cancelled")], UpstreamError("the response was cancelled", {"status": "cancelled"}, "cancelled")),
        (
            [{"type": "error", "code": "server_error", "message": "no", "param": None, "sequence_number": 3}] * 2,
            UpstreamError(
                "no",
                {"type": "error", "code": "server_error", "message": "no", "param": None, "sequence_number": 3},
                "server_error",
                None,
                retryable=True,
            ),
        ),
    ],
)
def test_one_error_whatever_its_shape(payloads: list[Any], error: UpstreamError) -> None:
    told = events(delta("a"), *payloads)
    assert told[0] == Token(0, "a")
    assert [event for event in told if isinstance(event, UpstreamError)] == [error]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"engine gone", UpstreamError("engine gone", "engine gone")),
        (b'{"type":"server_error","message":"no"}', None),
        (b'{"error":"no"}', UpstreamError("no", "no")),
        (b"[1]", UpstreamError("[1]", [1])),
    ],
)
def test_an_event_named_error_is_one(data: bytes, error: UpstreamError | None) -> None:
    expected = error or UpstreamError("no", {"type": "server_error", "message": "no"}, "server_error", retryable=True)
    assert list(DIALECTS["openai-responses"]().decode(Frame(data, b"", b"error"))) == [Start(), expected]


def test_error_frame_is_what_the_package_raises_on() -> None:
    body = error_frame("openai-responses", Failure("idle_timeout", "a\nb"))
    assert body.startswith(b'event: error\ndata: {"type":"error","code":"idle_timeout","message":"a\\nb"')
    assert read_responses(body).error == "a\nb"
    with client_of(body) as client, pytest.raises(openai.APIError) as raised:
        list(client.responses.create(model="m", input="i", stream=True))
    assert raised.value.code == "idle_timeout"


def test_what_has_no_name_here_passes_as_an_extension() -> None:
    strange, hosted = {"type": "response.strange", "a": 1}, {"type": "response.mcp_call.failed", "output_index": 1}
    assert events(strange, hosted, {"a": 1}, [1], b"<html>") == [
        Extension("response.strange", strange),
        Extension("response.mcp_call.failed", hosted),
        Extension("unknown", {"a": 1}),
        Extension("unknown", [1]),
        Extension("unparsed", "<html>"),
    ]
    assert events(terminal("completed", moderation={"input": 1}))[0] == Extension("moderation", {"input": 1})


def test_audio_is_media() -> None:
    assert events(
        {"type": "response.audio.delta", "delta": "QUI="},
        {"type": "response.audio.transcript.delta", "delta": "Hi"},
        {"type": "response.audio.done"},
        {"type": "response.audio.transcript.done"},
    ) == [Media(0, "audio", "audio/pcm", "QUI="), Media(0, "transcript", "text/plain", "Hi")]


def test_the_event_name_stands_in_for_a_missing_type() -> None:
    dialect = DIALECTS["openai-responses"]()
    named = Frame(b'{"delta":"Hi","item_id":"msg_1","output_index":0}', b"", b"response.output_text.delta")
    assert list(dialect.decode(named)) == [Start(), Token(0, "Hi")]


def test_a_stream_resumed_in_the_middle_repeats_nothing_that_was_told_before() -> None:
    """``starting_after``: what the whole of an item repeats from before the cut has been told by the stream before."""
    before, after = message("msg_1", "One two"), message("msg_2", "Three")
    payloads = numbered(
        8,
        delta(" two"),
        done("One two"),
        part("done", "One two"),
        done("never", 0, 1),
        {"type": "response.output_item.done", "output_index": 0, "item": before},
        added(1, message("msg_2")),
        done("Three", 1, item_id="msg_2"),
        completed([before, after]),
    )
    assert decode_payloads("openai-responses", payloads) == [
        Start(),
        Token(0, " two"),
        Token(0, "Three"),
        Finish(0, "stop", "completed"),
    ]


def test_a_call_resumed_in_the_middle_is_named_by_its_end() -> None:
    arguments = {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 0, "delta": "1}"}
    whole = call("call_a", "f", '{"x":1}')
    other = call("call_b", "g", "{}")
    finished = {"type": "response.output_item.done", "output_index": 0, "item": whole}
    before = {"type": "response.output_item.done", "output_index": 1, "item": other}
    payloads = numbered(5, arguments, finished, before, completed([whole, other]))
    assert decode_payloads("openai-responses", payloads) == [
        Start(),
        ToolCall(0, 0, "1}"),
        ToolCall(0, 0, "", "call_a", "f"),
        Finish(0, "tool_calls", "completed"),
    ]


def test_a_stream_resumed_from_its_first_events_is_whole() -> None:
    progress = {"type": "response.in_progress", "response": {"id": "resp_1", "model": "m"}}
    payloads = numbered(2, progress, done("Hi"), completed([message("msg_1", "Hi")]))
    assert decode_payloads("openai-responses", payloads)[:2] == [START, Token(0, "Hi")]


def test_a_stream_resumed_at_its_end_has_only_that() -> None:
    payloads = numbered(9, completed([message("msg_1", "Hi")], usage=USAGE))
    assert decode_payloads("openai-responses", payloads) == [
        Start("resp_1", ""),
        Usage(9, 7, 16, 4, 3, native=USAGE),
        Finish(0, "stop", "completed"),
    ]


def test_the_package_reads_a_resumed_stream_alike() -> None:
    payloads = numbered(8, delta(" two"), done("One two"), completed([message("msg_1", "One two")], usage=USAGE))
    body = b"".join(b"data: " + msgspec.json.encode(payload) + b"\n\n" for payload in payloads)
    assert read_resumed_response(body).text == {0: " two"}


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "response.completed"},
        {"type": "response.completed", "response": {"status": 1, "usage": [], "output": {"a": 1}, "error": []}},
        {"type": "response.completed", "response": {"output": [1, None, {"type": 7, "content": [3, {}]}]}},
        {"type": "response.output_item.added", "item": 4, "output_index": "x"},
        {"type": "response.output_item.done", "item": {"type": "message", "content": "a", "summary": 3}},
        {"type": "response.output_text.delta", "delta": {"text": "a"}, "content_index": 10**30},
        {"type": "response.output_text.delta", "delta": "a", "output_index": 10**30, "item_id": []},
        {"type": "response.function_call_arguments.done", "arguments": {"x": 1}},
        {"type": "response.content_part.added", "part": None},
    ],
)
def test_loose_types_never_raise(bad: dict[str, Any]) -> None:
    decoded: list[Event] = decode_payloads("openai-responses", [CREATED, delta("a"), bad, bad])
    assert only_start_first(decoded)


def test_a_snapshot_of_more_items_than_are_counted_still_ends_its_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.dialects.numbered.MAX_NUMBERED", 3)
    end = completed([message("msg_1", "a"), message("msg_2", "b")])
    assert events(end) == [
        Token(0, "a"),
        Extension("response.completed", end),
        Finish(0, "stop", "completed"),
    ]
