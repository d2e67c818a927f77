"""Who may have a stream: permits, each held until its stream ends, and who is refused one.

Owns the limits and what is said of them. Must not know requests, clients or sockets; where streams are counted is its
`Counts`' business, in which order those wait that get no place at once is `waiting_line`'s. It is told the time by the
clock it is given.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.errors import Failure
from sidecar.ports import Scope
from sidecar.waiting_line import Line, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.ports import Counts
    from sidecar.settings import Route, Settings
    from sidecar.waiting_line import Key

RANKS: Final = {"low": 0, "normal": 1, "high": 2}

LOOK_INTERVAL_S: Final = 0.02
"""How often the line is looked at while somebody waits: for deadlines, and for places that came free unheard."""

RECHECK_INTERVAL_S: Final = 0.25
"""How often places are looked for that nobody else can have freed: another configuration may have made some."""

MIN_RETRY_AFTER_S: Final = 1
MAX_RETRY_AFTER_S: Final = 30

_SHARE_OF_LATEST: Final = 0.1
"""How much the latest stream moves the average of how long a place is held."""

_FULL: Final = {
    "process": "the sidecar has as many streams as it may, {limit}",
    "route": "this route has as many streams as it may, {limit}",
    "upstream": "the upstreams of this route have as many streams as they may",
    "caller": "this caller has as many streams as it may, {limit}",
}


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a request of one route needs a place in, and what it may do where there is none. ``upstreams`` are those of
    the route in order, () where none of them is limited; one of them is enough."""

    route: str
    scopes: tuple[Scope, ...]
    upstreams: tuple[Scope, ...] = ()
    caller_streams: int = 0
    """How many one caller may have over all routes; 0 is no limit."""
    route_caller_streams: int = 0
    """How many one caller may have on this route."""
    rank: int = 1
    preempts: bool = False
    queue: int = 0
    queue_timeout_s: float = 5.0

    @property
    def has_caller_limit(self) -> bool:
        """Somebody has to say who calls."""
        return bool(self.caller_streams or self.route_caller_streams)

    def callers(self, name: str) -> tuple[Scope, ...]:
        """The scopes of the caller of this ``name``."""
        scopes = (
            Scope("caller", name, self.caller_streams),
            Scope("caller", f"{self.route}/{name}", self.route_caller_streams),
        )
        return tuple([scope for scope in scopes if scope.limit])


def terms_of(route: Route, settings: Settings) -> Terms | None:
    """What requests of ``route`` need places in; None where nothing limits them."""
    limits = route.limits
    scopes = Scope("process", "", settings.max_streams), Scope("route", route.name, limits.streams)
    upstreams = tuple([Scope("upstream", name, settings.upstreams[name].max_streams) for name in route.upstreams])
    terms = Terms(
        route.name,
        tuple([scope for scope in scopes if scope.limit]),
        upstreams if any(scope.limit for scope in upstreams) else (),
        settings.callers.streams,
        limits.caller_streams,
        RANKS[route.priority],
        route.preempt,
        limits.queue,
        limits.queue_timeout_s,
    )
    return terms if terms.scopes or terms.upstreams or terms.has_caller_limit else None


class Holder(Protocol):
    """Who holds a permit."""

    @property
    def is_preemptible(self) -> bool:
        """It has had no token yet, and so can be ended at little loss. Once false, it stays so."""

    def preempt(self, failure: Failure) -> None:
        """End now: the place is another's."""


