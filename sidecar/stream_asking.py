"""The half of a stream that asks upstreams, as long as none of them is its answer.

Owns what a try begins and ends with. Must not know who decides on tries, nor what is done with an answer; the stream
that stands on this passes it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.deadlines import NEVER, Deadlines
from sidecar.session import Signal, UpstreamState
from sidecar.stream_place import Placed

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.contender import Contender, Contest
    from sidecar.errors import Failure
    from sidecar.fallback import Attempt
    from sidecar.log import Log
    from sidecar.ports import Cancellable, ClientSide, Exchange, Waiter
    from sidecar.session import Session
    from sidecar.settings import Route, Upstream
    from sidecar.streams import Streams


class Asking(Placed):
    """The half of a `Stream` that the door moves.

    ``settled`` resolves when the door has something to do: the stream has ended, or it failed with nothing of an answer
    sent (``failure`` says how; ``may_resend`` that a fresh connection is worth one try).
    """

    __slots__ = (
        "_attempt",
        "_clock",
        "_dialing",
        "_streams",
        "attempts",
        "may_resend",
        "settled",
        "upstream_status",
    )

    def __init__(
        self,
        route: Route,
        session: Session,
        client: ClientSide,
        log: Log,
        streams: Streams,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(route, session, client, log)
        self.upstream_status: int | None = None
        self.attempts = 0
        self.settled: Waiter = streams.future()
        self.may_resend = False
        self._streams = streams
        self._clock = clock
        self._dialing: Cancellable | None = None
        self._attempt: Attempt[Any] | None = None

    def now(self) -> float:
        """Seconds of the clock that all its times are of."""
        return self._clock()

    def begin(
        self, upstream: Upstream, attempt: Attempt[Any] | None = None, contest: Contest | None = None, *, tries: int = 1
    ) -> bool:
        """Ready for (another) try at ``upstream``. False if the stream has ended: its client left meanwhile. What comes
        of it is told to ``attempt``; in a ``contest``, to whoever takes part there."""
        if self.session.outcome is not None:
            return False
        if self.session.upstream is UpstreamState.FAILED:
            self.session.move(Signal.NEXT_UPSTREAM)
        self._attempt = attempt
        self._contest = contest
        self.upstream = upstream
        self.upstream_status = self.session.sent_at = None
        self.attempts += tries
        self._deadlines = Deadlines(upstream.timeouts, self.session.received_at)
        self._soonest_s = min(self._deadlines.shortest_s, self.route.heartbeat_s or NEVER)  # of whatever comes next
        self.check_at = min(self.check_at, self._deadlines.total_at)  # it runs while dialling, too
        self.failure = None
        self.may_resend = False
        if self.settled.done():
            self.settled = self._streams.future()
        return True

    def dialing(self, task: Cancellable) -> None:
        """A connection is being made for this stream: the client's departure cancels it."""
        self._dialing = task

    def dialed(self) -> bool:
        """The connection is there, or will not come. False if the stream ended meanwhile."""
        self._dialing = None
        return self.session.outcome is None

    def sent(self, exchange: Exchange, *, is_whole: bool = True) -> None:
        """The request is on its way; `body_sent` follows where its body is streamed behind it."""
        self._exchange = exchange
        self.session.move(Signal.REQUEST_SENT)
        self.check_at = min(self._deadlines.total_at, self._clock() + self._soonest_s)
        if is_whole:
            self.body_sent()

    def body_sent(self) -> None:
        """The upstream has all of the request; from here to the first content the ``first_token`` deadline runs."""
        now = self._clock()
        self.session.request_sent(now)
        if self.answer is None:
            self._deadlines.request_sent(now)
            self.check_at = min(self.check_at, now + self._soonest_s)

    # What becomes of a contest.

    def lost(self, contender: Contender, failure: Failure, *, may_resend: bool) -> None:
        """Nobody is left who was asked: the door may ask somebody else."""
        self.upstream = contender.attempt.target.upstream
        self.upstream_status = contender.upstream_status
        self.may_resend = may_resend
        self.failure = failure
        self.session.move(Signal.UPSTREAM_FAILED)
        self._settle()

    def adopt(self, contender: Contender) -> None:
        """This is the upstream whose answer is the client's; its head and body follow."""
        self._contest = None
        self._attempt = contender.attempt
        self.upstream = contender.attempt.target.upstream
        self._exchange = contender.exchange
        self._deadlines = contender.deadlines
        self._soonest_s = min(self._deadlines.shortest_s, self.route.heartbeat_s or NEVER)
        self.session.sent_at = contender.sent_at

    def _tell_health(self, failure: Failure | None, now: float) -> None:
        """What came of asking: an answer, or ``failure`` before there was content in it. Heard once."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        if failure is None:
            attempt.answered(self.upstream_status or 0, now)
        else:
            attempt.failed(failure, now)

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)
