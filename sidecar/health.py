"""Whether an upstream may be asked: what streams and checks met there lately.

Owns the circuit's states and their times, and which failures count. Must not know sockets, routes or who checks; the
time is passed in.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Final

from sidecar.errors import Failure
from sidecar.settings import Circuit, HealthCheck

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTED_STATUSES: Final = frozenset({500, 502, 503, 504, 529})
"""Answers that say the upstream is not well. 429 and what else begins with a 4 is about the request or its sender."""

COUNTED_CODES: Final = frozenset(
    {
        "upstream_dns",
        "upstream_refused",
        "upstream_tls",
        "upstream_connect_timeout",
        "upstream_reset",
        "upstream_truncated",
        "upstream_not_http",
        "first_token_timeout",
    }
)

MAX_RETRY_AFTER_S: Final = 30
TRIAL_S: Final = 180.0
"""A trial that has told nothing by then never will: longer than any connection and first token are waited for."""

_JITTER_SHARE: Final = 0.2
_MAX_DOUBLINGS: Final = 32


class State(Enum):
    """What is known of an upstream. Streams are sent to one that is closed, and one stream to one that is half open."""

    __hash__ = object.__hash__

    STARTING = "starting"
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    TRIAL = "trial"
    DOWN = "down"


class Signal(Enum):
    """What moves it."""

    __hash__ = object.__hash__

    FAILED = "failed"
    SUCCEEDED = "succeeded"
    CHECK_UP = "check_up"
    CHECK_DOWN = "check_down"
    BACKOFF_OVER = "backoff_over"
    TRIAL_TAKEN = "trial_taken"
    TRIAL_UNTOLD = "trial_untold"


MOVES: Final[dict[tuple[State, Signal], State]] = {
    (State.STARTING, Signal.CHECK_UP): State.CLOSED,
    (State.CLOSED, Signal.FAILED): State.OPEN,
    (State.CLOSED, Signal.CHECK_DOWN): State.DOWN,
    (State.OPEN, Signal.BACKOFF_OVER): State.HALF_OPEN,
    (State.OPEN, Signal.SUCCEEDED): State.CLOSED,
    (State.OPEN, Signal.CHECK_DOWN): State.DOWN,
    (State.HALF_OPEN, Signal.TRIAL_TAKEN): State.TRIAL,
    (State.HALF_OPEN, Signal.SUCCEEDED): State.CLOSED,
    (State.HALF_OPEN, Signal.CHECK_DOWN): State.DOWN,
    (State.TRIAL, Signal.SUCCEEDED): State.CLOSED,
    (State.TRIAL, Signal.FAILED): State.OPEN,
    (State.TRIAL, Signal.TRIAL_UNTOLD): State.HALF_OPEN,
    (State.TRIAL, Signal.CHECK_DOWN): State.DOWN,
    (State.DOWN, Signal.CHECK_UP): State.CLOSED,
}
"""Every move. A signal that is not here leaves its state as it is: a check that is answered closes no circuit, and of
an upstream that its checks call down, streams from before say nothing."""

_UP: Final = frozenset({State.CLOSED, State.HALF_OPEN, State.TRIAL})


def counts(failure: Failure) -> bool:
    """Whether this failure of a stream, before its answer began, says that the upstream is not well."""
    return failure.code in COUNTED_CODES or (
        failure.code == "upstream_status" and failure.upstream_status in COUNTED_STATUSES
    )


class Health:
    """One upstream's. Times are seconds of one monotonic clock.

    Every `admits` that said yes is followed by exactly one of `succeeded`, `failed` and `untold`. With a ``check``
    nobody is admitted before it has been answered. ``jitter`` gives numbers from 0 to 1, which shorten backoffs;
    ``moved`` is told of every move.
    """

    __slots__ = (
        "_admitted",
        "_check",
        "_checks_in_a_row",
        "_circuit",
        "_failures",
        "_jitter",
        "_moved",
        "_name",
        "_openings",
        "_resting_until",
        "_until",
        "next_check_at",
        "state",
    )

    def __init__(
        self,
        name: str = "",
        circuit: Circuit = Circuit(),  # noqa: B008 - frozen
        check: HealthCheck | None = None,
        jitter: Callable[[], float] = float,
        moved: Callable[[State, State], None] | None = None,
    ) -> None:
        self._name = name
        self._circuit = circuit
        self._check = check
        self._jitter = jitter
        self._moved = moved
        self.state = State.STARTING if check is not None else State.CLOSED
        self.next_check_at = 0.0
        """When whoever checks will do so again."""
        self._until = 0.0
        self._resting_until = float("-inf")
        self._failures = self._openings = self._admitted = 0
        self._checks_in_a_row = 0  # answered ones above zero, unanswered ones below

    # What streams ask.

    def admits(self, now: float) -> bool:
        """Whether a stream may be sent there now. While the circuit is half open one may, and that call takes it."""
        if self.state is not State.CLOSED:
            self._look_at_the_clock(now)
            if self.state is not State.HALF_OPEN or self._is_resting(now):
                return False
            self._move(Signal.TRIAL_TAKEN)
            self._until = now + TRIAL_S
        elif now < self._resting_until and self._is_resting(now):
            return False
        self._admitted += 1
        return True

    def refusal(self, now: float) -> Failure | None:
        """Why none may: ``upstream_starting`` or ``upstream_unavailable``, with its Retry-After. None where one may.
        Takes nothing."""
        state = self.state
        if state is State.STARTING:
            words = f"upstream starting: {self._name} has not answered its health check yet"
            return Failure("upstream_starting", words, retry_after=_seconds(self.next_check_at - now))
        if state is State.DOWN:
            words = f"upstream {self._name} does not answer its health check"
            return self._unavailable(words, self.next_check_at - now)
        if state in {State.OPEN, State.TRIAL} and now < self._until:
            words = f"upstream {self._name} is left alone after failures"
            return self._unavailable(words, self._until - now if state is State.OPEN else 1)
        if self._is_resting(now):
            words = f"upstream {self._name} asked to be left alone"
            return self._unavailable(words, self._resting_until - now)
        return None

    def is_up(self, now: float) -> bool:
        """Streams may be sent there, or one may to find out. Takes nothing; may be asked from any thread."""
        return self.state in _UP or (self.state is State.OPEN and now >= self._until)

    def wait_s(self, now: float) -> float | None:
        """Seconds until it is checked or tried again; None where streams are sent there."""
        if self.state in {State.STARTING, State.DOWN}:
            return max(0.0, self.next_check_at - now)
        return max(0.0, self._until - now) if self.state is State.OPEN else None

    # What streams tell.

    def succeeded(self, now: float) -> None:
        """A stream's answer began there."""
        del now
        self._told()
        self._failures = 0
        if self.state is not State.CLOSED:
            self._move(Signal.SUCCEEDED)

    def failed(self, failure: Failure, now: float) -> None:
        """A stream met this there, before its answer began. Failures that say nothing of its health change nothing;
        but an answer that is about the request is one, and ends a trial well."""
        if counts(failure):
            self._told()
            self._count(now)
        elif failure.code == "upstream_status" and self.state is State.TRIAL:
            self.succeeded(now)
        else:
            self.untold()

    def untold(self) -> None:
        """What was taken by `admits` came to no verdict: the client left first, say."""
        self._told()
        if not self._admitted:  # else one of those that were there before the trial, or it itself, will tell yet
            self._move(Signal.TRIAL_UNTOLD)

    def rest(self, until: float) -> None:
        """It asked to be left alone until then (its Retry-After); longer than ``max_backoff_s`` it is not."""
        self._resting_until = max(self._resting_until, until)

    # What checks tell.

    def check_up(self, now: float) -> None:
        """A check was answered."""
        del now
        self._checks_in_a_row = max(self._checks_in_a_row, 0) + 1
        if self._check is not None and self._checks_in_a_row >= self._check.healthy_after:
            self._move(Signal.CHECK_UP)

    def check_down(self, now: float) -> None:
        """A check was not answered, or by an error of the server's."""
        del now
        self._checks_in_a_row = min(self._checks_in_a_row, 0) - 1
        if self._check is not None and -self._checks_in_a_row >= self._check.unhealthy_after:
            self._move(Signal.CHECK_DOWN)

    # How it moves.

    def _count(self, now: float) -> None:
        """One more failure in a row, which may be the one too many."""
        self._failures += 1
        if not self._circuit.failures or (self.state is State.CLOSED and self._failures < self._circuit.failures):
            return
        if self._move(Signal.FAILED):
            longest_s = self._circuit.max_backoff_s
            backoff_s = min(longest_s, self._circuit.backoff_s * 2 ** min(self._openings, _MAX_DOUBLINGS))
            self._until = now + backoff_s * (1 - _JITTER_SHARE * self._jitter())
            self._openings += 1

    def _look_at_the_clock(self, now: float) -> None:
        if now < self._until:
            return
        if self.state is State.OPEN:
            self._move(Signal.BACKOFF_OVER)
        elif self.state is State.TRIAL:
            self._admitted = 0
            self._move(Signal.TRIAL_UNTOLD)

    def _move(self, signal: Signal) -> bool:
        """Whether the signal led to another state."""
        before = self.state
        after = MOVES.get((before, signal))
        if after is None:
            return False
        self.state = after
        if after is State.CLOSED:
            self._failures = self._openings = 0
        if self._moved is not None:
            self._moved(before, after)
        return True

    def _told(self) -> None:
        if self._admitted:
            self._admitted -= 1

    def _is_resting(self, now: float) -> bool:
        if now >= self._resting_until:
            return False
        self._resting_until = min(self._resting_until, now + self._circuit.max_backoff_s)
        return True

    def _unavailable(self, words: str, wait_s: float) -> Failure:
        return Failure("upstream_unavailable", words, retry_after=_seconds(wait_s))


def _seconds(wait_s: float) -> str:
    return str(max(1, min(MAX_RETRY_AFTER_S, math.ceil(wait_s))))
