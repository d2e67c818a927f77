"""Which upstreams a request is sent to: in what order, how often, how soon again, and after which failures.

Owns a route's budget of second tries and its shares, and of one request what may yet be asked. Must not know streams,
sockets or bodies; times and chance are passed in.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from sidecar.errors import Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.admission import Permit
    from sidecar.health import Health
    from sidecar.ports import Scope
    from sidecar.settings import Retry, Route, Upstream

BUDGET_WINDOW_S: Final = 10
BUDGET_FLOOR_PER_S: Final = 3
"""So many second tries a second are always within the budget, or a route with few requests would never have one."""

FIRST_BACKOFF_S: Final = 0.25
"""Before an upstream is asked a second time, doubled each time after that; half of it is left to chance."""

_MAX_DOUBLINGS: Final = 16
_WORTH_ANOTHER: Final = frozenset({Outcome.UPSTREAM_UNREACHABLE, Outcome.UPSTREAM_BROKEN, Outcome.TIMED_OUT})
_ABOUT_THE_REQUEST: Final = ("invalid", "validation", "context_length", "content_")
"""How providers' codes begin that say, inside a stream, that nobody else would do better with this request."""


class Why(Enum):
    """Why an upstream was not asked, or nobody any more."""

    __hash__ = object.__hash__  # members are singletons; Enum would hash their names, in Python, at every look-up

    ASKED = "asked already"
    RUNNING = "being asked now"
    LATER = "asked to be left alone for longer than is waited"
    UNWELL = "not well, by its health"
    FULL = "has as many streams as it may"
    ATTEMPTS = "no attempt is left"
    BUDGET = "the route's budget of second tries is spent"


class Candidate(Protocol):
    """An upstream as far as it matters here."""

    @property
    def upstream(self) -> Upstream:
        """Its settings."""

    @property
    def health(self) -> Health:
        """What is known of it."""

    @property
    def scope(self) -> Scope:
        """What limits its streams."""


C = TypeVar("C", bound=Candidate)


class Attempt(Generic[C]):
    """One request's turn at one upstream, after ``wait_s``. Whatever comes of it, the upstream's health is told once;
    later words change nothing."""

    __slots__ = ("_health", "target", "wait_s")

    def __init__(self, target: C, wait_s: float = 0.0) -> None:
        self.target = target
        self.wait_s = wait_s
        self._health: Health | None = target.health

    def answered(self, status: int, now: float) -> None:
        """Its answer began."""
        health, self._health = self._health, None
        if health is None:
            return
        if status < 400:
            health.succeeded(now)
        else:
            health.failed(Failure("upstream_status", f"status {status}", upstream_status=status), now)

    def failed(self, failure: Failure, now: float) -> None:
        """It came to this."""
        health, self._health = self._health, None
        if health is not None:
            health.failed(failure, now)

    def dropped(self) -> None:
        """Nobody waits for it any more, and it had told nothing."""
        health, self._health = self._health, None
        if health is not None:
            health.untold()


class Budget:
    """How many second tries a route may have: a share of its requests of the last ten seconds, and a floor."""

    __slots__ = ("_at", "_requests", "_share", "_tries")

    def __init__(self, share: float) -> None:
        self._share = share
        self._at = 0
        self._requests = [0] * BUDGET_WINDOW_S
        self._tries = [0] * BUDGET_WINDOW_S

    def asked(self, now: float) -> None:
        """A request is sent for the first time."""
        self._turn(now)
        self._requests[self._at % BUDGET_WINDOW_S] += 1

    def has_another(self, now: float) -> bool:
        """Whether there may be one more second try."""
        if not self._share:
            return False
        self._turn(now)
        return sum(self._tries) < max(BUDGET_FLOOR_PER_S * BUDGET_WINDOW_S, self._share * sum(self._requests))

    def tried(self, now: float) -> None:
        """A request is sent once more."""
        self._turn(now)
        self._tries[self._at % BUDGET_WINDOW_S] += 1

    def _turn(self, now: float) -> None:
        at = int(now)
        if at == self._at:
            return
        for second in range(max(self._at + 1, at - BUDGET_WINDOW_S + 1), at + 1):
            self._requests[second % BUDGET_WINDOW_S] = self._tries[second % BUDGET_WINDOW_S] = 0
        self._at = max(at, self._at)


