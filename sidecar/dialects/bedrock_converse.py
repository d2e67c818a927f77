"""Bedrock's ConverseStream: one vocabulary for every model behind it.

Owns the way from a message of the event stream to an event of Converse or an error. Must not know what the events mean
(`converse_message`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from sidecar.dialects.aws_errors import exception_message, stated_error
from sidecar.dialects.converse_message import ConverseMessage
from sidecar.dialects.lenient_json import text_of
from sidecar.dialects.payloads import object_of, read_object
from sidecar.dialects.start_gate import StartGate
from sidecar.errors import Failure, Outcome
from sidecar.events import Event, Frame

EXCEPTIONS: Final[dict[Outcome, str]] = {
    Outcome.REFUSED: "serviceUnavailableException",
    Outcome.SHUT_DOWN: "serviceUnavailableException",
    Outcome.INTERRUPTED: "serviceUnavailableException",
    Outcome.INTERNAL: "internalServerException",
}
"""What our own failures are to Bedrock's clients; all others are a broken model stream."""


class BedrockConverse:
    """One message stream. It never says what it is called: the request's path and an HTTP header do."""

    name: ClassVar[str] = "bedrock-converse"
    framings: ClassVar[tuple[str, ...]] = ("aws-event-stream",)
    paths: ClassVar[tuple[str, ...]] = ("/model/*/converse-stream",)
    streams_by_default: ClassVar[bool] = True
    has_terminator: ClassVar[bool] = True
    completes_on_clean_end: ClassVar[bool] = False
    tolerates_partial_frame: ClassVar[bool] = False
    plain_start: ClassVar[bytes] = b""

    __slots__ = ("_gate", "_message")

    def __init__(self) -> None:
        self._gate = StartGate()
        self._message = ConverseMessage()

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one message; nothing more once ``metadata`` has come behind ``messageStop``."""
        if self.terminated or frame.data is None:
            return ()
        return self._gate.admit(self._events(frame, frame.data), named=True)

    def decode_plain(self, payload: bytes) -> Event | None:
        """Nothing: what a message means lies in its headers."""
        return None

    def finish(self) -> Sequence[Event]:
        """Nothing is ever held back."""
        return ()

    @property
    def terminated(self) -> bool:
        """``metadata`` has come behind ``messageStop``."""
        return self._message.is_over

    @property
    def is_finished(self) -> bool:
        """``messageStop`` has come."""
        return self._message.is_finished

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A ``messageStart`` with its role."""
        return frame.name == b"messageStart" and "role" in object_of(frame)

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The exception that botocore raises as an `EventStreamError`."""
        return exception_message(EXCEPTIONS.get(failure.outcome, "modelStreamErrorException"), failure.message)

    def _events(self, frame: Frame, payload: bytes) -> list[Event]:
        error = stated_error(frame)
        if error is not None:
            return [error]
        kind = text_of(frame.name or b"")
        fields = read_object(payload or b"{}", kind)
        return list(self._message.decode(kind, fields)) if isinstance(fields, dict) else [fields]