class Permit:
    """The right to hold one active stream in ``scopes``, and at one upstream at a time; at two while a hedge runs.

    ``owner`` hears of every place that it leaves; ``rank`` is the class of its stream, ``since`` when it began.
    """

    __slots__ = ("_beside", "_counts", "_owner", "_scopes", "_upstream", "holder", "is_released", "rank", "since")

    def __init__(
        self,
        counts: Counts,
        scopes: Sequence[Scope],
        upstream: Scope | None = None,
        owner: Admission | None = None,
        rank: int = 1,
        since: float = 0.0,
    ) -> None:
        self._counts = counts
        self._scopes = scopes
        self._upstream = upstream
        self._beside: Scope | None = None
        self._owner = owner
        self.rank = rank
        self.since = since
        self.holder: Holder | None = None
        self.is_released = False

    @property
    def upstream(self) -> Scope | None:
        """Where its stream is."""
        return self._upstream

    def holds(self, scopes: Sequence[Scope]) -> bool:
        """Whether it has a place in every one of ``scopes``."""
        return all(scope in self._scopes for scope in scopes)

    def enter(self, upstream: Scope) -> bool:
        """The stream turns to this upstream and leaves the one before. False, and nothing changed, where it is full, or
        the place is another's by now."""
        left = self._upstream
        if left == upstream:
            return True
        if not self._may_take(upstream):
            return False
        self._upstream = upstream
        self._give(left)
        return True

    def also(self, upstream: Scope) -> bool:
        """A place at a second upstream, beside the one the stream is at. False where that is full."""
        if self._beside is not None or not self._may_take(upstream):
            return False
        self._beside = upstream
        return True

    def leave(self, upstream: Scope) -> None:
        """The stream is at the other of its two upstreams alone. Nothing where it is at one."""
        if self._beside is None:
            return
        left, self._beside = self._beside, None
        if upstream != left:
            self._upstream, left = left, self._upstream
        self._give(left)

    def release(self) -> None:
        """The stream is over. Idempotent."""
        if self.is_released:
            return
        self.is_released = True
        self.holder = None
        freed = tuple(self._scopes)
        for upstream in (self._upstream, self._beside):
            if upstream is not None and upstream.limit:
                freed = (*freed, upstream)
        self._beside = None
        if freed:
            self._counts.give(freed)
        if self._owner is not None:
            self._owner.released(self, freed)

    def _may_take(self, upstream: Scope) -> bool:
        return not self.is_released and (not upstream.limit or self._counts.take((upstream,)) is None)

    def _give(self, upstream: Scope | None) -> None:
        if upstream is not None and upstream.limit:
            self._counts.give((upstream,))
            if self._owner is not None:
                self._owner.freed((upstream,))


