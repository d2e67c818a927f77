"""The stencil: when a plain frame is known by its surroundings, and when it must not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.events import Event, Reasoning, Token, ToolCall
from sidecar.stencil import cut_stencil
from tests.core_support import chunk, typed_events
from tests.test_relay import Line

START, END = 6, 2
FRAME = chunk("hello")


def plain_of(*before: bytes) -> Callable[[bytes], Event | None]:
    """The plain lane of a stream that has begun."""
    line = Line("openai-chat")
    for frame in (chunk("a"), *before):
        line.relay.feed(frame, 1.0)
    return line.dialect.decode_plain


def stencil_of(frame: bytes, event: Event) -> tuple[bytes, bytes] | None:
    return cut_stencil(frame, event, payload_at=START, end_bytes=END, decode_plain=plain_of())


def test_a_stencil_is_all_but_the_text() -> None:
    stencil = stencil_of(FRAME, Token(0, "hello"))
    assert stencil is not None
    assert stencil[0] + b"hello" + stencil[1] == FRAME
    assert (stencil[0][-1:], stencil[1][:1]) == (b'"', b'"')


@pytest.mark.parametrize("event", [Token(0, ""), ToolCall(0, 0, "{}"), Token(0, "elsewhere")])
def test_no_stencil_without_a_text_that_is_there(event: Event) -> None:
    assert stencil_of(FRAME, event) is None


def test_a_text_that_stands_elsewhere_too_is_told_apart() -> None:
    frame = b'data: {"choices":[{"delta":{"content":"m"},"index":0}],"model":"m"}\n\n'
    assert stencil_of(frame, Token(0, "m")) is None


HOSTILE = [
    b'\n\n"x"',
    b'"x"\n\n',
    b' "x"',
    b'"',
    b'""',
    b'"x","content":"y"',
    b'"\xff"',
    b'"\\ud83d"',
    b'"\\u0000"',
    b"null",
    b'"a\nb"',
    b'"a\rb"',
    b'"x"},"finish_reason":"stop","index":0},{"delta":{"content":"y"',
]


@pytest.mark.parametrize("format_name", ["typed", "native"])
@pytest.mark.parametrize("literal", HOSTILE)
def test_what_fits_the_stencil_and_is_no_text_goes_the_long_way(literal: bytes, format_name: str) -> None:
    told: list[Any] = []
    hostile = FRAME.replace(b'"hello"', literal)
    for learned in (True, False):
        line = Line("openai-chat", format_name)
        line.relay.feed(chunk("a"), 1.0)
        for frame in (chunk("b"), chunk("c"), chunk("d"), hostile, chunk("e")):
            pieces = [frame] if learned else [frame[:9], frame[9:]]
            for piece in pieces:
                line.relay.feed(piece, 1.0)
        outcome, _, sent = line.finish()
        told.append(
            (outcome, sent if format_name == "native" else typed_events(sent)[:-1], line.session.content_events)
        )
    assert told[0] == told[1]


@given(st.lists(st.tuples(st.sampled_from(["content", "reasoning"]), st.text()), min_size=1, max_size=30))
def test_any_run_of_texts_reads_alike_with_and_without_it(texts: list[tuple[str, str]]) -> None:
    frames = [
        b"data: %b\n\n"
        % json.dumps({"id": "c", "choices": [{"index": 0, "delta": {kind: text}}]}, ensure_ascii=False).encode(
            "utf-8", "replace"
        )
        for kind, text in texts
    ]
    whole, split = Line("openai-chat"), Line("openai-chat")
    for frame in frames:
        whole.relay.feed(frame, 1.0)
        split.relay.feed(frame[:7], 1.0)
        split.relay.feed(frame[7:], 1.0)
    one, other = whole.finish()[2], split.finish()[2]
    assert typed_events(one)[:-1] == typed_events(other)[:-1]
    kinds = {"token": Token, "reasoning": Reasoning}
    said = "".join(data["text"] for name, data in typed_events(one) if name in kinds)
    assert said == "".join(text for _, text in texts).encode("utf-8", "replace").decode()
