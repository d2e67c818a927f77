"""AWS event streams (``application/vnd.amazon.eventstream``): binary messages, each with its length and two checksums.

Owns where a message starts and ends in the bytes, its headers and their types, and how a message is written. Must not
know what a payload means.

What a message is follows from its headers, and is told by `Frame.name`:

* an event: its type (``contentBlockDelta``), None where it has none;
* an exception (an error the service's model knows): `EXCEPTION` and its type;
* an error (one it does not know): `ERROR`, its code, and after a line feed its message; the payload says nothing.

No event's type begins with a colon: one that does has a second one put before it, so that none can pass for an error.
"""

from __future__ import annotations

import struct
from binascii import crc32
from typing import TYPE_CHECKING, ClassVar, Final

from sidecar.errors import Failure, FrameTooLargeError
from sidecar.events import Frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXCEPTION: Final = b":exception "
"""`Frame.name` of an exception, before its type."""

ERROR: Final = b":error "
"""`Frame.name` of an unmodeled error, before its code, a line feed and its message."""

MAX_HEADERS_BYTES: Final = 128 * 1024
"""What the protocol allows all headers of one message to take."""

_PRELUDE: Final = struct.Struct(">III")
_CHECKSUM: Final = struct.Struct(">I")
_SHORT: Final = struct.Struct(">H")
_PRELUDE_BYTES: Final = _PRELUDE.size
_LEAST_BYTES: Final = _PRELUDE_BYTES + _CHECKSUM.size
_CHECKED_LENGTHS_BYTES: Final = 8
_STRING: Final = 7
_FIXED_BYTES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value by its type: true, false, the integers, a time, a UUID."""

_COUNTED: Final = frozenset({6, _STRING})
"""Types of values that bring their own length: bytes and text."""


class AwsEventStreamFraming:
    """Frames of one event stream. Each message is a frame, with its payload as data.

    Nothing is taken from a message before both of its checksums have been verified. The first thing that is wrong with
    one is a `flaw`, since lengths that cannot be trusted tell no more messages apart.
    """

    __slots__ = (
        "_held",
        "_known_headers",
        "_known_name",
        "_left_to_pass",
        "_needed",
        "_strict",
        "flaw",
        "max_frame_bytes",
    )

    name: ClassVar[str] = "aws-event-stream"
    media_types: ClassVar[frozenset[str]] = frozenset({"application/vnd.amazon.eventstream"})
    frame_end: ClassVar[bytes] = b""

    def __init__(self, max_frame_bytes: int, *, strict: bool) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._strict = strict
        self._held = bytearray()
        # How many bytes have to be held for the next step: a prelude, or the message whose prelude is held.
        self._needed = _PRELUDE_BYTES
        # Of a message too large to observe: what of it is still to come.
        self._left_to_pass = 0
        self.flaw: Failure | None = None
        # Nearly all messages of a stream bear the same headers, so the last ones are not taken apart again.
        self._known_headers = b""
        self._known_name: bytes | None = None

    @property
    def is_passing(self) -> bool:
        """Within a message too large to hold, or behind a flaw."""
        return self._left_to_pass > 0 or self.flaw is not None

    @property
    def is_settled(self) -> bool:
        """Between two messages."""
        return not self._held and not self.is_passing

    @property
    def pending(self) -> int:
        """Bytes of the partial message held back."""
        return len(self._held)

    def feed(self, data: bytes) -> Sequence[Frame]:
        """The messages completed by ``data``.

        Raises FrameTooLargeError in strict mode as soon as a prelude announces a message over the bound."""
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return ()
            data = self.take_pending()
        frames: list[Frame] = []
        at = self._pass_on(data, 0, frames) if self.is_passing else 0
        try:
            while len(data) - at >= _PRELUDE_BYTES:
                total, headers_bytes = _lengths(data, at)
                if total > self.max_frame_bytes:
                    if self._strict:
                        raise FrameTooLargeError(frames)
                    self._left_to_pass = total
                    at = self._pass_on(data, at, frames)
                elif len(data) - at < total:
                    self._needed = total
                    break
                else:
                    frames.append(self._message(data[at : at + total], headers_bytes))
                    at += total
        except _MalformedError as error:
            self.flaw = Failure("malformed_upstream", f"the upstream's event stream is broken: {error}")
            frames.append(Frame(None, data[at:]))
            return frames
        self._held += data[at:]
        return frames

    @classmethod
    def joint(cls, last: bytes) -> bytes:
        """Nothing: a message says itself where it ends."""
        return b""

    def take_pending(self) -> bytes:
        """The bytes of the partial message, which are then no longer held."""
        held = bytes(self._held)
        self._held.clear()
        self._needed = _PRELUDE_BYTES
        return held

    def flush(self) -> Sequence[Frame]:
        """Nothing: a message is whole or it is none. What is left of one is a `flaw`."""
        if self.flaw is None and (self._held or self._left_to_pass):
            self.flaw = Failure("upstream_truncated", "the upstream's event stream ends within a message")
        return ()

    def _pass_on(self, data: bytes, at: int, frames: list[Frame]) -> int:
        """Hand out what belongs to a message too large to observe, or all that follows a flaw; returns its end."""
        end = len(data) if self.flaw is not None else min(len(data), at + self._left_to_pass)
        if at < end:
            frames.append(Frame(None, data[at:end]))
        self._left_to_pass = max(0, self._left_to_pass - (end - at))
        return end

    def _message(self, raw: bytes, headers_bytes: int) -> Frame:
        """One whole message. Raises _MalformedError."""
        checked = memoryview(raw)[: -_CHECKSUM.size]
        if crc32(checked) != _CHECKSUM.unpack_from(raw, len(checked))[0]:
            raise _MalformedError("a message's checksum does not match")
        payload_at = _PRELUDE_BYTES + headers_bytes
        headers = raw[_PRELUDE_BYTES:payload_at]
        if headers != self._known_headers:
            self._known_name = _frame_name(_text_headers(headers))
            self._known_headers = headers
        return Frame(raw[payload_at : -_CHECKSUM.size], raw, self._known_name)


def encode_message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One whole message with text headers."""
    block = b"".join(
        b"%c%b%c%b%b" % (len(name.encode()), name.encode(), _STRING, _SHORT.pack(len(value.encode())), value.encode())
        for name, value in headers.items()
    )
    lengths = struct.pack(">II", _LEAST_BYTES + len(block) + len(payload), len(block))
    message = lengths + _CHECKSUM.pack(crc32(lengths)) + block + payload
    return message + _CHECKSUM.pack(crc32(message))


