"""Each quirk of OpenAI-compatible chat streams, by name."""

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
    Media,
    Reasoning,
    Refusal,
    Start,
    Token,
    UpstreamError,
    Usage,
)
from tests.dialect_reading import decode_payloads, error_frame
from tests.dialect_reading import openai_chunk as chunk

START = Start("c1", "m")
COUNTS = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


ROLE = chunk({"role": "assistant", "content": ""})


def events(*payloads: Any) -> list[Event]:
    """The events of ``payloads`` after a role chunk, without its Start."""
    decoded = decode_payloads("openai-chat", [ROLE, *payloads])
    assert decoded[0] == START
    return decoded[1:]


def test_first_chunk_with_an_id_starts_the_stream_and_a_role_says_nothing() -> None:
    assert decode_payloads("openai-chat", [ROLE]) == [START]


def test_an_extension_before_the_id_waits_for_it() -> None:
    first = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": [{"a": 1}]}
    assert decode_payloads("openai-chat", [first, chunk({"content": "Hi"})]) == [
        START,
        Extension("prompt_filter_results", [{"a": 1}]),
        Token(0, "Hi"),
    ]
    assert decode_payloads("openai-chat", [first]) == [Start(), Extension("prompt_filter_results", [{"a": 1}])]


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (chunk({"content": "Hi"}, id=""), Token(0, "Hi")),
        (chunk({}, "stop", id=""), Finish(0, "stop", "stop")),
        (chunk(id="", usage=COUNTS), Usage(9, 3, 12, native=COUNTS)),
    ],
)
def test_what_matters_does_not_wait_for_an_id(payload: Any, event: Event) -> None:
    assert decode_payloads("openai-chat", [payload]) == [Start("", "m"), event]


def test_extensions_without_an_id_are_held_only_so_long() -> None:
    dialect = DIALECTS["openai-chat"]()
    frame = Frame(b'{"type":"hello"}', b"")
    told = [event for _ in range(40) for event in dialect.decode(frame)]
    assert told[0] == Start()
    assert len(told) == 41


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "reasoning_text", "thinking"])
def test_reasoning_under_every_name(key: str) -> None:
    assert events(chunk({key: "hm", "content": None})) == [Reasoning(0, "hm")]
    assert events(chunk({key: "hm", "content": "so"})) == [Reasoning(0, "hm"), Token(0, "so")]
    assert events(chunk({key: "", "content": "so"})) == [Token(0, "so")]
    assert events(chunk({key: None})) == []


def test_reasoning_sent_twice_is_told_once() -> None:
    details = [{"type": "reasoning.text", "text": "hm", "index": 0, "format": None}]
    assert events(chunk({"reasoning": "hm", "reasoning_content": "hm", "reasoning_details": details})) == [
        Reasoning(0, "hm")
    ]
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
    assert events(chunk({"reasoning_content": "hm", "content": parts})) == [Reasoning(0, "hm")]


@pytest.mark.parametrize(
    "detail",
    [{"type": "reasoning.text", "text": "", "signature": "sig"}, {"type": "reasoning.encrypted", "data": "sig"}],
)
def test_reasoning_details_give_the_signature(detail: Any) -> None:
    assert events(chunk({"content": "", "reasoning_details": [detail]})) == [Reasoning(0, "", "sig")]


def test_array_content() -> None:
    parts = [
        {
            "type": "thinking",
            "thinking": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "closed": True,
        },
        {"type": "thinking", "thinking": [], "closed": True},
        {"type": "text", "text": "so"},
        {"type": "reference", "reference_ids": [1]},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {"type": "document_url", "document_url": "https://example.com"},
        "plain",
    ]
    assert events(chunk({"content": parts})) == [
        Reasoning(0, "ab"),
        Token(0, "so"),
        Annotation(0, parts[3]),
        Media(0, "image", "image/png", "AAAA"),
        Media(0, "image", "image/*", "https://example.com/a.png"),
        Extension("document_url", parts[6]),
        Token(0, "plain"),
    ]


def test_refusal_and_its_logprobs() -> None:
    logprobs = {"content": None, "refusal": [{"token": "No"}]}
    refused = chunk({"content": None, "refusal": "No"})
    refused["choices"][0]["logprobs"] = logprobs
    assert events(chunk({"refusal": ""}), chunk({"refusal": None}), refused) == [Refusal(0, "No", logprobs)]


