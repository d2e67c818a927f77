"""What every simulated dialect writes an answer from: the text, the tool call, the shape of an answer.

Owns the words. Must not know any dialect's way of writing them, nor pace, faults or sockets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

MODEL: Final = "simulated-1"
CREATED: Final = 1_760_000_000
CREATED_AT: Final = "2025-10-09T08:53:20.000000000Z"
PROMPT_TOKENS: Final = 9
_TEXT: Final = (
    "Every token you read here came out of a socket, through one straight line of code, and into your terminal. "
)
_WORDS: Final = [f"{word} " for word in _TEXT.split()]
ERROR_MESSAGE: Final = "the simulator was told to fail"


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer: every piece is whole frames of its dialect.

    ``opening`` comes with the headers, before any content; ``malformed`` is a frame of broken JSON; ``error`` says
    inside the stream that it failed, b"" where the dialect cannot.
    """

    content_type: str
    opening: bytes
    contents: Callable[[int, int], Iterator[bytes]]
    """(count, text length of the first frame or 0) → the content frames."""
    closing: Callable[[int], tuple[bytes, bytes]]
    """(content frames sent) → finish marks and usage, and the dialect's last word; b"" where there is none."""
    malformed: bytes
    error: bytes


def texts(count: int, first_bytes: int = 0) -> Iterator[str]:
    """``count`` pieces of the built-in text, over and over; the first is ``first_bytes`` long where that is not 0."""
    pieces = islice(cycle(_WORDS), count)
    if first_bytes and count:
        next(pieces)
        yield "x" * first_bytes
    yield from pieces


def to_json(value: Any) -> bytes:
    """Compact JSON, as the providers write it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def tool_name(body: dict[str, Any]) -> str:
    """The first tool the request offers, in either way of writing it; "" for none."""
    tools = body.get("tools")
    first = tools[0] if isinstance(tools, list) and tools and isinstance(tools[0], dict) else {}
    function = first.get("function")
    return str((function if isinstance(function, dict) else first).get("name", ""))


def argument_pieces(count: int, first_bytes: int) -> Iterator[str]:
    """Fragments whose concatenation is one JSON object."""
    if count == 1:
        yield '{"query":""}'
    elif count > 1:
        yield '{"query":"'
        yield from texts(count - 2, first_bytes)
        yield '"}'


def model_of(body: dict[str, Any]) -> str:
    """The model the request names, else the simulator's own."""
    return str(body.get("model") or MODEL)
