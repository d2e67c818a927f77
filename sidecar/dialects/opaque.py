"""Streams whose language is not known here: every frame passes as an extension.

Owns the naming of such frames, and the two conventions that tell an error in any language: an event called ``error``
and an object with one. Must not guess at any other meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from sidecar.dialects.aws_errors import stated_error, unmodeled_error_message
from sidecar.dialects.lenient_json import UnparseableError, parse, text_of
from sidecar.dialects.payloads import event_name, named_extension, read_object
from sidecar.dialects.upstream_errors import told_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Frame, Start, UpstreamError


class _Opaque:
    """One stream of unknown meaning. Only the end of its body completes it."""

    paths: ClassVar[tuple[str, ...]] = ()
    streams_by_default: ClassVar[bool] = False
    has_terminator: ClassVar[bool] = False
    completes_on_clean_end: ClassVar[bool] = True
    tolerates_partial_frame: ClassVar[bool] = True
    plain_start: ClassVar[bytes] = b""

    __slots__ = ("_has_started", "terminated")

    def __init__(self) -> None:
        self.terminated = False
        self._has_started = False

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The error that a frame tells, else one extension, named by its event name or by the payload's own type."""
        if not frame.data:
            return ()
        event = _event(event_name(frame), frame.data)
        if self._has_started:
            return (event,)
        self._has_started = True
        return (Start(), event)

    def decode_plain(self, payload: bytes) -> Event | None:
        """No frame of an unknown language is plain."""
        return None

    def finish(self) -> Sequence[Event]:
        """Nothing is ever held back."""
        return ()

    @property
    def is_finished(self) -> bool:
        """Never: no finish mark is known."""
        return False

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """Never: it is what is left when nobody does."""
        return False


class OpaqueSSE(_Opaque):
    """Server-sent events of unknown meaning."""

    name: ClassVar[str] = "opaque-sse"
    framings: ClassVar[tuple[str, ...]] = ("sse",)

    __slots__ = ()

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """An ``error`` event, the commonest convention there is."""
        return b"event: error\ndata: " + _error_object(failure) + b"\n\n"


class OpaqueNDJSON(_Opaque):
    """Lines of JSON of unknown meaning."""

    name: ClassVar[str] = "opaque-ndjson"
    framings: ClassVar[tuple[str, ...]] = ("ndjson",)

    __slots__ = ()

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """A line with an ``error`` object."""
        return _error_object(failure) + b"\n"


class OpaqueAwsEventStream(_Opaque):
    """AWS events of unknown meaning. Only what is an error is told by the framing itself."""

    name: ClassVar[str] = "opaque-aws-event-stream"
    framings: ClassVar[tuple[str, ...]] = ("aws-event-stream",)

    __slots__ = ()

    def decode(self, frame: Frame) -> Sequence[Event]:
        """One extension, named by the event's type, or the error that a message is."""
        if frame.data is None:
            return ()
        event = stated_error(frame) or _extension(text_of(frame.name or b""), frame.data)
        if self._has_started:
            return (event,)
        self._has_started = True
        return (Start(), event)

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """An unmodeled error, which every service's clients understand."""
        return unmodeled_error_message(failure.code, failure.message)


def _event(name: str, data: bytes) -> Extension | UpstreamError:
    read = read_object(data, name)
    if isinstance(read, UpstreamError):
        return read
    if isinstance(read, dict) and (name == "error" or read.get("error")):
        return told_error(read)
    return _extension(name, data)


def _extension(name: str, data: bytes) -> Extension:
    try:
        return named_extension(name, parse(data))
    except UnparseableError:
        # A named event whose data is text (Replicate's `output`) is not broken, only not JSON.
        return Extension(name or "unparsed", text_of(data))


def _error_object(failure: Failure) -> bytes:
    return msgspec.json.encode({"error": {"message": failure.message, "code": failure.code}})
