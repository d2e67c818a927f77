"""TGI's own stream: tokens, the end that repeats the text, and errors under status 200."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, Frame, Start, Token, UpstreamError, Usage
from tests.dialect_reading import decode_payloads, error_frame, read


def piece(text: str, *, special: bool = False, full: Any = None, details: Any = None, **extra: Any) -> dict[str, Any]:
    token = {"id": 1, "text": text, "logprob": -0.5, "special": special}
    return {"index": 1, "token": token, "generated_text": full, "details": details, **extra}


def decode(*payloads: Any) -> list[Event]:
    start, *events = decode_payloads("tgi", payloads)
    assert start == Start()
    return events


def test_a_token_has_its_own_object_as_logprobs() -> None:
    token = {"id": 1, "text": "a", "logprob": -0.5, "special": False}
    others = [{"id": 2, "text": "b", "logprob": -1.5, "special": False}]
    assert decode(piece("a")) == [Token(0, "a", token)]
    assert decode(piece("a", top_tokens=others)) == [Token(0, "a", {**token, "top_tokens": others})]
    assert decode({"token": {"text": "a", "logprob": None}, "generated_text": None}) == [Token(0, "a")]


def test_special_tokens_are_no_text() -> None:
    assert decode(piece("<s>", special=True), piece("a"))[0] == Token(0, "a", piece("a")["token"])


def test_the_whole_text_is_not_told_again() -> None:
    details = {"finish_reason": "length", "generated_tokens": 2, "seed": None, "input_length": 3}
    events = decode(piece("a"), piece("b", full="prompt ab", details=details))
    assert [event.text for event in events if isinstance(event, Token)] == ["a", "b"]
    assert events[2:] == [Finish(0, "length", "length"), Usage(3, 2, 5, native=details)]


@pytest.mark.parametrize(
    ("native", "reason"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length"), ("new", "stop")]
)
def test_finish_reasons(native: str, reason: Any) -> None:
    events = decode(piece("", full="", details={"finish_reason": native, "generated_tokens": 1}))
    assert events == [
        Finish(0, reason, native),
        Usage(None, 1, native={"finish_reason": native, "generated_tokens": 1}),
    ]


def test_without_details_there_is_an_end_but_no_reason() -> None:
    events, dialect = read(
        "tgi", [b'data:{"token":{"text":"a"},"generated_text":"a"}\n\ndata: {"token":{"text":"b"}}\n\n']
    )
    assert events == [Start(), Token(0, "a")]
    assert dialect.terminated
    assert dialect.is_finished


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"error": "too long", "error_type": "validation"},
            UpstreamError("too long", {"error": "too long", "error_type": "validation"}, "validation"),
        ),
        (
            {"error": "busy", "error_type": "overloaded"},
            UpstreamError("busy", {"error": "busy", "error_type": "overloaded"}, "overloaded", retryable=True),
        ),
        ({"error": "bare"}, UpstreamError("bare", {"error": "bare"})),
        ({"error": {"message": "m", "code": 500}}, UpstreamError("m", {"message": "m", "code": 500}, "500", 500, True)),
    ],
)
def test_errors_under_status_200(fields: dict[str, Any], error: UpstreamError) -> None:
    assert decode(fields) == [error]
    assert decode(piece("a"), fields)[1:] == [error]


def test_a_named_error_event_is_an_error() -> None:
    dialect = DIALECTS["tgi"]()
    events = list(dialect.decode(Frame(b"out of memory", b"", b"error")))
    assert events == [Start(), UpstreamError("out of memory", "out of memory")]


def test_other_objects_are_extensions() -> None:
    assert decode({"info": 1}) == [Extension("unknown", {"info": 1})]


def test_a_mark_of_other_servers_is_understood() -> None:
    _, dialect = read("tgi", [b'data: {"token":{"text":"a"},"generated_text":null}\n\ndata: [DONE]\n\n'])
    assert dialect.terminated


@pytest.mark.parametrize(
    ("code", "kind"),
    [("upstream_reset", "incomplete_generation"), ("shutting_down", "overloaded"), ("idle_timeout", "generation")],
)
def test_error_frames(code: str, kind: str) -> None:
    assert error_frame("tgi", Failure(code, "why")) == b'data: {"error":"why","error_type":"%b"}\n\n' % kind.encode()
