"""Replicate: text as it is, and a done that says how."""

from __future__ import annotations

import pytest

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Frame, Start, Token, UpstreamError
from tests.dialect_reading import error_frame, read
from tests.test_relay import ending


def event(name: str, data: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in data.split("\n"))
    return f"event: {name}\nid: 1717171717:0\n{lines}\n".encode()


def decode(*events: bytes) -> list[Event]:
    start, *told = read("replicate", [b"".join(events)])[0]
    assert start == Start()
    return told


def test_output_is_text_whatever_it_looks_like() -> None:
    texts = ["Hi", ' "quoted"', "\n\n- a", "{}", "[1", "null", "\u2028"]
    assert decode(*(event("output", text) for text in texts)) == [Token(0, text) for text in texts]


def test_an_empty_piece_says_nothing() -> None:
    assert decode(event("output", ""), event("output", "a")) == [Token(0, "a")]


def test_broken_utf8_is_replaced() -> None:
    assert decode(b"event: output\ndata: a\xff\n\n") == [Token(0, "a\ufffd")]


def test_logs_and_unknown_events_are_extensions() -> None:
    assert decode(
        event("logs", "line 1\nline 2"),
        event("metrics", '{"type":"m","a":1}'),
        event("note", "text"),
        b'data: {"type":"x"}\n\n',
        b"data: text\n\n",
    ) == [
        Extension("logs", "line 1\nline 2"),
        Extension("metrics", {"type": "m", "a": 1}),
        Extension("note", "text"),
        Extension("x", {"type": "x"}),
        Extension("unparsed", "text"),
    ]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ('{"detail":"out of memory"}', UpstreamError("out of memory", {"detail": "out of memory"})),
        ('{"message":"m","code":"E1"}', UpstreamError("m", {"message": "m", "code": "E1"}, "E1")),
        ("out of memory", UpstreamError("out of memory", "out of memory")),
        ('["a"]', UpstreamError('["a"]', ["a"])),
    ],
)
def test_errors(data: str, error: UpstreamError) -> None:
    assert decode(event("error", data)) == [error]
    assert decode(event("error", data), event("done", '{"reason":"error"}')) == [error]


@pytest.mark.parametrize("reason", ["error", "canceled"])
def test_a_done_with_a_reason_is_no_success(reason: str) -> None:
    body = event("output", "a") + event("done", f'{{"reason":"{reason}"}}')
    error = UpstreamError(f"the prediction ended with {reason!r}", {"reason": reason}, reason)
    assert decode(body) == [Token(0, "a"), error]
    assert ending("replicate", body)[1] == "upstream_error"


@pytest.mark.parametrize("data", ["{}", "", "null", "not json", '{"reason":null}', '{"reason":""}'])
def test_any_other_done_completes(data: str) -> None:
    body = event("output", "a") + event("done", data)
    assert ending("replicate", body)[1] is None


def test_nothing_follows_done() -> None:
    events, dialect = read("replicate", [event("output", "a") + event("done", "{}") + event("output", "b")])
    assert events == [Start(), Token(0, "a")]
    assert dialect.terminated


def test_a_stream_without_done_was_cut() -> None:
    assert ending("replicate", event("output", "a"))[1] == "upstream_truncated"
    assert ending("replicate", event("output", "a") + b"event: done\ndata: {}")[1] is None


def test_recognised_by_name_and_id() -> None:
    recognises = DIALECTS["replicate"].recognises
    assert recognises(Frame(b"a", event("output", "a"), b"output"))
    assert recognises(Frame(b"a", b"event: logs\r\nid: 1:2\r\ndata: a\r\n\r\n", b"logs"))
    assert not recognises(Frame(b"a", b"event: output\ndata: a\n\n", b"output"))
    assert not recognises(Frame(b"a", b"event: delta\nid: 1:2\ndata: a\n\n", b"delta"))


def test_error_frame() -> None:
    assert error_frame("replicate", Failure("internal", "why")) == b'event: error\ndata: {"detail":"why"}\n\n'
