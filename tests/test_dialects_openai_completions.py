"""OpenAI text completion streams, chunk by chunk, in every way compatible servers send them."""

from __future__ import annotations

from typing import Any

import msgspec
import openai
import pytest

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, Frame, Reasoning, Start, Token, UpstreamError, Usage
from tests.dialect_reading import decode_payloads, error_frame, only_start_first
from tests.official_openai import client_of, read_completions

COUNTS = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
START = Start("c1", "m")


def chunk(text: Any = None, finish: Any = None, *, index: Any = 0, **extra: Any) -> dict[str, Any]:
    """A chunk of one choice, or of none."""
    choice = {"index": index, "text": text, "finish_reason": finish, "logprobs": None}
    choices = [] if text is None else [choice]
    return {"id": "c1", "object": "text_completion", "created": 1, "model": "m", "choices": choices, **extra}


def events(*payloads: Any) -> list[Event]:
    """The events of ``payloads``, without the Start before them."""
    decoded = decode_payloads("openai-completions", payloads)
    assert decoded[0] == START
    return decoded[1:]


def test_text_with_the_finish_reason_beside_it_or_after_it() -> None:
    assert events(chunk("a"), chunk("b", "length")) == [Token(0, "a"), Token(0, "b"), Finish(0, "length", "length")]
    assert events(chunk("a"), chunk("", "stop")) == [Token(0, "a"), Finish(0, "stop", "stop")]


def test_usage_of_a_chunk_without_choices_or_on_the_last_one() -> None:
    told = Usage(9, 3, 12, native=COUNTS)
    assert events(chunk("a", usage=None), chunk(usage=COUNTS)) == [Token(0, "a"), told]
    assert events(chunk("", "stop", usage=COUNTS, timings={"n": 1})) == [Finish(0, "stop", "stop"), told]


def test_choices_are_finished_one_by_one() -> None:
    dialect = DIALECTS["openai-completions"]()
    seen = []
    for payload in (chunk("a"), chunk("b", index=1), chunk("", "stop"), chunk("", "length", index=1), b"[DONE]"):
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        dialect.decode(Frame(data, data))
        seen.append((dialect.is_finished, dialect.terminated))
    assert seen == [(False, False), (False, False), (False, False), (True, False), (True, True)]
    late = msgspec.json.encode(chunk("late"))
    assert dialect.decode(Frame(late, late)) == ()


def test_an_empty_finish_reason_is_none_and_a_repeated_one_is_told_once() -> None:
    assert events(chunk("a", ""), chunk("b", "eos_token"), chunk("", "eos_token")) == [
        Token(0, "a"),
        Token(0, "b"),
        Finish(0, "stop", "eos_token"),
    ]


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("stop", "stop"),
        ("stop_sequence", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("abort", "error"),
        ("never heard of", "stop"),
    ],
)
def test_finish_reasons(native: str, reason: Any) -> None:
    assert events(chunk("", native)) == [Finish(0, reason, native)]


def test_logprobs_belong_to_their_text() -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [None], "text_offset": [0]}
    payload = chunk("a")
    payload["choices"][0]["logprobs"] = logprobs
    assert events(chunk("x"), payload) == [Token(0, "x"), Token(0, "a", logprobs)]


def test_reasoning_beside_the_text() -> None:
    payload = chunk("a")
    payload["choices"][0]["reasoning"] = "hm"
    assert events(chunk("x"), payload) == [Token(0, "x"), Reasoning(0, "hm"), Token(0, "a")]


def test_start_waits_for_an_id_but_no_text_waits_for_it() -> None:
    filtered = {"id": "", "model": "", "object": "", "choices": [], "prompt_filter_results": [1]}
    assert events(filtered, chunk("a")) == [Extension("prompt_filter_results", [1]), Token(0, "a")]
    assert decode_payloads("openai-completions", [chunk("a", id="", model="m")]) == [Start("", "m"), Token(0, "a")]


def test_what_has_no_name_here_passes_as_an_extension() -> None:
    filtering = {"index": 0, "content_filter_results": {"a": 1}, "content_filter_offsets": {"b": 2}}
    named = Frame(msgspec.json.encode(chunk(a=1)), b"", b"ids")
    dialect = DIALECTS["openai-completions"]()
    dialect.decode(Frame(msgspec.json.encode(chunk("a")), b""))
    assert list(dialect.decode(named)) == [Extension("ids", chunk(a=1))]
    assert events(
        {**chunk(), "choices": [filtering]}, chunk(metrics={"a": 1}), {"hello": 1}, [1], b"<html>", chunk()
    ) == [
        Extension("content_filter", filtering),
        Extension("metrics", chunk(metrics={"a": 1})),
        Extension("unknown", {"hello": 1}),
        Extension("unknown", [1]),
        Extension("unparsed", "<html>"),
    ]


@pytest.mark.parametrize(
    "payload",
    [
        {"error": {"message": "no", "type": "server_error", "param": None, "code": 500}},
        {"object": "error", "message": "no", "type": "server_error", "param": None, "code": 500},
        chunk("", error={"message": "no", "code": 500}),
        {**chunk(), "choices": [{"index": 0, "error": {"message": "no", "code": 500}}]},
    ],
)
def test_errors_in_every_place(payload: dict[str, Any]) -> None:
    assert [
        (event.message, event.retryable) for event in events(chunk("a"), payload) if type(event) is UpstreamError
    ] == [("no", True)]


def test_an_error_event_need_not_be_json() -> None:
    dialect = DIALECTS["openai-completions"]()
    assert list(dialect.decode(Frame(b"engine gone", b"", b"error"))) == [
        Start(),
        UpstreamError("engine gone", "engine gone"),
    ]
    told = list(dialect.decode(Frame(b'{"message":"no","code":"x"}', b"", b"error")))
    assert told == [UpstreamError("no", {"message": "no", "code": "x"}, "x")]


def test_error_frame_is_what_the_package_raises_on() -> None:
    body = error_frame("openai-completions", Failure("idle_timeout", "a\nb"))
    assert read_completions(body).error == "a\nb"
    with client_of(body) as client, pytest.raises(openai.APIError) as raised:
        list(client.completions.create(model="m", prompt="p", stream=True))
    assert raised.value.code == "idle_timeout"


@pytest.mark.parametrize(
    "bad",
    [
        {"choices": None},
        {"choices": [None, 1, "a"]},
        {"choices": [{"text": 1, "index": "x", "finish_reason": []}]},
        {"choices": [{"text": "a", "index": 10**30}]},
        {"usage": [], "choices": {}},
    ],
)
def test_loose_types_never_raise(bad: dict[str, Any]) -> None:
    assert only_start_first(decode_payloads("openai-completions", [chunk("a"), bad]))
