"""One JSON array that arrives element by element, as Gemini streams it where nobody asks for server-sent events.

Owns where an element starts and ends in the bytes. Must not know what its JSON means, and looks no further into it than
that takes: at brackets and strings.

Beyond the standard: a byte order mark is no garbage, neither is a comma too many, and a body that is one bare object
(an error, most often) is one frame.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Final

from sidecar.errors import Failure, FrameTooLargeError
from sidecar.events import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_QUOTE: Final = ord('"')
_OPENERS: Final = frozenset(b"{[")
_STARTS_SCALAR: Final = frozenset(b"-0123456789tfn")
_OPENS_ARRAY: Final = ord("[")
_CLOSES_ARRAY: Final = ord("]")

_BEFORE_ARRAY: Final = re.compile(rb"[\xef\xbb\xbf \t\r\n]*+")
_BETWEEN: Final = re.compile(rb"[, \t\r\n]*+")
_WHITE_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_SCALAR: Final = re.compile(rb"[-+.\w]*+")
_WHOLE_SCALAR: Final = re.compile(rb"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TO_BRACKET: Final = re.compile(
    rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+)*+',
    re.DOTALL,
)
"""Up to the next bracket, over whole strings; to the opening quote of one that is not whole yet. Possessive throughout,
so that no byte is tried twice."""
_STRING_REST: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
"""Up to a string's closing quote, or to a backslash that is the last byte there is."""

_GARBAGE: Final = "something that is no JSON value in its array"


