"""Server-sent events: WHATWG HTML 9.2.5 and 9.2.6, and the few liberties LLM streams need.

Owns where an event starts and ends in the bytes, and its data and name. Must not know what the data means.

Beyond the standard:

* At the end of the body an event without its blank line is still dispatched where it is plainly whole: its data is
  JSON, or the ``[DONE]`` mark. Real upstreams leave the last blank line out.
* JSON written bare into the body, outside any field (Gemini reports errors so), is a frame named ``UNFRAMED``.
* A field ``error`` whose value is JSON is an event of that name: llama.cpp's older servers write their errors so.
* ``id`` and ``retry`` stay in ``Frame.raw`` and are not read: resuming is the sidecar's own business.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Final

from sidecar.errors import FrameTooLargeError
from sidecar.events import Frame
from sidecar.framing.whole_json import is_whole_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.errors import Failure

UNFRAMED: Final = b""
"""`Frame.name` of JSON found outside any field. No event can have this name: an empty one means none was given."""

_BOM: Final = b"\xef\xbb\xbf"
_COLON: Final = ord(":")
_CR: Final = ord("\r")
_LINE_END: Final = re.compile(rb"\r\n?|\n")
_LINE_FEED: Final = re.compile(rb"\n")
"""The same where no CR is about: a literal is found by memchr, an alternation byte by byte."""

_BARE_JSON: Final = (b"{", b"[")


class SseFraming:
    """Frames of one event stream. Lines end with LF, CR or CRLF, split anywhere over reads.

    A frame is an event with its blank line and the comments inside it; or, with ``data=None``, whatever lies between
    events: comments, blank lines, and blocks of lines that fire nothing. Those between events are handed out as soon
    as their line is whole, so a heartbeat is never held back.
    """

    __slots__ = ("_after_cr", "_at_start", "_held", "_line", "_strict", "is_passing", "is_settled", "max_frame_bytes")

    name: ClassVar[str] = "sse"
    media_types: ClassVar[frozenset[str]] = frozenset({"text/event-stream"})
    frame_end: ClassVar[bytes] = b"\n\n"
    flaw: ClassVar[Failure | None] = None

    def __init__(self, max_frame_bytes: int, *, strict: bool) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._strict = strict
        self._held = bytearray()
        # Where the line being read begins in _held; -1 when it began in bytes already handed out.
        self._line = 0
        self._after_cr = False
        self._at_start = True
        # Inside a frame too large to observe: hand out whatever comes until its own blank line.
        self.is_passing = False
        self.is_settled = False

    @property
    def pending(self) -> int:
        """Bytes of the partial frame held back."""
        return len(self._held)

    def feed(self, data: bytes) -> Sequence[Frame]:
        """The frames completed by ``data``.

        Raises FrameTooLargeError in strict mode, once a frame, whole or not, exceeds the bound."""
        # One whole event a read is what a generating model gives, so nearly every call ends in one of the returns of a
        # single Frame. Looking for a byte by its number is several times faster than by a one-byte string.
        if self.is_settled and data.endswith(b"\n\n") and _CR not in data and len(data) <= self.max_frame_bytes:
            first_end = data.find(b"\n")
            last_end = len(data) - 2
            if first_end == last_end:
                if data.startswith(b"data: "):
                    return (Frame(data[6:-2], data),)
            elif (
                data.startswith(b"data: ", first_end + 1)
                and data.startswith(b"event: ")
                and data.find(b"\n", first_end + 1) == last_end
            ):
                return (Frame(data[first_end + 7 : -2], data, data[7:first_end] or None),)
            if b"\n\n\n" not in data:
                return _frames_of_blocks(data)
        elif (
            self.is_settled
            and data.endswith(b"\r\n\r\n")
            and data.startswith(b"data: ")
            and len(data) <= self.max_frame_bytes
            and data.find(b"\r") == len(data) - 4
            and data.find(b"\n") == len(data) - 3
        ):
            return (Frame(data[6:-4], data),)
        return self._open(data) if self._at_start else self._scan(data)

    @classmethod
    def joint(cls, last: bytes) -> bytes:
        """What ends an event that the upstream left open, so that ours is not read as its rest."""
        if not last or last.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
            return b""
        return b"\n" if last.endswith((b"\n", b"\r")) else b"\n\n"

    def take_pending(self) -> bytes:
        """The bytes of the partial frame, which are then no longer held."""
        held = bytes(self._held)
        self._held.clear()
        self._line = 0
        return held

    def flush(self) -> Sequence[Frame]:
        """The event that the end of the body left without its blank line, where it is plainly whole; else nothing."""
        data, name, bare = _parse(bytes(self._held))
        if data is not None and not data.startswith(b"[DONE]") and not is_whole_json(data):
            # Cut inside its data. JSON written bare before it is whole all the same.
            return () if bare is None else (Frame(bare, b"", UNFRAMED),)
        if data is None and bare is None:
            return ()
        return _frames(data, name, bare, self.take_pending())

    def _open(self, data: bytes) -> Sequence[Frame]:
        """The start of the stream, where one byte order mark may stand; held back while it may still become one."""
        body = bytes(self._held) + data
        if len(body) < len(_BOM) and _BOM.startswith(body):
            self._held = bytearray(body)
            return ()
        self._at_start = False
        self._held = bytearray()
        if body.startswith(_BOM):
            return [Frame(None, _BOM), *self._scan(body[len(_BOM) :])]
        self.is_settled = True
        return self.feed(body)

    def _scan(self, data: bytes) -> Sequence[Frame]:
        """Any input, line by line. Bytes held from earlier reads have been searched and are not searched again."""
        if not data:
            return ()
        at = len(self._held)
        if at:
            self._held += data
        body = self._held if at else data
        start, line = 0, self._line
        if self._after_cr and data.startswith(b"\n"):
            # This LF belongs to the line end its CR began; with nothing pending it lies between events.
            line += 1
            start = 0 if at or self.is_passing else 1
            at += 1
        frames: list[Frame] = []
        handed = 0  # body[handed:start] lies between events, whole and not yet handed out
        for match in (_LINE_END if _CR in data else _LINE_FEED).finditer(body, at):
            end, after = match.span()
            if end == line:
                if self.is_passing or start < line:
                    _hand_out(body, handed, start, frames)
                    self._dispatch(bytes(body[start:after]), frames)
                    handed = after
                start = after
            elif line == start and body[line] == _COLON and not self.is_passing:
                start = after
            line = after
        _hand_out(body, handed, start, frames)
        self._after_cr = data.endswith(b"\r")
        self._hold(body, start, line, frames)
        return frames

    def _dispatch(self, raw: bytes, frames: list[Frame]) -> None:
        if self.is_passing:
            frames.append(Frame(None, raw))
            self.is_passing = False
        elif len(raw) <= self.max_frame_bytes:
            frames.extend(_frames_of_block(raw))
        elif self._strict:
            raise FrameTooLargeError(frames)
        else:
            frames.append(Frame(None, raw))

    def _hold(self, body: bytes | bytearray, start: int, line: int, frames: list[Frame]) -> None:
        """Keep what follows the last whole frame, or hand it out unobserved where it is too much to keep."""
        if body is self._held:
            del self._held[:start]
        elif start < len(body):
            self._held = bytearray(body[start:])
        self._line = line - start
        if self._held and (self.is_passing or len(self._held) > self.max_frame_bytes):
            if self._strict:
                raise FrameTooLargeError(frames)
            frames.append(Frame(None, bytes(self._held)))
            self.is_passing = True
            self._line = 0 if self._line == len(self._held) else -1
            self._held = bytearray()
        self.is_settled = not (self._held or self._after_cr or self.is_passing)


def _hand_out(body: bytes | bytearray, begin: int, end: int, frames: list[Frame]) -> None:
    if begin < end:
        frames.append(Frame(None, bytes(body[begin:end])))


def _frames_of_blocks(data: bytes) -> Sequence[Frame]:
    """The frames of whole blocks whose only line end is LF."""
    blocks = data.split(b"\n\n")
    blocks.pop()
    if len(blocks) == 1:
        return _frames_of_block(data)
    frames: list[Frame] = []
    for block in blocks:
        raw = block + b"\n\n"
        first_end = block.find(b"\n")
        if first_end < 0 and block.startswith(b"data: "):
            frames.append(Frame(block[6:], raw))
        elif (
            block.startswith(b"data: ", first_end + 1)
            and block.startswith(b"event: ")
            and block.find(b"\n", first_end + 1) < 0
        ):
            frames.append(Frame(block[first_end + 7 :], raw, block[7:first_end] or None))
        else:
            frames.extend(_frames_of_block(raw))
    return frames


def _frames_of_block(raw: bytes) -> Sequence[Frame]:
    return _frames(*_parse(raw), raw)


def _frames(data: bytes | None, name: bytes | None, bare: bytes | None, raw: bytes) -> Sequence[Frame]:
    if bare is None:
        return (Frame(data, raw, name),)
    if data is None:
        return (Frame(bare, raw, UNFRAMED),)
    # The block's bytes belong to one frame only, so that no byte is relayed twice.
    return (Frame(bare, b"", UNFRAMED), Frame(data, raw, name))


def _parse(block: bytes) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The data and name of the event in ``block``, and the JSON written bare before its data; None for each it lacks.

    WHATWG HTML 9.2.6: data lines are joined by LF; one space after the colon is not part of the value; field names
    are exact; an event without data does not fire.
    """
    values: list[bytes] = []
    name = b""
    bare: list[bytes] = []
    if _CR in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            values.append(value[1:] if value.startswith(b" ") else value)
        elif field == b"event":
            name = value[1:] if value.startswith(b" ") else value
        elif field == b"error" and is_whole_json(value):
            values.append(value.strip())
            name = b"error"
        elif not values and (bare or line.startswith(_BARE_JSON)):
            bare.append(line)
    text = b"\n".join(bare).strip()
    unframed = text if text and is_whole_json(text) else None
    if not values:
        return None, None, unframed
    return b"\n".join(values), name or None, unframed
