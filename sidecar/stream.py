"""One stream: its two sides, its deadlines, its buffer policy and its one ending.

Owns what happens between an upstream's callbacks and a client's. Must not know aiohttp, sockets or other streams; it is
told the time by the clock it is given and reaches both sides through ports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sidecar.answer import BodyMode, choose, choose_within, judge
from sidecar.client_watch import is_far_behind, is_nearly_level
from sidecar.deadlines import AFTER_TERMINATOR_S, NEVER
from sidecar.errors import Failure, FrameTooLargeError, Outcome, failure_of
from sidecar.log import Log
from sidecar.session import Reaction, Signal, UpstreamState
from sidecar.stream_asking import Asking
from sidecar.stream_deadlines import STALL_LOOK_S
from sidecar.stream_place import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.answer import Answer, Asked
    from sidecar.held_request import HeldRequest
    from sidecar.ports import ClientSide, ResponseHead
    from sidecar.session import Session
    from sidecar.settings import Route
    from sidecar.streams import Streams

_ASKED: Final = frozenset({UpstreamState.WAITING, UpstreamState.STREAMING})
_PASSED_ON_WHOLE: Final = frozenset({Outcome.COMPLETED, Outcome.UPSTREAM_REJECTED, Outcome.UPSTREAM_FAILED})


class Stream(Asking):
    """A `ResponseSink` for the upstream and the listener of one client connection."""

    __slots__ = (
        "__weakref__",
        "_held",
        "_is_whole",
        "asked",
        "is_open",
        "keep_alive",
        "noted_bytes",
    )

    def __init__(
        self,
        asked: Asked,
        route: Route,
        client: ClientSide,
        session: Session,
        streams: Streams,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(route, session, client, Log(client), streams, clock)
        self.asked = asked
        self.keep_alive = False
        self.is_open = False
        """Its client's answer began before any upstream's."""
        self.noted_bytes = 0
        """How much of it the registry's sum has."""
        self._held: HeldRequest | None = None
        self._is_whole = True

    # What people are shown.

    @property
    def phase(self) -> str:
        """The upstream's state, or "flushing" when only the client's tail is left."""
        return "flushing" if self._verdict is not None else self.session.upstream.value

    @property
    def format(self) -> str:
        """The format the answer really has, as far as that is decided."""
        return self.answer.format if self.answer is not None else self.asked.format

    @property
    def buffered_bytes(self) -> int:
        """Bytes held on this stream's behalf in this process, its request body aside."""
        held = self.lag_bytes + (self.answer.relay.pending if self.answer is not None else 0)
        if self._contest is not None:
            held += self._contest.held_bytes
        return held if self.session.content is None else held + self.session.content.size

    @property
    def lag_bytes(self) -> int:
        """How far the client is behind what has been encoded for it."""
        return self._log.held + self._client.unsent_bytes

    def open(self, answer: Answer) -> None:
        """Begin the client's answer before any upstream's; ``answer`` stands in for that until it comes."""
        self.is_open = True
        self._begin(answer)
        self.check_at = min(self.check_at, self._clock() + (self.route.heartbeat_s or NEVER))

    # From the upstream, inside its data callback.

    def on_head(self, head: ResponseHead) -> None:
        """The upstream answers: decide how it is passed on, and start the client's answer in this turn."""
        assert self.upstream is not None  # noqa: S101 - begin() came first
        self._last_bytes_at = now = self._clock()
        self.upstream_status = head.status
        given = self.asked, head, self.route, self.upstream, self.session, self._log
        try:
            answer = choose_within(*given, self.answer) if self.is_open else choose(*given, self._begin)
        except Failure as failure:
            self.fail(failure)
            return
        self.answer = answer
        self._relay = answer.relay
        if answer.dialect is None or answer.dialect.name in UNKNOWN:  # no event of an unknown stream counts as content
            self._deadlines.head_was_enough()
            self._tell_health(None, now)
        self.check_at = min(self.check_at, now + self._soonest_s)
        if answer.head is not None:
            self._begin(answer)
        elif self.is_open:
            self._let_go()

    def _begin(self, answer: Answer) -> None:
        """Start the client's answer: at the upstream's head, or once its body has said what it is."""
        assert answer.head is not None  # noqa: S101 - only then can it begin
        self.answer = answer
        self._relay = answer.relay
        self.session.has_sent = True
        if not self.is_open:
            self._let_go()
        self.keep_alive = self.asked.keep_alive and answer.mode is not BodyMode.CLOSE
        rendered, answer.head = answer.head, None  # sent once, and not kept for as long as the stream lasts
        self._client.start(rendered, is_chunked=answer.mode is BodyMode.CHUNKED)

    def on_body(self, data: bytes) -> None:
        """One read of the upstream, through to the client's transport before this returns."""
        now = self._clock()
        self._last_bytes_at = now
        session = self.session
        relay = self._relay
        try:
            relay.feed(data, now)
        except (FrameTooLargeError, Failure) as error:
            self.fail(failure_of(error, self.route.limits.max_frame_bytes))
            return
        except Exception:
            self.fail(Failure("internal", "the sidecar failed on this stream"))
            raise
        if self._log.held:
            if session.first_sent_at is None and session.first_content_at is not None:
                self._tell_health(None, now)  # of the upstream, whom a slow client is no fault of
            self._bound_buffer()
        elif session.first_sent_at is None and session.first_content_at is not None:
            session.first_sent_at = self._clock()
            self.check_at = min(self.check_at, now + self._soonest_s)
            self._tell_health(None, now)
        if relay.is_terminated:
            self._terminator_relayed(now)

    def on_last_body(self, data: bytes) -> None:
        """The read in which the upstream's body ends: what it makes leaves with the stream's last words."""
        self._relay.is_last_read = True
        self.on_body(data)

    def _terminator_relayed(self, now: float) -> None:
        """Typed clients are done at the terminator; native ones get the body's own end, within a second."""
        if self._exchange is None:
            return
        if self.format == "native":
            self._deadlines.terminated(now)
            self.check_at = min(self.check_at, now + AFTER_TERMINATOR_S)
            return
        exchange, self._exchange = self._exchange, None
        exchange.drain()
        self._finish_upstream(None)

    def on_end(self) -> None:
        """The upstream's body is whole."""
        self._exchange = None
        self._finish_upstream(None)

    def on_fail(self, failure: Failure, *, may_resend: bool) -> None:
        """The upstream's connection is gone."""
        self._exchange = None
        self.may_resend = may_resend
        self._finish_upstream(failure)

    def fail(self, failure: Failure) -> None:
        """Our own decision to stop: the upstream is dropped now, the client told."""
        self._stop_upstream()
        self._finish_upstream(failure)

    def _finish_upstream(self, failure: Failure | None) -> None:
        """The upstream side is over, one way or another: judge it and close the client's side accordingly."""
        if self.session.outcome is not None or self.session.upstream in {UpstreamState.ENDED, UpstreamState.FAILED}:
            return  # a late word: a broken upload, say, behind a whole answer or a client that has left
        now = self._clock()
        outcome, verdict = judge(self.answer, failure, now)
        if not self.may_resend:
            self._tell_health(None if self.session.first_content_at is not None else verdict, now)
        # In an answer that began before the upstream's, its rejection is no end of a body.
        self._is_whole = failure is None and not (self.is_open and outcome is Outcome.UPSTREAM_REJECTED)
        completed = outcome is Outcome.COMPLETED
        self.session.move(Signal.UPSTREAM_ENDED if completed else Signal.UPSTREAM_FAILED)
        reaction = self.session.reaction
        if reaction is Reaction.TRY_NEXT:
            self.failure = verdict
            self.answer = None
            self._settle()
            return
        self._end_answer(outcome, verdict, now)

    def _end_answer(self, outcome: Outcome, verdict: Failure | None, now: float) -> None:
        """Close the client's side, which has been sent something."""
        answer = self.answer
        assert answer is not None  # noqa: S101 - something was sent
        if self.session.first_sent_at is None and self.session.first_content_at is not None:
            self.session.first_sent_at = now
        self._verdict = (outcome, verdict)
        last = answer.relay.close(outcome, verdict, now)
        if last and (self._log.held or not self._client.is_ready):
            self._log.append(last)
            last = b""
        self._finish_when_flushed(last)

    def _finish_when_flushed(self, last: bytes = b"") -> None:
        """The ``last`` byte handed over is what makes an outcome; a client still behind keeps the stream alive."""
        if self._log.held:
            self.check_at = self._clock()
            return
        assert self._verdict is not None and self.answer is not None  # noqa: S101, PT018 - only called then
        outcome, failure = self._verdict
        if self.format == "typed" or (outcome in _PASSED_ON_WHOLE and self._is_whole):
            self._client.finish(last)
        else:
            if last:
                self._client.write(last)
            self.keep_alive = False  # closing without the last chunk is how HTTP says "not whole"
        self._announce(outcome, failure)

    # From the client's connection, inside its callbacks.

    def client_gone(self) -> None:
        """The client left (FIN, RST or half-close): the upstream is aborted before this returns."""
        if self.session.outcome is not None:
            return
        self.session.move(Signal.CLIENT_GONE)
        self._stop_upstream()
        self._client.abort()
        self._announce(Outcome.CLIENT_CANCELLED, None)

    def client_writable(self) -> None:
        """The client's transport has room again: hand over what is held, then read the upstream on."""
        log = self._log
        log.flush()
        self._streams.note_buffered(self)
        if self.session.first_sent_at is None and self.session.first_content_at is not None and not log.held:
            self.session.first_sent_at = self._clock()
        if self._verdict is not None:
            if self.session.outcome is None:
                self._finish_when_flushed()
        elif self._paused and is_nearly_level(log.held, self.route.limits):
            self._paused = False
            self._last_bytes_at = self._clock()
            if self._exchange is not None:
                self._exchange.resume()

    def client_blocked(self) -> None:
        """The client's transport is full: from now its progress is looked at."""
        now = self._clock()
        self._streams.note_buffered(self)
        if self.route.limits.on_slow_client == "pause":
            self._hold_upstream()
        self._watch.blocked(now)
        self.check_at = min(self.check_at, now + STALL_LOOK_S)

    def client_unread(self, is_unread: bool) -> None:
        """The client's leaving would go unheard (nobody reads its socket, say), or would be heard again."""
        if is_unread and self.session.outcome is None:
            self._streams.watch(self)
        else:
            self._streams.unwatch(self)

    def look_for_client(self) -> None:
        """Ask the kernel whether a client nobody reads from is still there."""
        if self._client.is_peer_gone():
            self.client_gone()

    def _bound_buffer(self) -> None:
        """The log is ahead of the client: hold the upstream back, or let the client go."""
        self._streams.note_buffered(self)
        limits = self.route.limits
        if limits.on_slow_client == "pause":
            self._hold_upstream()
        elif self.lag_bytes > limits.buffer_bytes:
            self._evict(f"the client fell more than {limits.buffer_bytes} bytes behind")

    def _hold_upstream(self) -> None:
        """Stop reading the upstream where the client is far behind."""
        if not self._paused and self._exchange is not None and is_far_behind(self.lag_bytes, self.route.limits):
            self._paused = True
            self._exchange.pause()

    def _evict(self, why: str) -> None:
        self.session.move(Signal.CLIENT_GONE)
        self._stop_upstream()
        self._client.abort()
        self._announce(Outcome.CLIENT_TOO_SLOW, Failure("client_too_slow", why))

    # What the sweep finds.

    def _body_is_over(self) -> None:
        self._stop_upstream()
        self._finish_upstream(None)

    def _out_of_time(self, late: Failure) -> None:
        if self._verdict is not None:
            self._evict("the stream ran out of time while its client was behind")
        else:
            self.fail(late)

    # The end.

    def give_up(self, failure: Failure) -> None:
        """Nobody is asked any more. With nothing sent, the door answers with an HTTP error instead of a stream; else
        the client is told here, and ``settled`` resolves anew."""
        self._stop_upstream()
        if not self.is_open or self.session.outcome is not None:
            self._announce(failure.outcome, failure)
            return
        if self.settled.done():
            self.settled = self._streams.future()
        if self.session.upstream is not UpstreamState.FAILED:
            self.session.move(Signal.UPSTREAM_FAILED)
        self._is_whole = False
        now = self._clock()
        self._end_answer(*judge(self.answer, failure, now), now)

    def crash(self) -> None:
        """A bug of ours broke off the work on this stream: end it, whatever its state."""
        if self.session.outcome is None:
            failure = Failure("internal", "the sidecar failed on this request")
            self._stop_upstream()
            if self.session.has_sent:
                self._client.abort()
            else:
                self.failure = failure  # the door answers it
            self._announce(failure.outcome, failure)

    def keep_no_connection(self) -> None:
        """Its answer, where it has yet to begin, is the last on its connection, and says so."""
        if not self.session.has_sent and self.asked.keep_alive:
            self.asked = msgspec.structs.replace(self.asked, keep_alive=False)

    def shut_down(self) -> None:
        """The process ends: say so to a client that can still be told."""
        failure = Failure("shutting_down", "the sidecar is shutting down")
        if self._dialing is not None:
            self._dialing.cancel()
        if self._waiting is not None:
            self._leave_line(self._clock())
        if self._verdict is None and (self.is_open or self.session.upstream in _ASKED):
            self.fail(failure)
        if self.session.outcome is None:
            self._stop_upstream()
            if self.session.has_sent:
                self._client.abort()
                self._announce(failure.outcome, failure)
            else:
                self.failure = failure
                self.may_resend = False
                self._settle()

    def _stop_upstream(self) -> None:
        """Drop the upstream's connection, made or in the making, or the place in the line, in this turn of the loop."""
        if self._waiting is not None:
            self._leave_line(self._clock())
        if self._contest is not None:
            contest, self._contest = self._contest, None
            contest.abort()
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.abort()

    def _announce(self, outcome: Outcome, failure: Failure | None) -> None:
        if not self.session.end(outcome, self._clock(), failure):
            return
        self._log.drop()
        self._let_go()
        if self.permit is not None:
            self.permit.release()
        if self._attempt is not None:
            self._attempt.dropped()
        self._streams.ended(self)
        self._settle()

    def hold(self, request: HeldRequest) -> None:
        """Account for the request, and let go of it as soon as an answer begins or the stream ends."""
        self._held = request
        self._streams.body_bytes += request.held_bytes
        if self.session.content is not None:
            self.session.content.keep_request(request.body or b"")

    def _let_go(self) -> None:
        if self._held is not None:
            self._streams.body_bytes -= self._held.held_bytes
            if self.session.has_sent:  # else the door still has to answer it
                self._held.let_go()
            self._held = None