class Admission:
    """Every limit of one process, and everybody who waits for a place."""

    def __init__(self, counts: Counts, clock: Callable[[], float]) -> None:
        self._counts = counts
        self._clock = clock
        self._line = Line()
        self._recheck_at = 0.0
        self._held_s: dict[Key, float] = {}
        self._tokenless: tuple[OrderedDict[Permit, None], ...] = tuple(OrderedDict() for _ in RANKS)
        """By rank, permits of streams that may be preempted, oldest first; what may not be any more, falls out when it
        is looked at."""

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return self._line.size

    def admit(self, terms: Terms, callers: tuple[Scope, ...] = ()) -> Permit | Waiting:
        """A permit, or a place in the line. Raises Failure caller_limit or overloaded where there is neither.

        Whoever gets either has to give it back by its ``release``.
        """
        scopes = (*terms.scopes, *callers) if callers else terms.scopes
        if self._line.size and self._counts.is_shared:
            self._wake([(scope.kind, scope.name) for scope in (*scopes, *terms.upstreams)])
        taken = self._take(scopes, terms)
        if isinstance(taken, Permit):
            return taken
        if terms.preempts and (victim := self._victim(scopes, terms)) is not None:
            return self._preempt(victim, terms, callers, taken)
        return self._queue(terms, callers, taken)

    def check(self, terms: Terms) -> None:
        """Refuse now what would be refused whoever calls. Takes nothing. Raises Failure as `admit` does."""
        if terms.queue or terms.preempts:
            return
        for scope in terms.scopes:
            if self._counts.used(scope) >= scope.limit:
                raise self._refusal((scope,), "")

    def freed(self, scopes: Sequence[Scope]) -> None:
        """Places in ``scopes`` are free."""
        if self._line.size:
            self._wake([(scope.kind, scope.name) for scope in scopes])

    def released(self, permit: Permit, scopes: Sequence[Scope]) -> None:
        """A stream that had places in ``scopes`` is over."""
        held_s = self._clock() - permit.since
        for scope in scopes:
            key = _average_of(scope)
            average_s = self._held_s.get(key)
            self._held_s[key] = held_s if average_s is None else average_s + (held_s - average_s) * _SHARE_OF_LATEST
        self._tokenless[permit.rank].pop(permit, None)
        self.freed(scopes)

    def look(self) -> bool:
        """See who has waited long enough, and whether a place has become free unheard. Whether anybody still waits, so
        that this has to be called again in `LOOK_INTERVAL_S`."""
        now = self._clock()
        for waiting in self._line.overdue(now):
            self._refuse(waiting, f"no place within {waiting.party.terms.queue_timeout_s:g} s: ", now)
        if self._counts.is_shared or now >= self._recheck_at:
            self._recheck_at = now + RECHECK_INTERVAL_S
            for key in self._line.spots():
                self._wake([key])
        return bool(self._line.size)

    def _take(self, scopes: tuple[Scope, ...], terms: Terms) -> Permit | tuple[Scope, ...]:
        """A permit, or the full scopes that stand in its way: one place in any of them is what is lacking first."""
        counts = self._counts
        chosen: Scope | None = None
        if not terms.upstreams:
            full = counts.take(scopes)
            if full is not None:
                return (full,)
        else:
            for chosen in terms.upstreams:
                full = counts.take((*scopes, chosen) if chosen.limit else scopes)
                if full is None:
                    break
                if full != chosen:
                    return (full,)
            else:
                return terms.upstreams
        permit = Permit(counts, scopes, chosen, self, terms.rank, self._clock())
        if terms.rank < RANKS["high"]:
            self._tokenless[terms.rank][permit] = None
        return permit

    def _wake(self, keys: list[Key]) -> None:
        """Give what is free at ``keys`` to those who wait there, in order. Who lacks another place waits for that."""
        line = self._line
        while (next_one := line.first_at(keys)) is not None:
            party, key = next_one
            taken = self._take(party.scopes, party.terms)
            if not isinstance(taken, Permit):
                if any((scope.kind, scope.name) == key for scope in taken):
                    keys.remove(key)
                else:
                    line.park(party, taken)
                continue
            waiting = party.first
            applicant = waiting.applicant
            line.remove(waiting)
            waiting.permit = taken
            if applicant is not None:
                applicant.admitted(taken)

    def _queue(self, terms: Terms, callers: tuple[Scope, ...], full: tuple[Scope, ...]) -> Waiting:
        line = self._line
        if not terms.queue:
            raise self._refusal(full, "")
        # Nobody may have more requests waiting than running, or one caller would fill the queue of all.
        if full[0].kind == "caller" and line.waiting_at(full[0]) >= full[0].limit:
            raise self._refusal(full, "and as many wait: ")
        if line.waiting_for(terms.route) < terms.queue:
            return line.add(terms, callers, full, self._clock())
        lower = line.last_below(terms.rank, full)
        if lower is None:
            raise self._refusal(full, "the queue is full: ")
        now = self._clock()
        waiting = line.add(terms, callers, full, now)
        line.take_entry(waiting, lower)
        self._refuse(lower, "a request of a higher priority took the place in the queue: ", now)
        return waiting

    def _refuse(self, waiting: Waiting, why: str, now: float) -> None:
        applicant, full = waiting.applicant, waiting.party.full
        self._line.remove(waiting)
        if applicant is not None:
            applicant.refused(self._refusal(full, why), now)

    def _victim(self, scopes: tuple[Scope, ...], terms: Terms) -> Permit | None:
        """The youngest stream of the lowest class below that has had no token and holds every place that is lacking."""
        used = self._counts.used
        full = [scope for scope in scopes if used(scope) >= scope.limit]
        upstreams = terms.upstreams
        needs_upstream = bool(upstreams) and all(each.limit and used(each) >= each.limit for each in upstreams)
        for candidates in self._tokenless[: terms.rank]:
            spent = []
            found = None
            for permit in reversed(candidates):
                holder = permit.holder
                if holder is None or not holder.is_preemptible:
                    spent.append(permit)
                elif permit.holds(full) and (not needs_upstream or permit.upstream in upstreams):
                    found = permit
                    break
            for permit in spent:
                del candidates[permit]
            if found is not None:
                return found
        return None

    def _preempt(
        self, victim: Permit, terms: Terms, callers: tuple[Scope, ...], full: tuple[Scope, ...]
    ) -> Permit | Waiting:
        """The victim's place goes to whoever is first in line, so this request joins the line before it is free."""
        waiting = self._line.add(terms, callers, full, self._clock())
        holder = victim.holder
        assert holder is not None  # noqa: S101 - it would be no victim
        holder.preempt(Failure("preempted", "a request of a higher priority needs the place of this one"))
        victim.release()
        if waiting.permit is not None:
            return waiting.permit
        if self._line.waiting_for(terms.route) <= terms.queue:
            return waiting
        self._line.remove(waiting)
        raise self._refusal(full, "the queue is full: ")

    def _refusal(self, full: tuple[Scope, ...], why: str) -> Failure:
        scope = next((each for each in full if each.limit), full[0])
        place = self._line.waiting_at(scope) + 1
        average_s = self._held_s.get(_average_of(scope), 0.0)
        retry_after_s = min(max(ceil(average_s * place / scope.limit), MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
        return Failure(
            "caller_limit" if scope.kind == "caller" else "overloaded",
            why + _FULL[scope.kind].format(limit=scope.limit),
            retry_after=str(retry_after_s),
            policy=(scope.kind, scope.limit),
        )


def _average_of(scope: Scope) -> Key:
    """Callers share one: there may be any number of them."""
    return scope.kind, "" if scope.kind == "caller" else scope.name