class JsonArrayFraming:
    """Frames of one array: its elements, each with the brackets, commas and white space before it. The closing bracket,
    and white space behind it, are frames with ``data=None``."""

    __slots__ = (
        "_begin",
        "_depth",
        "_held",
        "_in_string",
        "_is_escaped",
        "_is_over",
        "_outer",
        "_step",
        "_strict",
        "flaw",
        "is_passing",
        "max_frame_bytes",
    )

    name: ClassVar[str] = "json-array"
    media_types: ClassVar[frozenset[str]] = frozenset({"application/json"})
    frame_end: ClassVar[bytes] = b""
    is_settled: ClassVar[bool] = False

    def __init__(self, max_frame_bytes: int, *, strict: bool) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._strict = strict
        self._held = bytearray()
        # What reads on from here: where it came to, and whether the frame under way ends there.
        self._step: Callable[[JsonArrayFraming, bytes, int, int], tuple[int, bool]] = JsonArrayFraming._before
        # Closed or broken: what comes now is no element.
        self._is_over = False
        # Brackets open, and how many of them are not the element's own: none for a bare object.
        self._depth = 0
        self._outer = 1
        # Where in its frame the element begins.
        self._begin = 0
        self._in_string = False
        self._is_escaped = False
        # Inside a frame too large to observe: hand out whatever comes until its own end.
        self.is_passing = False
        self.flaw: Failure | None = None

    @property
    def pending(self) -> int:
        """Bytes of the partial element held back, and of what came before it."""
        return len(self._held)

    def feed(self, data: bytes) -> Sequence[Frame]:
        """The elements completed by ``data``.

        Raises FrameTooLargeError in strict mode, once a frame, whole or not, exceeds the bound."""
        frames: list[Frame] = []
        start = at = 0  # data[start:] belongs to the frame under way
        while at < len(data):
            at, is_whole = self._step(self, data, at, start)
            if is_whole:
                self._complete(data[start:at], frames)
                start = at
        if start < len(data):
            self._hold(data[start:], frames)
        return frames

    @classmethod
    def joint(cls, last: bytes) -> bytes:
        """What opens the array, or parts another element from the ``last`` one. Behind a closed array no element has a
        place: there another array begins."""
        if not last:
            return b"["
        is_element = last.translate(None, b", \t\r\n") not in (b"]", b"[]", b"")
        return b",\n" if is_element else b"\n["

    def take_pending(self) -> bytes:
        """The bytes of the partial frame, which are then no longer held."""
        held = bytes(self._held)
        self._held.clear()
        return held

    def flush(self) -> Sequence[Frame]:
        """Never a frame: what is not closed is not whole, and from now on a flaw."""
        if not self._is_over:
            self.flaw = Failure("upstream_truncated", "the upstream's JSON array was never closed")
        return ()

    def _before(self, data: bytes, at: int, start: int) -> tuple[int, bool]:
        at = _end(_BEFORE_ARRAY, data, at)
        if at == len(data):
            return at, False
        if data[at] == _OPENS_ARRAY:
            self._depth = 1
            self._step = JsonArrayFraming._between
            return at + 1, False
        if data[at] in _OPENERS:
            self._outer = 0
            return self._open(at, start), False
        return self._break(data, "no JSON array")

    def _between(self, data: bytes, at: int, start: int) -> tuple[int, bool]:
        at = _end(_BETWEEN, data, at)
        if at == len(data):
            return at, False
        byte = data[at]
        if byte in _OPENERS:
            return self._open(at, start), False
        if byte == _CLOSES_ARRAY:
            self._close()
            self._begin = -1
            return at + 1, True
        self._begin = len(self._held) + at - start
        if byte == _QUOTE:
            self._step = JsonArrayFraming._string
            self._in_string = True
            return at + 1, False
        if byte not in _STARTS_SCALAR:
            return self._break(data, _GARBAGE)
        self._step = JsonArrayFraming._scalar
        return at + 1, False

    def _open(self, at: int, start: int) -> int:
        self._begin = len(self._held) + at - start
        self._depth += 1
        self._step = JsonArrayFraming._nested
        return at + 1

    def _nested(self, data: bytes, at: int, start: int) -> tuple[int, bool]:
        if self._in_string:
            at = self._string_rest(data, at)
        # Every bracket is met here, so this loop is what an element costs.
        depth, outer = self._depth, self._outer
        while at < len(data):
            at = _end(_TO_BRACKET, data, at)
            if at == len(data):
                break
            byte = data[at]
            at += 1
            if byte in _OPENERS:
                depth += 1
            elif byte == _QUOTE:
                self._in_string = True
                at = self._string_rest(data, at)
            else:
                depth -= 1
                if depth == outer:
                    self._depth = depth
                    if outer:
                        self._step = JsonArrayFraming._between
                    else:
                        self._close()
                    return at, True
        self._depth = depth
        return at, False

    def _string(self, data: bytes, at: int, start: int) -> tuple[int, bool]:
        at = self._string_rest(data, at)
        if not self._in_string:
            self._step = JsonArrayFraming._between
        return at, not self._in_string

    def _string_rest(self, data: bytes, at: int) -> int:
        """Behind the closing quote of the string ``at`` is in, else the end of ``data``."""
        at = _end(_STRING_REST, data, at + self._is_escaped)
        self._is_escaped = False
        if at < len(data):
            self._in_string = data[at] != _QUOTE
            self._is_escaped = self._in_string
            at += 1
        return at

    def _scalar(self, data: bytes, at: int, start: int) -> tuple[int, bool]:
        at = _end(_SCALAR, data, at)
        if at == len(data):
            return at, False
        is_observed = not self.is_passing and len(self._held) + at - start <= self.max_frame_bytes
        if is_observed and not _WHOLE_SCALAR.fullmatch(self._held + data[start:at], self._begin):
            return self._break(data, _GARBAGE)
        self._step = JsonArrayFraming._between
        return at, True

    def _after(self, data: bytes, at: int, start: int) -> tuple[int, bool]:
        at = _end(_WHITE_SPACE, data, at)
        return (at, False) if at == len(data) else self._break(data, "something behind its JSON array")

    def _broken(self, data: bytes, at: int, start: int) -> tuple[int, bool]:
        return len(data), False

    def _close(self) -> None:
        self._step = JsonArrayFraming._after
        self._is_over = True

    def _break(self, data: bytes, what: str) -> tuple[int, bool]:
        self._step = JsonArrayFraming._broken
        self._is_over = True
        self.flaw = Failure("malformed_upstream", f"the upstream sent {what}")
        return len(data), False

    def _complete(self, piece: bytes, frames: list[Frame]) -> None:
        """The frame under way, whose last bytes are ``piece``."""
        raw = self.take_pending() + piece if self._held else piece
        if self.is_passing:
            self.is_passing = False
            frames.append(Frame(None, raw))
        elif len(raw) > self.max_frame_bytes:
            if self._strict:
                raise FrameTooLargeError(frames)
            frames.append(Frame(None, raw))
        else:
            frames.append(Frame(None if self._begin < 0 else raw[self._begin :], raw))

    def _hold(self, piece: bytes, frames: list[Frame]) -> None:
        """Keep what follows the last whole frame, or hand it out unobserved: too much to keep, or no element."""
        if self._is_over:
            frames.append(Frame(None, self.take_pending() + piece))
            return
        if not self.is_passing:
            self._held += piece
            if len(self._held) <= self.max_frame_bytes:
                return
            if self._strict:
                raise FrameTooLargeError(frames)
            self.is_passing = True
            piece = self.take_pending()
        frames.append(Frame(None, piece))


def _end(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Where the match of a ``pattern`` that matches anywhere ends."""
    match = pattern.match(data, at)
    return at if match is None else match.end()
