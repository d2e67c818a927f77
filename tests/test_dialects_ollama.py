"""Ollama's own streams, object by object."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import (
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
from tests.dialect_reading import decode_payloads, error_frame

START = Start("", "m")
END = {"done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 6, "eval_duration": 3}
USAGE = Usage(9, 6, 15, native={"prompt_eval_count": 9, "eval_count": 6, "eval_duration": 3})


def chat(*, done: bool = False, **message: Any) -> dict[str, Any]:
    return {"model": "m", "created_at": "t", "message": {"role": "assistant", "content": "", **message}, "done": done}


def piece(text: str = "", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "created_at": "t", "response": text, "done": False, **fields}


def read_chat(*payloads: Any) -> list[Event]:
    """The events of a chat after an empty object, without its Start."""
    decoded = decode_payloads("ollama-chat", [chat(), *payloads])
    assert decoded[0] == START
    return decoded[1:]


def read_generate(*payloads: Any) -> list[Event]:
    """The events of a generation after an empty object, without its Start."""
    decoded = decode_payloads("ollama-generate", [piece(), *payloads])
    assert decoded[0] == START
    return decoded[1:]


def test_chat_text_thinking_and_end() -> None:
    assert read_chat(
        chat(thinking="hm"), chat(content="Hi"), chat(thinking="a", content="b"), {**chat(content="!"), **END}
    ) == [
        Reasoning(0, "hm"),
        Token(0, "Hi"),
        Reasoning(0, "a"),
        Token(0, "b"),
        Token(0, "!"),
        Finish(0, "stop", "stop"),
        USAGE,
    ]


def test_generate_text_thinking_and_end() -> None:
    end = {**piece("!"), **END, "done_reason": "length", "context": [1, 2]}
    assert read_generate(piece(thinking="hm"), piece("Hi"), end) == [
        Reasoning(0, "hm"),
        Token(0, "Hi"),
        Token(0, "!"),
        Finish(0, "length", "length"),
        USAGE,
    ]


def test_first_object_gives_start_and_its_text() -> None:
    assert decode_payloads("ollama-chat", [chat(content="Hi")]) == [START, Token(0, "Hi")]


def test_calls_come_whole_and_turn_a_stop_into_tool_calls() -> None:
    weather = {"id": "c", "function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}}
    time = {"function": {"index": 0, "name": "time", "arguments": {}}}
    assert read_chat(chat(tool_calls=[weather, time]), chat(tool_calls=[time]), {**chat(), **END}) == [
        ToolCall(0, 0, '{"city":"Oslo"}', "c", "weather"),
        ToolCall(0, 1, "{}", None, "time"),
        ToolCall(0, 2, "{}", None, "time"),
        Finish(0, "tool_calls", "stop"),
        USAGE,
    ]
    assert read_chat(chat(tool_calls=[time]), {**chat(), **END, "done_reason": "length"})[1] == Finish(
        0, "length", "length"
    )


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"eval_count": 6}, [Usage(None, 6, None, native={"eval_count": 6})]),
        ({"prompt_eval_count": 9.0}, [Usage(9, None, None, native={"prompt_eval_count": 9.0})]),
        ({"load_duration": 1}, []),
        ({}, []),
    ],
)
def test_zero_counts_are_not_sent(counts: dict[str, Any], usage: list[Event]) -> None:
    assert read_chat({**chat(done=True), **counts}) == [Finish(0, "stop", "stop"), *usage]


def test_a_model_load_is_one_finished_object() -> None:
    loaded = {"model": "m", "response": "", "done": True, "done_reason": "load"}
    assert decode_payloads("ollama-generate", [loaded]) == [START, Finish(0, "stop", "load")]


def test_logprobs_images_and_progress() -> None:
    logprobs = [{"token": "a", "logprob": -0.1}]
    assert read_chat({**chat(content="a"), "logprobs": logprobs}, chat(images=["AAAA"])) == [
        Token(0, "a", logprobs),
        Media(0, "image", "image/*", "AAAA"),
    ]
    step = piece(completed=1, total=4)
    assert read_generate(step, piece(image="AAAA")) == [
        Extension("progress", step),
        Media(0, "image", "image/*", "AAAA"),
    ]


@pytest.mark.parametrize("name", ["ollama-chat", "ollama-generate"])
def test_error_line_ends_nothing_as_finished(name: str) -> None:
    dialect = DIALECTS[name]()
    assert list(dialect.decode(Frame(b'{"error":"model died"}', b""))) == [
        Start(),
        UpstreamError("model died", "model died"),
    ]
    assert not dialect.is_finished
    assert not dialect.terminated


@pytest.mark.parametrize("read", [read_chat, read_generate])
def test_what_is_not_known_passes(read: Any) -> None:
    assert read({"status": "pulling"}, [1], b'{"cut":', {"type": "x"}) == [
        Extension("unknown", {"status": "pulling"}),
        Extension("unknown", [1]),
        Extension("unparsed", '{"cut":'),
        Extension("x", {"type": "x"}),
    ]


@pytest.mark.parametrize(("name", "last"), [("ollama-chat", chat(done=True)), ("ollama-generate", piece(done=True))])
def test_done_is_the_end(name: str, last: Any) -> None:
    dialect = DIALECTS[name]()
    seen = []
    for payload in ({**last, "done": False}, last):
        dialect.decode(Frame(msgspec.json.encode(payload), b""))
        seen.append((dialect.is_finished, dialect.terminated))
    assert seen == [(False, False), (True, True)]
    assert dialect.decode(Frame(msgspec.json.encode(last), b"")) == ()


def test_broken_utf8_lives_on() -> None:
    data = b'{"model":"m","message":{"content":"a\xff"},"done":false}'
    assert read_chat(data, chat(content="b")) == [Token(0, "a\ufffd"), Token(0, "b")]


def test_error_frame_is_what_the_package_raises_on() -> None:
    frame = error_frame("ollama-chat", Failure("upstream_reset", "gone\naway"))
    assert frame == b'{"error":"gone\\naway"}\n'