class _MalformedError(Exception):
    """No message can be told from here on. The text says why."""


def _lengths(data: bytes, at: int) -> tuple[int, int]:
    """Of the message whose prelude lies at ``at``: all its bytes, and those of its headers. Raises _MalformedError."""
    total, headers_bytes, checksum = _PRELUDE.unpack_from(data, at)
    if crc32(data[at : at + _CHECKED_LENGTHS_BYTES]) != checksum:
        raise _MalformedError("a prelude's checksum does not match")
    if total < _LEAST_BYTES + headers_bytes:
        raise _MalformedError("a message is shorter than what it has to hold")
    if headers_bytes > MAX_HEADERS_BYTES:
        raise _MalformedError("a message's headers are longer than the protocol allows")
    return total, headers_bytes


def _text_headers(block: bytes) -> dict[str, str]:
    """The headers that are text, once all have been found well-formed. Raises _MalformedError."""
    names: set[str] = set()
    texts: dict[str, str] = {}
    at = 0
    try:
        while at < len(block):
            name, at = _piece(block, at + 1, block[at])
            kind = block[at]
            at += 1
            if kind in _COUNTED:
                value, at = _piece(block, at + _SHORT.size, _SHORT.unpack_from(block, at)[0])
            elif kind in _FIXED_BYTES:
                value, at = _piece(block, at, _FIXED_BYTES[kind])
            else:
                raise _MalformedError("a header has a type that does not exist")
            if (key := name.decode()) in names:
                raise _MalformedError("a header comes twice")
            names.add(key)
            if kind == _STRING:
                texts[key] = value.decode()
    except (IndexError, struct.error):
        raise _MalformedError("a header is longer than its message says") from None
    except UnicodeDecodeError:
        raise _MalformedError("a header is no UTF-8") from None
    return texts


def _piece(block: bytes, start: int, size: int) -> tuple[bytes, int]:
    """``size`` bytes from ``start`` on, and where they end. Raises IndexError where the block ends before them."""
    end = start + size
    if end > len(block):
        raise IndexError
    return block[start:end], end


def _frame_name(headers: dict[str, str]) -> bytes | None:
    kind = headers.get(":message-type")
    if kind == "exception":
        return EXCEPTION + headers.get(":exception-type", "").encode()
    if kind == "error":
        return ERROR + f"{headers.get(':error-code', '')}\n{headers.get(':error-message', '')}".encode()
    event_type = headers.get(":event-type", "").encode()
    return b":" + event_type if event_type.startswith(b":") else event_type or None
