"""The state of one stream: where its two sides are, what it has used, when things happened, how it ended.

Owns the table of legal moves, the clock marks, the usage totals and the one outcome. Must not know bytes,
sockets or tasks; the time is always passed in.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from sidecar.deadlines import NEVER
from sidecar.errors import ENDINGS, Failure, Outcome
from sidecar.events import Finish, Media, Reasoning, Refusal, Start, Token, ToolCall, UpstreamError, Usage
from sidecar.ports import Ended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.events import Event
    from sidecar.kept_content import KeptContent


class UpstreamState(Enum):
    """How far the upstream is: waiting for a place, a request on its way, accepted and silent, producing, or over."""

    __hash__ = object.__hash__  # members are singletons; Enum would hash their names, in Python, at every look-up

    QUEUED = "queued"
    CONNECTING = "connecting"
    WAITING = "waiting"
    STREAMING = "streaming"
    ENDED = "ended"
    FAILED = "failed"


class ClientState(Enum):
    """Whether somebody reads: attached, away (may come back where the route lets it), or gone for good."""

    __hash__ = object.__hash__  # members are singletons; Enum would hash their names, in Python, at every look-up

    ATTACHED = "attached"
    AWAY = "away"
    GONE = "gone"


class Signal(Enum):
    """What can happen to a stream."""

    __hash__ = object.__hash__  # members are singletons; Enum would hash their names, in Python, at every look-up

    NO_PLACE = "no_place"
    ADMITTED = "admitted"
    REQUEST_SENT = "request_sent"
    CONTENT = "content"
    UPSTREAM_ENDED = "upstream_ended"
    UPSTREAM_FAILED = "upstream_failed"
    NEXT_UPSTREAM = "next_upstream"
    CLIENT_LEFT = "client_left"
    CLIENT_RETURNED = "client_returned"
    CLIENT_GONE = "client_gone"


class Reaction(Enum):
    """What a joint state calls for."""

    CARRY_ON = "carry on"
    TRY_NEXT = "next upstream of the route, or an HTTP error"
    TELL_CLIENT = "a terminal error in the client's format, then the end"
    ABORT_UPSTREAM = "abort the upstream in this turn of the loop"
    CLOSE = "nothing is left to do"


class IllegalMoveError(Exception):
    """A move the table does not know: a bug in the caller, never an accident of the network."""


_U, _C, _S = UpstreamState, ClientState, Signal

UPSTREAM_MOVES: Final[dict[UpstreamState, dict[Signal, UpstreamState]]] = {
    _U.QUEUED: {_S.ADMITTED: _U.CONNECTING, _S.UPSTREAM_FAILED: _U.FAILED},
    _U.CONNECTING: {_S.NO_PLACE: _U.QUEUED, _S.REQUEST_SENT: _U.WAITING, _S.UPSTREAM_FAILED: _U.FAILED},
    _U.WAITING: {
        _S.CONTENT: _U.STREAMING,
        _S.UPSTREAM_ENDED: _U.ENDED,
        _S.UPSTREAM_FAILED: _U.FAILED,
    },
    _U.STREAMING: {
        _S.CONTENT: _U.STREAMING,
        _S.UPSTREAM_ENDED: _U.ENDED,
        _S.UPSTREAM_FAILED: _U.FAILED,
    },
    _U.ENDED: {},
    _U.FAILED: {_S.NEXT_UPSTREAM: _U.CONNECTING},
}

CLIENT_MOVES: Final[dict[ClientState, dict[Signal, ClientState]]] = {
    _C.ATTACHED: {_S.CLIENT_LEFT: _C.AWAY, _S.CLIENT_GONE: _C.GONE},
    _C.AWAY: {_S.CLIENT_RETURNED: _C.ATTACHED, _S.CLIENT_GONE: _C.GONE},
    _C.GONE: {},
}

_BEFORE_END: Final = (_U.QUEUED, _U.CONNECTING, _U.WAITING, _U.STREAMING)

REACTIONS: Final[dict[tuple[UpstreamState, ClientState, bool], Reaction]] = {
    # (upstream, client, something was sent to the client): what to do
    **{(u, _C.ATTACHED, sent): Reaction.CARRY_ON for u in _BEFORE_END for sent in (False, True)},
    **{
        (u, c, sent): Reaction.ABORT_UPSTREAM for u in _BEFORE_END for c in (_C.AWAY, _C.GONE) for sent in (False, True)
    },
    (_U.FAILED, _C.ATTACHED, False): Reaction.TRY_NEXT,
    (_U.FAILED, _C.ATTACHED, True): Reaction.TELL_CLIENT,
    **{(_U.ENDED, _C.ATTACHED, sent): Reaction.CLOSE for sent in (False, True)},
    **{
        (u, c, sent): Reaction.CLOSE
        for u in (_U.ENDED, _U.FAILED)
        for c in (_C.AWAY, _C.GONE)
        for sent in (False, True)
    },
}

_CONTENT_EVENTS: Final = frozenset({Token, Reasoning, Refusal, ToolCall, Media})


def _bears_content(event: Event) -> bool:
    """Text, reasoning, refusal, tool-call arguments or media; not a role, a name or an empty delta."""
    match event:
        case Token(text=text) | Reasoning(text=text) | Refusal(text=text):
            return bool(text)
        case ToolCall(arguments=arguments):
            return bool(arguments)
        case Media(data=data):
            return bool(data)
    return False


class Session:
    """One stream's state. Times are seconds of one monotonic clock; ``received_at`` is when its head had been read."""

    __slots__ = (
        "body_read_at",
        "client",
        "content",
        "content_events",
        "ended_at",
        "failure",
        "finishes",
        "first_content_at",
        "first_sent_at",
        "has_sent",
        "is_unobserved",
        "largest_gap_s",
        "last_content_at",
        "outcome",
        "queued_s",
        "received_at",
        "sent_at",
        "start",
        "upstream",
        "upstream_error",
        "usage",
        "warnings",
    )

    def __init__(self, received_at: float) -> None:
        self.upstream = UpstreamState.CONNECTING
        self.client = ClientState.ATTACHED
        self.has_sent = False
        self.is_unobserved = False
        """What the upstream sends cannot be read here, only passed on."""
        self.outcome: Outcome | None = None
        self.failure: Failure | None = None
        self.upstream_error: UpstreamError | None = None
        self.start: Start | None = None
        self.usage: Usage | None = None
        self.finishes: dict[int, Finish] | None = None
        self.warnings: tuple[str, ...] = ()
        self.content: KeptContent | None = None
        """What is said, where that is to be kept."""
        self.content_events = 0
        self.received_at = received_at
        self.body_read_at: float | None = None
        self.queued_s: float | None = None
        """How long it waited for a place, where it had to."""
        self.sent_at: float | None = None
        self.first_content_at: float | None = None
        self.first_sent_at: float | None = None
        self.last_content_at = NEVER
        """Before the first content so late that no wait counts from it: one comparison serves every token."""
        self.largest_gap_s = -1.0
        """The longest wait between two events with content; below 0 where there were fewer than two."""
        self.ended_at: float | None = None

    def move(self, signal: Signal) -> None:
        """Take one legal step; `reaction` says what is called for then. Raises IllegalMoveError for any other."""
        if signal in UPSTREAM_MOVES[self.upstream]:
            self.upstream = UPSTREAM_MOVES[self.upstream][signal]
        elif signal in CLIENT_MOVES[self.client]:
            self.client = CLIENT_MOVES[self.client][signal]
        else:
            raise IllegalMoveError(f"{signal.value} while {self.upstream.value}/{self.client.value}")

    @property
    def reaction(self) -> Reaction:
        """What the present joint state calls for."""
        return REACTIONS[self.upstream, self.client, self.has_sent]

    def request_sent(self, now: float) -> None:
        """The upstream has all of the request. Where content came before that, no time to it can be told."""
        if self.body_read_at is None:
            self.body_read_at = now
        if self.first_content_at is None:
            self.sent_at = now

    def advance(self, events: Sequence[Event], now: float) -> None:
        """Take note of what one frame meant: content counts and times, usage, finish marks, an error in the stream."""
        for event in events:
            kind = event.__class__
            if kind in _CONTENT_EVENTS:
                self.content_events += 1
                if self.first_content_at is None:
                    self._first_content(event, now)
                    continue
                gap_s = now - self.last_content_at
                if gap_s > self.largest_gap_s:
                    self.largest_gap_s = gap_s
                self.last_content_at = now
            elif kind is Usage:
                self.usage = event  # type: ignore[assignment]  # narrowed by class identity, not isinstance, for speed
            elif kind is Finish:
                if self.finishes is None:
                    self.finishes = {}
                self.finishes[event.index] = event  # type: ignore[union-attr,assignment]  # as above
            elif kind is Start:
                self.start = event  # type: ignore[assignment]  # as above
            elif kind is UpstreamError and self.upstream_error is None:
                self.upstream_error = event  # type: ignore[assignment]  # as above

    def _first_content(self, event: Event, now: float) -> None:
        if _bears_content(event):
            self.first_content_at = self.last_content_at = now
            self.move(Signal.CONTENT)

    def end(self, outcome: Outcome, now: float, failure: Failure | None = None) -> bool:
        """Announce how the stream ended. The first announcement stands; later ones return False and change nothing."""
        if self.outcome is not None:
            return False
        self.outcome = outcome
        self.failure = failure
        self.ended_at = now
        return True

    @property
    def ttft_s(self) -> float | None:
        """The client's time to first token, t3−t0, in seconds; None where no content came."""
        return None if self.first_sent_at is None else self.first_sent_at - self.received_at

    def ended(self, outcome: Outcome, failure: Failure | None, now: float) -> Ended:
        """What a format tells the client at the end of the stream."""
        ttft_s = self.ttft_s
        return Ended(
            status=ENDINGS[outcome].done_status or "failed",
            finish_reasons=[self.finishes[index] for index in sorted(self.finishes)] if self.finishes else [],
            ttft_ms=None if ttft_s is None else ttft_s * 1000,
            duration_ms=(now - self.received_at) * 1000,
            content_events=self.content_events,
            warnings=list(self.warnings),
            usage=self.usage,
            failure=failure,
        )
