"""A stream's place among the others: waiting for one, having one, losing it to a stream of a higher class.

Owns what these mean for the stream's state. Must not know the limits, nor who else waits.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from sidecar.dialects import OPAQUE
from sidecar.session import Signal, UpstreamState
from sidecar.stream_deadlines import Timed

if TYPE_CHECKING:
    from sidecar.admission import Permit
    from sidecar.errors import Failure
    from sidecar.log import Log
    from sidecar.ports import ClientSide
    from sidecar.session import Session
    from sidecar.settings import Route
    from sidecar.waiting_line import Waiting

UNKNOWN: Final = frozenset(dialect.name for dialect in OPAQUE.values())
"""Dialects of which no event is known to be content."""

_BEFORE_TOKENS: Final = frozenset({UpstreamState.CONNECTING, UpstreamState.WAITING})


class Placed(Timed):
    """The part of a `Stream` that holds a permit, or waits for one. ``permit`` is given back when the stream ends."""

    __slots__ = ("_waiting", "failure", "permit")

    def __init__(self, route: Route, session: Session, client: ClientSide, log: Log) -> None:
        super().__init__(route, session, client, log)
        self.failure: Failure | None = None
        self.permit: Permit | None = None
        self._waiting: Waiting | None = None

    def take_place(self, permit: Permit) -> None:
        """It may run."""
        self.permit = permit
        permit.holder = self

    def wait_for_place(self, waiting: Waiting) -> None:
        """It has to wait: ``settled`` resolves when it has a place, gets none, or has ended."""
        self.session.move(Signal.NO_PLACE)
        self._waiting = waiting
        waiting.applicant = self

    def admitted(self, permit: Permit) -> None:
        """It has a place: the door goes on."""
        self._leave_line(permit.since)
        self.take_place(permit)
        self.session.move(Signal.ADMITTED)
        self._settle()

    def refused(self, failure: Failure, now: float) -> None:
        """It gets no place: the door answers."""
        self._leave_line(now)
        self.session.move(Signal.UPSTREAM_FAILED)
        self.failure = failure
        self._settle()

    def _leave_line(self, now: float) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.release()
            self.session.queued_s = now - waiting.since

    @property
    def is_preemptible(self) -> bool:
        """It has had no token. What bears none that can be read counts from its head, but not from one that is sent
        before any upstream has answered."""
        answer = self.answer
        if self.session.upstream not in _BEFORE_TOKENS or self._verdict is not None or self.session.outcome is not None:
            return False
        if answer is None or self._contest is not None:
            return True
        return answer.dialect is not None and answer.dialect.name not in UNKNOWN

    def preempt(self, failure: Failure) -> None:
        """Its place is another's: the upstream is dropped now, the client told."""
        self.fail(failure)

    @abstractmethod
    def fail(self, failure: Failure) -> None:
        """Stop: the upstream is dropped now, the client told."""

    @abstractmethod
    def _settle(self) -> None:
        """The door has something to do."""
