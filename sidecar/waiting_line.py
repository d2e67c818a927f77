"""Requests that wait for a place, in the order they are to get one.

Owns that order, and which full scope each waits at. Must not know how places are counted, nor what is said to those who
get none; the time is passed in.

Requests of one route and caller want the very same places, so they wait as one party, of which only the first is ever
looked at: a place that comes free costs by the parties there, not by the requests.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sidecar.admission import Permit, Terms
    from sidecar.errors import Failure
    from sidecar.ports import Scope

Key = tuple[str, str]

_A_CLASS: Final = 1 << 60
"""More than there will ever be requests: what lies between the numbers of two classes."""

_HIGHEST_RANK: Final = 2
_STALE: Final = 64


class Applicant(Protocol):
    """Who waits for a place. One of the two is called, once, unless it left before."""

    def admitted(self, permit: Permit) -> None:
        """It has a place."""

    def refused(self, failure: Failure, now: float) -> None:
        """It gets none."""


class Waiting:
    """One request's place in the line. ``counted_for`` is the route whose queue it takes an entry of."""

    __slots__ = ("applicant", "counted_for", "deadline", "line", "number", "party", "permit", "since")

    def __init__(self, line: Line, party: Party, number: int, now: float) -> None:
        self.line = line
        self.party = party
        self.number = number
        self.since = now
        self.deadline = now + party.terms.queue_timeout_s
        self.counted_for = party.terms.route
        self.permit: Permit | None = None
        self.applicant: Applicant | None = None

    def release(self) -> None:
        """It waits no more. Idempotent."""
        self.line.remove(self)


class Party:
    """Requests that want the same places, first come first served. ``full`` are the scopes it waits at: those that lack
    a place, of which one is enough."""

    __slots__ = ("callers", "full", "members", "scopes", "terms")

    def __init__(self, terms: Terms, callers: tuple[Scope, ...]) -> None:
        self.terms = terms
        self.callers = callers
        self.scopes: tuple[Scope, ...] = (*terms.scopes, *callers)
        self.members: OrderedDict[int, Waiting] = OrderedDict()
        self.full: tuple[Scope, ...] = ()

    @property
    def first(self) -> Waiting:
        """Who has waited longest."""
        return self.members[next(iter(self.members))]

    @property
    def last(self) -> Waiting:
        """Who came last."""
        return self.members[next(reversed(self.members))]

    @property
    def order(self) -> int:
        """What decides between parties: the class, then who has waited longest. The lowest goes first."""
        return next(iter(self.members)) + (_HIGHEST_RANK - self.terms.rank) * _A_CLASS


class _Spot:
    """The parties that wait at one scope. ``heads`` may hold what is no longer so, which is dropped in its turn."""

    __slots__ = ("heads", "parties", "size")

    def __init__(self) -> None:
        self.parties: dict[Party, None] = {}
        self.heads: list[tuple[int, int, Party]] = []
        self.size = 0

    def note(self, party: Party) -> None:
        """``party`` has come, or another is its first now."""
        self.parties[party] = None
        heappush(self.heads, (party.order, id(party), party))
        if len(self.heads) > 2 * len(self.parties) + _STALE:
            self.heads = [(each.order, id(each), each) for each in self.parties]
            heapify(self.heads)

    def first(self) -> Party | None:
        """Whose turn it is here."""
        while self.heads:
            order, _, party = self.heads[0]
            if party in self.parties and party.order == order:
                return party
            heappop(self.heads)
        return None


