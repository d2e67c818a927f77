"""A stream whose path says nothing: its first frame that says anything says what it speaks.

Owns that one decision and hands everything else to whoever was chosen. Must not know any dialect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.dialects.stand_in import StandIn
from sidecar.events import Start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.events import Event, Frame
    from sidecar.ports import Dialect, DialectKind


MAX_UNDECIDED: Final = 16
"""Frames with data that may pass before somebody recognises one: keepalives, Azure's empty first chunk."""


class Undecided(StandIn):
    """One stream that is any of ``candidates``, the first that recognises one of its first frames; else ``fallback``.

    Until then, and where nobody does, it is the fallback's.
    """

    __slots__ = ("_candidates", "_has_started", "_hides_start", "_undecided")

    def __init__(self, candidates: Sequence[DialectKind], fallback: Dialect) -> None:
        super().__init__(fallback)
        self._candidates = candidates
        self._undecided = MAX_UNDECIDED
        self._has_started = False
        self._hides_start = False
        """The fallback has given `Start`, and whoever was chosen has yet to give it again."""

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame, which decides if somebody recognises it."""
        if not self._undecided or not frame.data:
            return self._without_start(self._actual.decode(frame))
        chosen = next((kind for kind in self._candidates if kind.recognises(frame)), None)
        if chosen is not None:
            self._actual = chosen()
            self._undecided = 0
            self._hides_start = self._has_started
            return self._without_start(self._actual.decode(frame))
        self._undecided -= 1
        events = self._actual.decode(frame)
        self._has_started = self._has_started or any(isinstance(event, Start) for event in events)
        return events

    def finish(self) -> Sequence[Event]:
        """As the dialect it is taken for."""
        return self._without_start(self._actual.finish())

    def _without_start(self, events: Sequence[Event]) -> Sequence[Event]:
        if not self._hides_start:
            return events
        others = [event for event in events if not isinstance(event, Start)]
        self._hides_start = len(others) == len(events)
        return others
