"""What every dialect whose frames are JSON objects does alike.

Owns the way from a frame to its object, who is told of what cannot be read, and that `Start` comes first. Must not know
what any object means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from sidecar.dialects.numbered import within_bounds
from sidecar.dialects.payloads import event_name, read_object
from sidecar.dialects.start_gate import StartGate
from sidecar.events import Event, Frame


class JsonStream(ABC):
    """One stream of objects. A dialect says what an object means and when the stream has named itself or ended."""

    has_terminator: ClassVar[bool] = True
    completes_on_clean_end: ClassVar[bool] = False
    tolerates_partial_frame: ClassVar[bool] = False
    streams_by_default: ClassVar[bool] = False
    plain_start: ClassVar[bytes] = b""

    __slots__ = ("_gate", "terminated")

    def __init__(self) -> None:
        self.terminated = False
        self._gate = StartGate()

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame; nothing more once the stream has terminated."""
        data = frame.data
        if self.terminated or not data:
            return ()
        name = event_name(frame)
        fields = read_object(data, name)
        if not isinstance(fields, dict):
            return self._gate.admit([fields], named=False)
        events = list(within_bounds(self._object(fields, name), name, fields))
        response_id, model, named = self._name(fields)
        return self._gate.admit(events, response_id=response_id, model=model, named=named or self.terminated)

    def decode_plain(self, payload: bytes) -> Event | None:
        """Nothing has a lane of its own, unless the dialect gives it one."""
        return None

    def finish(self) -> Sequence[Event]:
        """What was held back for a name that never came."""
        return self._gate.release()

    @abstractmethod
    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        """The events of one object; ``name`` is its frame's event name, "" for none. May set ``terminated``."""

    @abstractmethod
    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        """The response id and model that an object tells ("" for none), and whether that is all it will ever be."""