@pytest.mark.parametrize(
    ("logprobs", "kept"),
    [
        (None, None),
        (-0.5, None),
        ({"content": []}, None),
        ({"content": [{"token": "a"}]}, {"content": [{"token": "a"}]}),
    ],
)
def test_logprobs_are_kept_where_there_are_any(logprobs: Any, kept: Any) -> None:
    payload = chunk({"content": "a"})
    payload["choices"][0]["logprobs"] = logprobs
    assert events(payload) == [Token(0, "a", kept)]


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("stop_sequence", "stop"),
        ("length", "length"),
        ("model_length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("error", "error"),
        ("abort", "error"),
        ("insufficient_system_resource", "error"),
        ("never heard of", "stop"),
    ],
)
def test_finish_words(native: str, reason: Any) -> None:
    assert events(chunk({}, native)) == [Finish(0, reason, native)]


def test_a_finish_is_told_once_per_word() -> None:
    assert events(chunk({}, "stop"), chunk({"content": ""}, "stop"), chunk({}), chunk({}, ""), chunk({}, "error")) == [
        Finish(0, "stop", "stop"),
        Finish(0, "error", "error"),
    ]


@pytest.mark.parametrize("absent", ["", None, 0])
def test_empty_finish_is_none(absent: Any) -> None:
    dialect = DIALECTS["openai-chat"]()
    for payload in (ROLE, chunk({"content": "a"}, absent)):
        dialect.decode(Frame(msgspec.json.encode(payload), b""))
    assert not dialect.is_finished


def test_finished_only_with_every_choice_that_began() -> None:
    dialect = DIALECTS["openai-chat"]()
    seen = []
    for payload in (ROLE, chunk({"role": "assistant"}, index=1), chunk({}, "stop"), chunk({}, "length", index=1)):
        dialect.decode(Frame(msgspec.json.encode(payload), b""))
        seen.append(dialect.is_finished)
    assert seen == [False, False, False, True]
    assert not dialect.terminated


def test_done_is_the_end_and_nothing_after_it_counts() -> None:
    dialect = DIALECTS["openai-chat"]()
    dialect.decode(Frame(msgspec.json.encode(ROLE), b""))
    assert dialect.decode(Frame(b"[DONE] ", b"")) == ()
    assert dialect.terminated
    assert dialect.decode(Frame(msgspec.json.encode(chunk({"content": "late"})), b"")) == ()


@pytest.mark.parametrize(
    ("native", "usage"),
    [
        (COUNTS, (9, 3, 12, None, None)),
        ({"prompt_tokens": 9, "completion_tokens": 3}, (9, 3, 12, None, None)),
        ({"prompt_tokens": 9.0, "completion_tokens": 3.0, "total_tokens": 12.0}, (9, 3, 12, None, None)),
        ({"prompt_tokens": 9}, (9, None, None, None, None)),
        ({"prompt_tokens": "9", "completion_tokens": 1e300, "total_tokens": True}, (9, None, None, None, None)),
        ({**COUNTS, "prompt_tokens_details": {"cached_tokens": 4}}, (9, 3, 12, 4, None)),
        ({**COUNTS, "prompt_tokens_details": None, "prompt_cache_hit_tokens": 4}, (9, 3, 12, 4, None)),
        ({**COUNTS, "completion_tokens_details": {"reasoning_tokens": 2}}, (9, 3, 12, None, 2)),
        ({**COUNTS, "reasoning_tokens": 2}, (9, 3, 12, None, 2)),
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 1,
                "total_tokens": 303,
                "completion_tokens_details": {"reasoning_tokens": 290},
            },
            (12, 291, 303, None, 290),
        ),
    ],
)
def test_usage(native: Any, usage: tuple[int | None, int | None, int | None, int | None, int | None]) -> None:
    assert events(chunk(usage=native)) == [Usage(*usage, native)]


@pytest.mark.parametrize("nothing", [None, {}, "none"])
def test_no_usage(nothing: Any) -> None:
    assert events(chunk({"content": "a"}, usage=nothing)) == [Token(0, "a")]


def test_usage_in_all_its_places() -> None:
    in_choice = chunk({}, "stop")
    in_choice["choices"][0]["usage"] = COUNTS
    assert events(in_choice)[1:] == [Usage(9, 3, 12, native=COUNTS)]
    assert events(chunk({}, "stop", x_groq={"id": "r", "usage": COUNTS}))[1:] == [Usage(9, 3, 12, native=COUNTS)]
    assert events(chunk({}, usage=COUNTS, x_groq={"usage": {"prompt_tokens": 1}})) == [Usage(9, 3, 12, native=COUNTS)]
    assert events({"usage": COUNTS}) == [Usage(9, 3, 12, native=COUNTS)]


