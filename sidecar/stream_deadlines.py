"""What a stream's sweep looks at: every deadline of its upstream, its client's progress and its signs of life.

Owns the order in which deadlines are judged and when to look next. Must not know what a missed one leads to; the stream
that stands on this decides.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from sidecar.client_watch import ClientWatch
from sidecar.deadlines import NEVER

if TYPE_CHECKING:
    from sidecar.answer import Answer
    from sidecar.contender import Contest
    from sidecar.deadlines import Deadlines, UpstreamTimes
    from sidecar.errors import Failure, Outcome
    from sidecar.log import Log
    from sidecar.ports import ClientSide, Exchange
    from sidecar.relay import BodyRelay
    from sidecar.session import Session
    from sidecar.settings import Route, Upstream

STALL_LOOK_S: Final = 1.0
"""How often a full client's progress is looked at."""


class Timed:
    """The half of a `Stream` that time moves. ``check_at`` is when it wants to be looked at next."""

    __slots__ = (
        "_client",
        "_contest",
        "_deadlines",
        "_exchange",
        "_last_bytes_at",
        "_log",
        "_paused",
        "_relay",
        "_soonest_s",
        "_verdict",
        "_watch",
        "answer",
        "check_at",
        "route",
        "session",
        "upstream",
    )

    def __init__(self, route: Route, session: Session, client: ClientSide, log: Log) -> None:
        self.route = route
        self.session = session
        self.upstream: Upstream | None = None
        self.answer: Answer | None = None
        self.check_at = NEVER
        self._client = client
        self._log = log
        self._exchange: Exchange | None = None
        self._contest: Contest | None = None
        self._relay: BodyRelay
        self._verdict: tuple[Outcome, Failure | None] | None = None
        self._paused = False
        self._last_bytes_at = NEVER
        self._deadlines: Deadlines
        self._soonest_s: float
        self._watch = ClientWatch(session.received_at)

    def check(self, now: float) -> None:
        """Apply every deadline that is due and say when to look next."""
        if self.upstream is None or self.session.outcome is not None:
            return
        deadlines = self._deadlines
        if (late := deadlines.missed_total(now)) is not None:
            self._out_of_time(late)
            return
        next_at = self._check_client(now)
        if self._contest is not None:
            next_at = min(next_at, self._contest.check(now))
        elif self._verdict is None and self._exchange is not None:
            self._check_upstream(now)
        if self.session.outcome is None:
            next_at = min(next_at, deadlines.next_at(**self._upstream_times()))
            self.check_at = max(next_at, now)

    def _upstream_times(self) -> UpstreamTimes:
        session = self.session
        is_running = self._exchange is not None
        return {
            "last_bytes_at": self._last_bytes_at if is_running else NEVER,
            "has_content": not is_running or session.is_unobserved or session.first_content_at is not None,
            "is_paused": self._paused,
        }

    def _check_upstream(self, now: float) -> None:
        """The deadlines that only a running exchange can miss."""
        if self._deadlines.is_over(now):
            self._body_is_over()
        elif (late := self._deadlines.missed(now, **self._upstream_times())) is not None:
            self._out_of_time(late)

    def _check_client(self, now: float) -> float:
        """The client's stall deadline while it is full, its heartbeat while all is quiet."""
        if not self._client.is_ready:
            stall_timeout_s = self.route.limits.stall_timeout_s
            if self._watch.is_stalled(self._client.undelivered_bytes(), now, stall_timeout_s):
                self._evict(f"the client took nothing for {stall_timeout_s:g} s")
                return NEVER
            return now + min(STALL_LOOK_S, stall_timeout_s / 4)
        if self.answer is None or not self.answer.heartbeat or self._verdict is not None or self._log.held:
            return NEVER
        due_at = self._watch.quiet_since(self._log.end, self._last_bytes_at) + self.route.heartbeat_s
        if now < due_at or not self._relay.is_between_frames:
            return max(due_at, now)
        self._client.write(self.answer.heartbeat)
        self._watch.heartbeat_sent(now)
        return now + self.route.heartbeat_s

    @abstractmethod
    def _out_of_time(self, late: Failure) -> None:
        """A deadline has passed."""

    @abstractmethod
    def _body_is_over(self) -> None:
        """What was waited for behind the terminator has not come: nobody misses it."""

    @abstractmethod
    def _evict(self, why: str) -> None:
        """The client takes nothing."""