class Line:
    """Everybody who waits."""

    def __init__(self) -> None:
        self.size = 0
        self._numbers = 0
        self._parties: dict[tuple[Terms, tuple[Scope, ...]], Party] = {}
        self._spots: dict[Key, _Spot] = {}
        self._of_routes: Counter[str] = Counter()

    def waiting_for(self, route: str) -> int:
        """How many entries of the route's queue are taken."""
        return self._of_routes[route]

    def waiting_at(self, scope: Scope) -> int:
        """How many wait at ``scope``."""
        spot = self._spots.get((scope.kind, scope.name))
        return 0 if spot is None else spot.size

    def add(self, terms: Terms, callers: tuple[Scope, ...], full: tuple[Scope, ...], now: float) -> Waiting:
        """Wait at ``full``, or where others wait already that want the same."""
        party = self._parties.get((terms, callers))
        if party is None:
            party = self._parties[terms, callers] = Party(terms, callers)
        self._numbers += 1
        waiting = Waiting(self, party, self._numbers, now)
        party.members[waiting.number] = waiting
        self.size += 1
        self._of_routes[waiting.counted_for] += 1
        if len(party.members) == 1:
            self.park(party, full)
        else:
            for scope in party.full:
                self._spots[scope.kind, scope.name].size += 1
        return waiting

    def remove(self, waiting: Waiting) -> None:
        """It waits no more. Idempotent."""
        party = waiting.party
        if party.members.get(waiting.number) is not waiting:
            return
        was_first = party.first is waiting
        del party.members[waiting.number]
        self.size -= 1
        self._count(waiting.counted_for, -1)
        waiting.applicant = None
        for scope in party.full:
            self._spots[scope.kind, scope.name].size -= 1
        if not party.members:
            self._leave(party)
            del self._parties[party.terms, party.callers]
        elif was_first:
            for scope in party.full:
                self._spots[scope.kind, scope.name].note(party)

    def park(self, party: Party, full: tuple[Scope, ...]) -> None:
        """``party`` waits at ``full`` from now on, with the numbers it has."""
        self._leave(party)
        party.full = full
        for scope in full:
            key = scope.kind, scope.name
            spot = self._spots.get(key)
            if spot is None:
                spot = self._spots[key] = _Spot()
            spot.note(party)
            spot.size += len(party.members)

    def _leave(self, party: Party) -> None:
        for scope in party.full:
            key = scope.kind, scope.name
            spot = self._spots[key]
            del spot.parties[party]
            spot.size -= len(party.members)
            if not spot.parties:
                del self._spots[key]
        party.full = ()

    def first_at(self, keys: Iterable[Key]) -> tuple[Party, Key] | None:
        """Whose turn it is where places came free, and at which of ``keys`` it waits."""
        found: tuple[Party, Key] | None = None
        for key in keys:
            spot = self._spots.get(key)
            party = None if spot is None else spot.first()
            if party is not None and (found is None or party.order < found[0].order):
                found = party, key
        return found

    def take_entry(self, waiting: Waiting, of: Waiting) -> None:
        """``waiting`` takes the queue's entry of another, which has to leave."""
        waiting.counted_for, of.counted_for = of.counted_for, waiting.counted_for

    def last_below(self, rank: int, full: Sequence[Scope]) -> Waiting | None:
        """The youngest of the lowest class below ``rank`` that waits for the same places."""
        found: Waiting | None = None
        for scope in full:
            spot = self._spots.get((scope.kind, scope.name))
            for party in spot.parties if spot is not None else ():
                if party.terms.rank >= rank:
                    continue
                last = party.last
                if found is None or (-party.terms.rank, last.number) > (-found.party.terms.rank, found.number):
                    found = last
        return found

    def overdue(self, now: float) -> Iterator[Waiting]:
        """Whoever has waited long enough; each is out by the time the next is looked for. Within a party they are in
        the order of their deadlines."""
        for party in tuple(self._parties.values()):
            while party.members and party.first.deadline <= now:
                yield party.first

    def spots(self) -> list[Key]:
        """Every scope that somebody waits at, those first where it has been longest the turn of somebody."""
        heads = {key: spot.first() for key, spot in self._spots.items()}
        return sorted(heads, key=lambda key: 0 if (party := heads[key]) is None else party.order)

    def _count(self, route: str, change: int) -> None:
        self._of_routes[route] += change
        if not self._of_routes[route]:
            del self._of_routes[route]
