"""Replicate's prediction streams: text as it is, in named events.

Owns those four names. Must not know predictions' own objects, which are no streams.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.lenient_json import UnparseableError, as_dict, as_text, parse, text_of
from sidecar.dialects.payloads import event_name, named_extension
from sidecar.dialects.start_gate import StartGate
from sidecar.dialects.upstream_errors import told_error, upstream_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Frame, Token, UpstreamError

_NAMES: Final = frozenset({b"output", b"logs", b"error", b"done"})
_OWN_ID: Final = re.compile(rb"^id: ?\d+:\d+\r?$", re.MULTILINE)
"""Seconds since 1970 and a number within the second."""


class Replicate:
    """One prediction's stream, of one choice, number 0. Its ``done`` says how it ended, and is its terminator."""

    name: ClassVar[str] = "replicate"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/v1/streams/*",)
    streams_by_default: ClassVar[bool] = True
    has_terminator: ClassVar[bool] = True
    completes_on_clean_end: ClassVar[bool] = False
    tolerates_partial_frame: ClassVar[bool] = False
    plain_start: ClassVar[bytes] = b""

    __slots__ = ("_gate", "_has_failed", "terminated")

    def __init__(self) -> None:
        self.terminated = False
        self._gate = StartGate()
        self._has_failed = False

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The event of one frame; nothing more once ``done`` has come."""
        if self.terminated or frame.data is None:
            return ()
        events = list(self._event(event_name(frame), frame.data))
        return self._gate.admit(events, named=True) if events else ()

    def decode_plain(self, payload: bytes) -> Event | None:
        """Nothing: an id stands in every frame, between its name and its data."""
        return None

    def finish(self) -> Sequence[Event]:
        """Nothing is ever held back."""
        return self._gate.release()

    @property
    def is_finished(self) -> bool:
        """``done`` has come: there is no other mark."""
        return self.terminated

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """An event of one of its names with an id as only Replicate makes them."""
        return frame.name in _NAMES and _OWN_ID.search(frame.raw) is not None

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The ``error`` event that the official packages raise on."""
        return b"event: error\ndata: " + msgspec.json.encode({"detail": failure.message}) + b"\n\n"

    def _event(self, name: str, data: bytes) -> Iterator[Event]:
        if name == "output":
            if data:
                yield Token(0, text_of(data))
        elif name == "error":
            self._has_failed = True
            # ``{"detail": …}``, or whatever else stands there.
            value = _value(data)
            yield told_error(value) if isinstance(value, dict) else upstream_error(value)
        elif name == "done":
            self.terminated = True
            reason = as_text(as_dict(_value(data)).get("reason"))
            # A prediction that failed has said why before, in an event of its own.
            if reason and not self._has_failed:
                yield UpstreamError(f"the prediction ended with {reason!r}", _value(data), reason)
        elif name == "logs":
            yield Extension("logs", text_of(data))
        else:
            value = _value(data)
            yield Extension(name or "unparsed", value) if isinstance(value, str) else named_extension(name, value)


def _value(data: bytes) -> Any:
    """The JSON value of ``data``; its text where it is none."""
    try:
        return parse(data)
    except UnparseableError:
        return text_of(data)