SERVER_ERROR = {"message": "boom", "type": "server_error", "param": None, "code": None}


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"error": SERVER_ERROR}, UpstreamError("boom", SERVER_ERROR, "server_error", None, retryable=True)),
        ({"error": "boom"}, UpstreamError("boom", "boom")),
        (
            {"error": {"message": "boom", "type": "InternalServerError", "code": 500}},
            UpstreamError(
                "boom",
                {"message": "boom", "type": "InternalServerError", "code": 500},
                "InternalServerError",
                500,
                retryable=True,
            ),
        ),
        (
            {"error": {"message": "boom", "http_status_code": 422}},
            UpstreamError("boom", {"message": "boom", "http_status_code": 422}, "", 422),
        ),
        (
            {"error": {"message": "slow down", "code": "429"}},
            UpstreamError("slow down", {"message": "slow down", "code": "429"}, "429", 429, retryable=True),
        ),
        (
            {"object": "error", "message": "boom", "type": "BadRequestError", "code": 400},
            UpstreamError(
                "boom",
                {"object": "error", "message": "boom", "type": "BadRequestError", "code": 400},
                "BadRequestError",
                400,
            ),
        ),
        (chunk(x_groq={"error": "over capacity"}), UpstreamError("over capacity", "over capacity")),
        ({"error": {"code": "quota"}}, UpstreamError("quota", {"code": "quota"}, "quota")),
    ],
)
def test_errors_in_all_their_shapes(payload: Any, error: UpstreamError) -> None:
    assert events(payload) == [error]


def test_an_error_inside_a_chunk_comes_after_its_content() -> None:
    error = {"code": 400, "message": "Token limit reached"}
    expected = UpstreamError("Token limit reached", error, "400", 400)
    assert events(chunk({"content": "a"}, "error", error=error)) == [
        Token(0, "a"),
        Finish(0, "error", "error"),
        expected,
    ]
    in_choice = chunk({"content": "a"})
    in_choice["choices"][0]["error"] = error
    assert events(in_choice) == [Token(0, "a"), expected]


@pytest.mark.parametrize("empty", [None, "", {}, False])
def test_an_empty_error_is_none(empty: Any) -> None:
    assert events(chunk({"content": "a"}, error=empty)) == [Token(0, "a")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"error":{"message":"boom"}}', "boom"),
        (b'{"message":"boom"}', "boom"),
        (b"boom", "boom"),
        (b'"boom"', "boom"),
    ],
)
def test_an_event_named_error_is_one(data: bytes, message: str) -> None:
    decoded = DIALECTS["openai-chat"]().decode(Frame(data, data, b"error"))
    assert [type(event) for event in decoded] == [Start, UpstreamError]
    assert isinstance(decoded[1], UpstreamError)
    assert decoded[1].message == message


PROGRESS = {"total": 10, "cache": 0, "processed": 5, "time_ms": 3}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (chunk(moderation={"input": {}}), [Extension("moderation", {"input": {}})]),
        (chunk(sglext={"ids": [1]}), [Extension("sglext", {"ids": [1]})]),
        (chunk({"content": None}, prompt_progress=PROGRESS), [Extension("prompt_progress", PROGRESS)]),
        (chunk({"content": "a"}, moderation={"x": 1}), [Extension("moderation", {"x": 1}), Token(0, "a")]),
        (chunk(novelty=[1]), [Extension("novelty", chunk(novelty=[1]))]),
        (chunk(usage=None, obfuscation="x"), []),
        (chunk(usage=COUNTS, timings={"a": 1}), [Usage(9, 3, 12, native=COUNTS)]),
        ({"type": "hello", "x": 1}, [Extension("hello", {"type": "hello", "x": 1})]),
        ({"object": "thing"}, [Extension("thing", {"object": "thing"})]),
        ({}, [Extension("unknown", {})]),
        ([1, 2], [Extension("unknown", [1, 2])]),
        (b"<html>", [Extension("unparsed", "<html>")]),
        (b'{"cut": ', [Extension("unparsed", '{"cut": ')]),
        (b"", []),
    ],
)
def test_what_is_no_token_still_passes(payload: Any, expected: list[Event]) -> None:
    assert events(payload) == expected


