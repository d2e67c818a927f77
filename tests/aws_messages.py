"""AWS event-stream messages, built here by the protocol's table and not by the code under test."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

EVENT_STREAM = "application/vnd.amazon.eventstream"
TRUE, FALSE, BYTE, SHORT, INTEGER, LONG, BYTES, STRING, TIMESTAMP, UUID = range(10)


def header(name: bytes, kind: int, value: bytes = b"") -> bytes:
    """One header; ``value`` as it lies on the wire."""
    return bytes([len(name)]) + name + bytes([kind]) + value


def text(value: str) -> bytes:
    """A string's or byte array's value: its length, then it."""
    data = value.encode()
    return struct.pack(">H", len(data)) + data


def message(headers: bytes, payload: bytes, *, prelude_crc: int = 0, message_crc: int = 0) -> bytes:
    """One message; the checksums can be spoilt by a mask."""
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    prelude += struct.pack(">I", zlib.crc32(prelude) ^ prelude_crc)
    body = prelude + headers + payload
    return body + struct.pack(">I", zlib.crc32(body) ^ message_crc)


def prelude(total: int, headers: int) -> bytes:
    """The first twelve bytes of a message of these lengths."""
    lengths = struct.pack(">II", total, headers)
    return lengths + struct.pack(">I", zlib.crc32(lengths))


def event(kind: str, payload: Any, *, padding: str = "") -> bytes:
    """An event as Bedrock sends it; ``payload`` is JSON, or bytes as they are."""
    if padding:
        payload = {**payload, "p": padding}
    block = [(":event-type", kind), (":content-type", "application/json"), (":message-type", "event")]
    return message(_texts(block), payload if isinstance(payload, bytes) else msgspec.json.encode(payload))


def chunk(body: Any, **beside: Any) -> bytes:
    """A chunk of InvokeModel around ``body``: JSON, or bytes as they are."""
    native = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return event("chunk", {"bytes": base64.b64encode(native).decode(), **beside})


def exception(kind: str, payload: Any) -> bytes:
    """A modeled error."""
    block = [(":exception-type", kind), (":content-type", "application/json"), (":message-type", "exception")]
    return message(_texts(block), payload if isinstance(payload, bytes) else msgspec.json.encode(payload))


def error(code: str, words: str) -> bytes:
    """An unmodeled error."""
    return message(_texts([(":message-type", "error"), (":error-code", code), (":error-message", words)]), b"")


def _texts(pairs: Sequence[tuple[str, str]]) -> bytes:
    return b"".join(header(name.encode(), STRING, text(value)) for name, value in pairs)
