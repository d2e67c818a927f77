"""The simulator's raw text. Owns how an answer is written there; must not know pace or sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sidecar.simulator.dialects.answer import ERROR_MESSAGE, Answer, texts


def streamed(_body: dict[str, Any]) -> Answer:
    """Plain words; raw text has no finish mark, no usage and no error. Its malformed frame is broken UTF-8."""

    def contents(count: int, first_bytes: int) -> Iterator[bytes]:
        yield from (text.encode() for text in texts(count, first_bytes))

    return Answer(
        content_type="text/plain; charset=utf-8",
        opening=b"",
        contents=contents,
        closing=lambda _count: (b"", b""),
        malformed=b"\xff\xfe ",
        error=b"",
    )


def whole(_body: dict[str, Any], count: int) -> bytes:
    """The same answer at once."""
    return "".join(texts(count)).encode()


def rejection(_status: int) -> bytes:
    """One line of text."""
    return ERROR_MESSAGE.encode() + b"\n"
