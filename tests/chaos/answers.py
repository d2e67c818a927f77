"""What the upstreams of the chaos run say: whole answers in three languages, and what of each a client may be told.

Owns the bytes of a whole answer, of an error in its midst, and what is read out of a client's copy of either. Must not
know faults, sockets or the sidecar.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.app_support import CHAT, MESSAGES, OLLAMA_CHAT, openai_frames

WORDS = [
    "a",
    " token",
    " Grüß",
    " 世界",
    " 😄",
    '"',
    "\\",
    "\n\n",
    " data: [DONE]",
    "}",
    " longer words than these",
    "\u2028",
]
SSE = "text/event-stream"


@dataclass(frozen=True)
class Language:
    """A dialect as far as the run needs it: where it is spoken, and what ends it."""

    name: str
    path: str
    content_type: str
    end_mark: bytes


LANGUAGES = (
    Language("openai", CHAT, SSE, b"data: [DONE]\n\n"),
    Language("anthropic", MESSAGES, SSE, b'{"type": "message_stop"}\n\n'),
    Language("ollama", OLLAMA_CHAT, "application/x-ndjson", b'"done_reason": "stop"}\n'),
)


@dataclass(frozen=True)
class Answer:
    """One whole answer: its frames, the text each tells ("" for none), and which of them has the finish mark."""

    language: Language
    frames: Sequence[bytes]
    texts: Sequence[str]
    finish_at: int


def make_answer(language: Language, chance: random.Random) -> Answer:
    """An answer of a few words, or now and then of many."""
    count = chance.choice([1, 3, 8, 8, 20, 60])
    words = chance.choices(WORDS, k=count)
    return whole_answer(language, words)


def large_answer(language: Language, chance: random.Random) -> Answer:
    """More than all the buffers between an upstream and a client that does not read will take."""
    return whole_answer(language, [chance.choice(WORDS) * 400 for _ in range(chance.choice([300, 1200]))])


def whole_answer(language: Language, words: Sequence[str]) -> Answer:
    """The frames that tell these words."""
    if language.name == "openai":
        return Answer(language, openai_frames(*words), [*words, "", "", ""], len(words))
    if language.name == "anthropic":
        return Answer(language, [*_BEGUN, *map(_delta, words), *_ENDED], ["", "", *words, "", "", ""], len(words) + 3)
    return Answer(language, [*map(_line, words), _LAST_LINE], [*words, ""], len(words))


def error_frame(language: Language) -> bytes:
    """How this language says in its stream that it fails."""
    if language.name == "openai":
        return b'data: {"error": {"message": "overloaded", "type": "server_error", "code": null}}\n\n'
    if language.name == "anthropic":
        return _sse("error", error={"type": "overloaded_error", "message": "Overloaded"})
    return b'{"error": "an error was encountered while running the model"}\n'


def broken_frame(language: Language, chance: random.Random) -> bytes:
    """A frame in its framing that is no JSON: cut short, or with a byte that is no UTF-8."""
    payload = chance.choice([b'{"id": "c1", "choices": [{"ind', b'{"text": "\xff\xfe"}', b"<html>", b"{]"])
    return payload + b"\n" if language.content_type != SSE else b"data: " + payload + b"\n\n"


def huge_frame(language: Language, size: int) -> bytes:
    """A frame of more than ``size`` bytes that tells no text."""
    padding = b'{"padding": "' + b"x" * size + b'"}'
    return padding + b"\n" if language.content_type != SSE else b"data: " + padding + b"\n\n"


def has_end_mark(language: Language, body: bytes) -> bool:
    """Whether a client that speaks the language takes this body for a whole answer."""
    return language.end_mark in body


def says_error(body: bytes) -> bool:
    """Whether the body tells of a failure."""
    return b'"error"' in body or b"event: error" in body


def _sse(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


_START = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
_BEGUN = (
    _sse("message_start", message={**_START, "usage": {"input_tokens": 5, "output_tokens": 1}}),
    _sse("content_block_start", index=0, content_block={"type": "text", "text": ""}),
)
_ENDED = (
    _sse("content_block_stop", index=0),
    _sse("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}),
    _sse("message_stop"),
)
_LAST_LINE = b'{"model": "m", "message": {"role": "assistant", "content": ""}, "done": true, "done_reason": "stop"}\n'


def _delta(text: str) -> bytes:
    return _sse("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def _line(text: str) -> bytes:
    said = {"model": "m", "message": {"role": "assistant", "content": text}, "done": False}
    return json.dumps(said).encode() + b"\n"
