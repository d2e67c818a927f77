"""Newline-delimited JSON: one value a line, as Ollama streams it.

Owns where a line starts and ends in the bytes. Must not know what its JSON means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sidecar.errors import FrameTooLargeError
from sidecar.events import Frame
from sidecar.framing.whole_json import is_whole_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.errors import Failure


class NdjsonFraming:
    """Frames of one NDJSON body: lines ended by LF or CRLF. Blank lines are frames with ``data=None``."""

    __slots__ = ("_held", "_strict", "is_passing", "is_settled", "max_frame_bytes")

    name: ClassVar[str] = "ndjson"
    media_types: ClassVar[frozenset[str]] = frozenset(
        {
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonl",
            "application/x-jsonlines",
            "application/jsonlines",
            "application/stream+json",
        }
    )
    frame_end: ClassVar[bytes] = b"\n"
    flaw: ClassVar[Failure | None] = None

    def __init__(self, max_frame_bytes: int, *, strict: bool) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._strict = strict
        self._held = bytearray()
        # Inside a line too large to observe: hand out whatever comes until its own LF.
        self.is_passing = False
        self.is_settled = True

    @property
    def pending(self) -> int:
        """Bytes of the partial line held back."""
        return len(self._held)

    def feed(self, data: bytes) -> Sequence[Frame]:
        """The lines completed by ``data``.

        Raises FrameTooLargeError in strict mode, once a line, whole or not, exceeds the bound."""
        end = data.find(b"\n")
        if end < 0:
            return self._hold(data) if data else ()
        if end == len(data) - 1 and not self._held and not self.is_passing:
            return (self._frame(data),)
        frames: list[Frame] = []
        if self.is_passing:
            frames.append(Frame(None, data[: end + 1]))
            self.is_passing = False
            self.is_settled = True
        else:
            frames.append(self._frame(self.take_pending() + data[: end + 1]))
        lines = data[end + 1 :].split(b"\n")
        tail = lines.pop()
        try:
            for line in lines:
                frames.append(self._frame(line + b"\n"))  # noqa: PERF401 - those before one too large are kept
            if tail:
                frames.extend(self._hold(tail))
        except FrameTooLargeError:
            raise FrameTooLargeError(frames) from None
        return frames

    @classmethod
    def joint(cls, last: bytes) -> bytes:
        """What ends a line that the upstream left open."""
        return b"" if not last or last.endswith(b"\n") else b"\n"

    def take_pending(self) -> bytes:
        """The bytes of the partial line, which are then no longer held."""
        held = bytes(self._held)
        self._held.clear()
        self.is_settled = not self.is_passing
        return held

    def flush(self) -> Sequence[Frame]:
        """The last line, where only its LF is missing; else nothing."""
        if not is_whole_json(bytes(self._held)):
            return ()
        raw = self.take_pending()
        return (Frame(raw.strip(), raw),)

    def _frame(self, raw: bytes) -> Frame:
        if len(raw) > self.max_frame_bytes:
            if self._strict:
                raise FrameTooLargeError
            return Frame(None, raw)
        return Frame(raw.strip() or None, raw)

    def _hold(self, piece: bytes) -> Sequence[Frame]:
        """Keep a piece without LF, or hand it out unobserved where the line is too much to keep."""
        self.is_settled = False
        if self.is_passing:
            return (Frame(None, piece),)
        self._held += piece
        if len(self._held) <= self.max_frame_bytes:
            return ()
        if self._strict:
            raise FrameTooLargeError
        self.is_passing = True
        return (Frame(None, self.take_pending()),)
