"""Upstreams that are asked for one stream until one of them is its answer: one, or two where a hedge runs.

Owns when an answer is the client's (its head, or its first content), what is kept of it until then, and that nobody
else is asked any more from that moment on. Must not know sockets, nor how connections are made; whoever asks the
upstreams is told through the stream.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from sidecar.answer import choose, choose_within, judge
from sidecar.deadlines import NEVER, Deadlines
from sidecar.dialects import OPAQUE
from sidecar.errors import Failure, FrameTooLargeError, failure_of
from sidecar.log import Log
from sidecar.session import Session, Signal, UpstreamState

if TYPE_CHECKING:
    from sidecar.answer import Answer
    from sidecar.fallback import Attempt, Attempts
    from sidecar.ports import Cancellable, Exchange, ResponseHead
    from sidecar.relay import BodyRelay
    from sidecar.stream import Stream

_UNKNOWN: Final = frozenset(dialect.name for dialect in OPAQUE.values())


class _Nowhere:
    """The reader of a log that is kept for nobody."""

    is_ready = True

    def write(self, data: bytes) -> None:
        """Nobody reads it."""


class Contest:
    """Who is being asked for ``stream``; ``attempts`` are those that it has. It lasts over several rounds, each of
    which is over when nobody is left in it."""

    __slots__ = ("_contenders", "attempts", "stream", "timer")

    def __init__(self, stream: Stream, attempts: Attempts[Any]) -> None:
        self.stream = stream
        self.attempts = attempts
        self._contenders: list[Contender] = []
        self.timer: Cancellable | None = None
        """When another upstream is asked beside the one that is."""

    @property
    def held_bytes(self) -> int:
        """What is kept of answers that are not yet the client's."""
        return sum([contender.held_bytes for contender in self._contenders])

    @property
    def only(self) -> Contender | None:
        """The one contender; None where there is none, or there are two."""
        return self._contenders[0] if len(self._contenders) == 1 else None

    def enter(self, attempt: Attempt[Any], *, is_beside: bool = False) -> Contender:
        """One more is asked; ``is_beside``: along with another."""
        contender = Contender(self, attempt, is_beside=is_beside)
        self._contenders.append(contender)
        return contender

    def check(self, now: float) -> float:
        """Apply the deadlines of all; when to look next."""
        return min([contender.check(now) for contender in tuple(self._contenders)], default=NEVER)

    def goes_on(self, failure: Failure, now: float) -> bool:
        """Whether the client may yet get another answer than one that came to this."""
        return len(self._contenders) > 1 or self.attempts.goes_on(failure, now)

    def rejected(self, contender: Contender, head: ResponseHead, now: float) -> bool:
        """Whether an answer of this status is dropped, because there is another try."""
        retry = self.stream.route.retry
        if len(self._contenders) > 1 and head.status in retry.statuses:
            return True
        return self.attempts.rejected(contender.attempt, head.status, head.headers, now)

    def lost(self, contender: Contender, failure: Failure, *, may_resend: bool = False) -> None:
        """One is out; with the last of them, the round is over."""
        self._contenders.remove(contender)
        if self._contenders:
            contender.attempt.dropped()
            self._leave(contender)
            return
        self._stop_timer()
        self.stream.lost(contender, failure, may_resend=may_resend)

    def won(self, contender: Contender) -> None:
        """One is the stream's answer: the others are dropped in this turn of the loop."""
        self._contenders.remove(contender)
        for other in self._contenders:
            self._leave(other)
        self.abort()
        self.stream.adopt(contender)

    def abort(self) -> None:
        """Drop every upstream, in this turn of the loop."""
        self._stop_timer()
        contenders, self._contenders = self._contenders, []
        for contender in contenders:
            contender.abort()

    def _leave(self, contender: Contender) -> None:
        if self.attempts.permit is not None:
            self.attempts.permit.leave(contender.attempt.target.scope)

    def _stop_timer(self) -> None:
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()