def test_async_content_filter_chunk() -> None:
    choice = {"index": 0, "finish_reason": None, "content_filter_results": {}, "content_filter_offsets": {"a": 1}}
    assert events({**chunk(id=""), "choices": [choice]}) == [Extension("content_filter", choice)]


def test_a_choice_without_delta() -> None:
    whole = {"index": 0, "message": {"content": "all of it"}, "finish_reason": "stop"}
    assert events({"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}) == [Finish(0, "stop", "stop")]
    assert events({"choices": [{"index": 0}]}) == []
    assert events({"choices": [whole]}) == [Extension("choice", whole), Finish(0, "stop", "stop")]


def test_named_event_without_choices_keeps_its_name() -> None:
    dialect = DIALECTS["openai-chat"]()
    payload = chunk(usage=None, sglext={"output_ids": [[1]]})
    decoded = dialect.decode(Frame(msgspec.json.encode(payload), b"", b"sglext_ids"))
    assert decoded == [START, Extension("sglext_ids", payload)]


def test_perplexity_concise_objects_and_sources() -> None:
    steps = chunk({"role": "assistant", "content": "", "reasoning_steps": [{}]}, object="chat.reasoning")
    done = chunk(object="chat.reasoning.done", search_results=[{"url": "u"}], usage=COUNTS)
    assert events(
        steps,
        done,
        chunk({"content": "Hi"}, citations=["u"], search_results=[{"url": "u"}]),
        chunk({"content": "!"}, citations=["u"]),
        chunk({"content": ""}, "stop", object="chat.completion.done", citations=["u", "v"]),
    ) == [
        Extension("chat.reasoning", steps),
        Extension("chat.reasoning.done", done),
        Annotation(0, {"search_results": [{"url": "u"}]}),
        Usage(9, 3, 12, native=COUNTS),
        Token(0, "Hi"),
        Annotation(0, {"citations": ["u"]}),
        Token(0, "!"),
        Finish(0, "stop", "stop"),
        Annotation(0, {"citations": ["u", "v"]}),
    ]


def test_annotations_audio_and_images() -> None:
    citation = {"type": "url_citation", "url_citation": {"url": "u"}}
    assert events(
        chunk({"content": "", "annotations": [citation]}),
        chunk({"audio": {"id": "a", "transcript": "Hel"}}),
        chunk({"audio": {"data": "AAAA"}}),
        chunk({"audio": {"expires_at": 1}}),
        chunk({"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}]}),
    ) == [
        Annotation(0, citation),
        Media(0, "transcript", "text/plain", "Hel"),
        Media(0, "audio", "audio/pcm", "AAAA"),
        Media(0, "image", "image/png", "BBBB"),
    ]


def test_missing_index_is_the_first_choice() -> None:
    assert events({"choices": [{"delta": {"content": "a"}}]}, chunk({"content": "b"}, index=None)) == [
        Token(0, "a"),
        Token(0, "b"),
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"choices":[{"delta":{"content":"a\xffb"}}]}', "a\ufffdb"),
        (b'{"choices":[{"delta":{"content":"a\\ud83db"}}]}', "a\ufffdb"),
        (b'{"choices":[{"delta":{"content":"\\ud83d\\ude00"}}]}', "\U0001f600"),
        (b'{"score":NaN,"choices":[{"delta":{"content":"a"}}]}', "a"),
        (b'{"score":1e999,"choices":[{"delta":{"content":"a"}}]}', "a"),
        (b'  {"choices" : [ {"delta" : {"content":"a"} } ] }   ', "a"),
    ],
)
def test_broken_text_does_not_break_the_stream(data: bytes, text: str) -> None:
    assert events(data, chunk({"content": "on"})) == [Token(0, text), Token(0, "on")]


@pytest.mark.parametrize("depth", [200, 5000, 100_000])
def test_deep_nesting_is_unparsed(depth: int) -> None:
    data = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    assert events(data) == [Extension("unparsed", data.decode())]


def test_error_frame_is_what_the_package_raises_on() -> None:
    frame = error_frame("openai-chat", Failure("idle_timeout", "no byte\nfor 60 s"))
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 2
    assert msgspec.json.decode(frame.removeprefix(b"data: ")) == {
        "error": {"message": "no byte\nfor 60 s", "type": "server_error", "param": None, "code": "idle_timeout"}
    }
