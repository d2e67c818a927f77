"""Plain text streams: every piece of the body is text.

Owns the one thing such a stream can get wrong, a character cut in two. Must not know where pieces come from.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import ClassVar

from sidecar.errors import Failure
from sidecar.events import Event, Frame, Start, Token

_make_decoder = codecs.getincrementaldecoder("utf-8")


class RawText:
    """One body of text. It names nothing, counts nothing and marks no end: only its body's end completes it."""

    name: ClassVar[str] = "raw"
    framings: ClassVar[tuple[str, ...]] = ("raw",)
    paths: ClassVar[tuple[str, ...]] = ()
    streams_by_default: ClassVar[bool] = False
    has_terminator: ClassVar[bool] = False
    completes_on_clean_end: ClassVar[bool] = True
    tolerates_partial_frame: ClassVar[bool] = True
    plain_start: ClassVar[bytes] = b""

    __slots__ = ("_has_started", "_text", "terminated")

    def __init__(self) -> None:
        self.terminated = False
        self._has_started = False
        self._text = _make_decoder("replace")

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The whole characters that have come; a cut one waits for its other bytes."""
        text = self._text.decode(frame.data or b"")
        events: list[Event] = [Token(0, text)] if text else []
        if not self._has_started:
            self._has_started = True
            events.insert(0, Start())
        return events

    def decode_plain(self, payload: bytes) -> Event | None:
        """Nothing is plainer than `decode`."""
        return None

    def finish(self) -> Sequence[Event]:
        """U+FFFD for a character that was never whole."""
        text = self._text.decode(b"", final=True)
        return (Token(0, text),) if text else ()

    @property
    def is_finished(self) -> bool:
        """Never: text has no finish mark."""
        return False

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """Never: any bytes are text."""
        return False

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """Nothing: any byte would be read as text of the answer."""
        return b""