class Fallback:
    """What the requests of one route share: the budget of their second tries, and whose turn it is to be asked first.

    The first is chosen smoothly by weight: of weights 2 and 1 it is a, b, a, a, b, a. The others follow, the heavier
    first. Without weights the order is the route's own.
    """

    __slots__ = ("_credits", "_followers", "budget", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.budget = Budget(route.retry.budget)
        self._credits = [0] * len(route.weights)
        heaviest_first = sorted(zip(route.weights, route.upstreams, strict=False), key=lambda pair: -pair[0])
        self._followers = tuple(name for _, name in heaviest_first)

    def order(self) -> tuple[str, ...]:
        """Whom the next request asks, one after the other."""
        weights, credit = self.route.weights, self._credits
        if not weights:
            return self.route.upstreams
        for position, weight in enumerate(weights):
            credit[position] += weight
        chosen = credit.index(max(credit))
        credit[chosen] -= sum(weights)
        first = self.route.upstreams[chosen]
        return (first, *(name for name in self._followers if name != first))


class Attempts(Generic[C]):
    """What one request may yet ask. ``chance`` gives numbers from 0 to 1, ``wall_clock`` seconds since 1970.

    A request that can be sent but once (``is_repeatable`` is false) has one attempt, at the first that may be asked.
    """

    __slots__ = (
        "_asked",
        "_candidates",
        "_chance",
        "_fallback",
        "_next",
        "_not_before",
        "_permit",
        "_ready",
        "_wall_clock",
        "left",
        "reasons",
    )

    def __init__(
        self,
        fallback: Fallback,
        candidates: Sequence[C],
        permit: Permit | None,
        chance: Callable[[], float],
        wall_clock: Callable[[], float],
        *,
        is_repeatable: bool = True,
    ) -> None:
        self._fallback = fallback
        self._candidates = candidates
        self._permit = permit
        self._chance = chance
        self._wall_clock = wall_clock
        self._asked = [0] * len(candidates)
        self._not_before: dict[str, float] = {}
        self._next = 0
        self._ready: Attempt[C] | None = None
        self.left = (self._retry.attempts or len(candidates)) if is_repeatable else 1
        """Attempts that may still be made."""
        self.reasons: list[tuple[str, Why]] = []
        """Who was not asked when somebody was looked for, and why; the last time that nobody is, a word without a
        name."""

    @property
    def _retry(self) -> Retry:
        return self._fallback.route.retry

    @property
    def permit(self) -> Permit | None:
        """Which places at upstreams are taken by."""
        return self._permit

    def claim(self, now: float, *, beside: C | None = None) -> Attempt[C] | None:
        """The next attempt, for which its upstream's place and word are taken; None where there is none. With
        ``beside`` it is one that runs along with that one's, and has to be another's."""
        if self._ready is not None and beside is None:
            ready, self._ready = self._ready, None
            return ready
        if self.left <= 0:
            self.reasons.append(("", Why.ATTEMPTS))
            return None
        is_second = any(self._asked)
        budget = self._fallback.budget
        if is_second and not budget.has_another(now):
            self.reasons.append(("", Why.BUDGET))
            return None
        for _ in self._candidates:
            position = self._next
            self._next = (position + 1) % len(self._candidates)
            candidate = self._candidates[position]
            wait_s = self._wait_s(position, now)
            why = self._obstacle(position, candidate, now + wait_s, wait_s, beside)
            if why is not None:
                self.reasons.append((candidate.upstream.name, why))
                continue
            if is_second:
                budget.tried(now)
            else:
                budget.asked(now)
            self._asked[position] += 1
            self.left -= 1
            return Attempt(candidate, wait_s)
        return None

    def _wait_s(self, position: int, now: float) -> float:
        """How long it is left alone: it has said so, or it has just failed."""
        wait_s = self._not_before.get(self._candidates[position].upstream.name, now) - now
        asked = self._asked[position]
        if asked:
            backoff_s = FIRST_BACKOFF_S * 2.0 ** min(asked - 1, _MAX_DOUBLINGS) * (1 + self._chance()) / 2
            wait_s = max(wait_s, min(backoff_s, self._retry.max_wait_s))
        return max(wait_s, 0.0)

    def _obstacle(self, position: int, candidate: C, then: float, wait_s: float, beside: C | None) -> Why | None:
        """Why it cannot be asked; None where it can, and its health has counted it in and a place there is taken."""
        if candidate is beside:
            return Why.RUNNING
        if self._asked[position] and not self._retry.attempts:
            return Why.ASKED
        if wait_s > (0.0 if beside is not None else self._retry.max_wait_s):
            return Why.LATER
        if not candidate.health.admits(then):
            return Why.UNWELL
        permit = self._permit
        if permit is None:
            return None
        has_place = permit.enter(candidate.scope) if beside is None else permit.also(candidate.scope)
        if not has_place:
            candidate.health.untold()
            return Why.FULL
        return None

    def rejected(self, attempt: Attempt[C], status: int, headers: Sequence[tuple[bytes, bytes]], now: float) -> bool:
        """An answer of this status came. Whether somebody else is asked instead, who is then ready to be claimed; else
        it is passed on."""
        if status not in self._retry.statuses:
            return False
        upstream = attempt.target.upstream
        wait_s = retry_after_s(headers, self._wall_clock())
        if wait_s is not None:
            self._not_before[upstream.name] = now + wait_s
        self._ready = self.claim(now)
        if self._ready is None:
            return False
        # What was said to a client's own credentials is not for others'.
        if wait_s is not None and upstream.credentials.policy in {"replace", "none"}:
            attempt.target.health.rest(now + wait_s)
        return True

    def leads_on(self, failure: Failure) -> bool:
        """Whether another upstream may do better, where the client has been sent nothing."""
        if failure.outcome in _WORTH_ANOTHER:
            return failure.code != "total_timeout"
        status = failure.upstream_status
        if failure.outcome is Outcome.UPSTREAM_REJECTED:
            return status in self._retry.statuses
        if failure.outcome is Outcome.UPSTREAM_FAILED:
            is_theirs = status is None or status >= 500 or status in self._retry.statuses
            return is_theirs and not failure.provider_code.lower().startswith(_ABOUT_THE_REQUEST)
        return False

    def goes_on(self, failure: Failure, now: float) -> bool:
        """Whether somebody is asked after this failure, who is then ready to be claimed."""
        if self._ready is None and self.leads_on(failure):
            self._ready = self.claim(now)
        return self._ready is not None

    def refusal(self, now: float) -> Failure:
        """Why nobody was asked at all."""
        if any(why is Why.FULL for _, why in self.reasons):
            return Failure("overloaded", "the upstreams of this route have as many streams as they may")
        for candidate in self._candidates:
            if (failure := candidate.health.refusal(now)) is not None:
                return failure
        return Failure("upstream_unavailable", "no upstream of this route may be asked now")

    def close(self) -> None:
        """Nobody will be asked any more."""
        if self._ready is not None:
            self._ready.dropped()
            self._ready = None


def retry_after_s(headers: Sequence[tuple[bytes, bytes]], wall_clock_s: float) -> float | None:
    """How long an answer asks to wait: ``Retry-After-Ms``, or ``Retry-After`` in seconds or as a date, which is told
    from the answer's own ``Date`` where it has one. None where it says nothing that can be read."""
    said = {name.lower(): value.strip() for name, value in headers if name.lower() in _ABOUT_TIME}
    milliseconds = said.get(b"retry-after-ms", b"")
    if milliseconds.isdigit():
        return int(milliseconds[:_MAX_DIGITS]) / 1000
    after = said.get(b"retry-after", b"")
    if after.isdigit():
        return float(after[:_MAX_DIGITS])
    until = _date(after)
    if until is None:
        return None
    since = _date(said.get(b"date", b""))
    return max(0.0, until - (wall_clock_s if since is None else since))


_ABOUT_TIME: Final = frozenset({b"retry-after-ms", b"retry-after", b"date"})
_MAX_DIGITS: Final = 12


def _date(text: bytes) -> float | None:
    if not text:
        return None
    try:
        return parsedate_to_datetime(text.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return None