class Contender:
    """The sink of one upstream's answer until it is the client's, or nobody's."""

    __slots__ = (
        "_answer",
        "_contest",
        "_dialing",
        "_has_ended",
        "_head",
        "_held",
        "_is_beside",
        "_is_out",
        "_is_whole",
        "_relay",
        "_session",
        "attempt",
        "deadlines",
        "exchange",
        "held_bytes",
        "last_bytes_at",
        "sent_at",
        "upstream_status",
    )

    def __init__(self, contest: Contest, attempt: Attempt[Any], *, is_beside: bool = False) -> None:
        self._contest = contest
        self.attempt = attempt
        self._is_beside = is_beside
        self.exchange: Exchange | None = None
        self.deadlines = Deadlines(attempt.target.upstream.timeouts, contest.stream.session.received_at)
        self.sent_at: float | None = None
        self.last_bytes_at = NEVER
        self.upstream_status: int | None = None
        self.held_bytes = 0
        self._held: list[bytes] = []
        self._head: ResponseHead
        self._answer: Answer
        self._relay: BodyRelay
        self._session: Session
        self._dialing: Cancellable | None = None
        self._is_out = False
        self._has_ended = False
        self._is_whole = False

    # Towards the upstream, called by the door.

    @property
    def is_wanted(self) -> bool:
        """It may yet be the client's answer."""
        return not self._is_out

    def dialing(self, task: Cancellable) -> None:
        """A connection is being made: it is called off where it is wanted no more."""
        self._dialing = task

    def dialed(self) -> bool:
        """The connection is there, or will not come. False if nobody wants it any more."""
        self._dialing = None
        return not self._is_out

    def sent(self, exchange: Exchange, *, is_whole: bool = True) -> None:
        """The whole request is on its way."""
        del is_whole  # what is streamed through is sent but once, and so never in a contest
        stream = self._contest.stream
        self.exchange = exchange
        self.sent_at = now = stream.now()
        if stream.session.upstream is UpstreamState.CONNECTING:
            stream.session.move(Signal.REQUEST_SENT)
        stream.session.request_sent(now)
        self.deadlines.request_sent(now)
        stream.check_at = min(stream.check_at, now + self.deadlines.shortest_s)

    def check(self, now: float) -> float:
        """Apply the deadlines of a running exchange; when to look next."""
        if self.exchange is None:
            return NEVER
        last_bytes_at = self.last_bytes_at
        late = self.deadlines.missed(now, last_bytes_at=last_bytes_at, has_content=False, is_paused=False)
        if late is None:
            return self.deadlines.next_at(last_bytes_at=last_bytes_at, has_content=False, is_paused=False)
        self._fail(late)
        return NEVER

    def abort(self) -> None:
        """Drop the connection, made or in the making, in this turn of the loop; its upstream's health learns
        nothing."""
        self._is_out = True
        self.attempt.dropped()
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
        if self.exchange is not None:
            exchange, self.exchange = self.exchange, None
            exchange.abort()

    # From the upstream, inside its data callback.

    def on_head(self, head: ResponseHead) -> None:
        """It answers. That may be enough; its status may be a reason to ask another; else its body has to tell."""
        stream = self._contest.stream
        now = self.last_bytes_at = stream.now()
        self.upstream_status = head.status
        self._head = head
        if self._contest.rejected(self, head, now):
            self._reject(head.status, now)
            return
        is_awaited = stream.route.commit != "headers" and stream.asked.wants_stream
        if not is_awaited and self._contest.only is self:
            self._commit()
            return
        try:
            answer = self._trial(head)
        except Failure as failure:
            self._fail(failure)
            return
        speaks = answer.dialect
        if not is_awaited or speaks is None or speaks.name in _UNKNOWN or head.status >= HTTPStatus.BAD_REQUEST:
            self._commit()
            return
        self._answer, self._relay = answer, answer.relay

    def _trial(self, head: ResponseHead) -> Answer:
        """How this would be passed on, into nothing. Raises Failure as `choose` does."""
        stream = self._contest.stream
        self._session = Session(stream.session.received_at)
        self._session.move(Signal.REQUEST_SENT)
        log, upstream = Log(_Nowhere()), self.attempt.target.upstream
        if stream.is_open:
            return choose_within(stream.asked, head, stream.route, upstream, self._session, log, stream.answer)
        return choose(stream.asked, head, stream.route, upstream, self._session, log, self.begin)

    def begin(self, answer: Answer) -> None:
        """Nothing begins that is only tried."""

    def on_body(self, data: bytes) -> None:
        """One read of a body that has not said anything yet."""
        stream, session = self._contest.stream, self._session
        now = self.last_bytes_at = stream.now()
        self._held.append(data)
        self.held_bytes += len(data)
        try:
            self._relay.feed(data, now)
        except (FrameTooLargeError, Failure) as error:
            self._fail(failure_of(error, stream.route.limits.max_frame_bytes))
            return
        except Exception:
            stream.fail(Failure("internal", "the sidecar failed on this stream"))
            raise
        if self._has_said_something:
            self._commit()
        elif session.upstream_error is not None:
            _, said = judge(self._answer, None, now)
            assert said is not None  # noqa: S101 - it is that error
            self._fail_or_tell(said, now)
        elif self._relay.is_terminated or self.held_bytes > stream.route.limits.buffer_bytes:
            self._commit()

    def on_last_body(self, data: bytes) -> None:
        """The read in which the body ends."""
        self._has_ended = True
        self.on_body(data)

    def on_end(self) -> None:
        """The body is whole. One that says nothing at all is an answer too, if it is whole by its own marks."""
        now = self._contest.stream.now()
        self._has_ended = self._is_whole = True
        _, failure = judge(self._answer, None, now)
        if failure is None or self._has_said_something:
            self._commit()
        else:
            self._fail_or_tell(failure, now)

    def on_fail(self, failure: Failure, *, may_resend: bool) -> None:
        """Its connection is gone."""
        self.exchange = None
        if not may_resend:
            self.attempt.failed(failure, self._contest.stream.now())
        elif self._is_beside:  # whoever sends again does so where it sent first, which is another's place
            self.attempt.dropped()
            may_resend = False
        self._is_out = True
        self._contest.lost(self, failure, may_resend=may_resend)

    @property
    def _has_said_something(self) -> bool:
        return self._session.first_content_at is not None or self._session.is_unobserved

    # What becomes of it.

    def _commit(self) -> None:
        """This is the client's answer: from here on the stream is told, beginning with what was kept."""
        stream, exchange = self._contest.stream, self.exchange
        self._is_out = True
        self._contest.won(self)
        if exchange is not None:
            exchange.hand_to(stream)
        stream.on_head(self._head)
        body = b"".join(self._held)
        if body and stream.session.upstream is UpstreamState.WAITING:
            if self._has_ended:
                stream.on_last_body(body)
            else:
                stream.on_body(body)
        self._held.clear()
        if self._is_whole:
            stream.on_end()

    def _reject(self, status: int, now: float) -> None:
        """Its answer is not passed on, since there is another try; its end is taken in silence."""
        self.attempt.answered(status, now)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.drain()
        self._is_out = True
        words = f"the upstream answered with status {status}"
        self._contest.lost(self, Failure("upstream_status", words, upstream_status=status, retryable=True))

    def _fail_or_tell(self, failure: Failure, now: float) -> None:
        """It failed before it said anything. In a client's answer that has begun, what the upstream said of that is
        best told in its own words."""
        is_told = self._contest.stream.is_open and failure.code == "upstream_error"
        if is_told and not self._contest.goes_on(failure, now):
            self._commit()
        else:
            self._fail(failure)

    def _fail(self, failure: Failure) -> None:
        """Our own decision to stop: the connection is dropped now."""
        self.attempt.failed(failure, self._contest.stream.now())
        self.abort()
        self._contest.lost(self, failure)
