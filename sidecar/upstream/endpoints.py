"""The addresses behind one name: which there are, how many streams each has, which is next.

Owns the choice among them and what a failed connect means for it. Must not know who resolves or connects; the time is
passed in.
"""

from __future__ import annotations

import socket
from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.upstream.connection import Connection
    from sidecar.upstream.sockets import AddressInfo

BEHIND_S: Final = 1.0
MAX_BEHIND_S: Final = 30.0
"""How long an address that could not be connected to is put behind the others: the first time, and at most."""

_MAX_DOUBLINGS: Final = 10
_PAIR: Final = 2

Place = tuple[str, int]
"""An address as the peer's name of a connection shows it: host and port."""


class Endpoint:
    """One address; or the two of one host that speaks IPv4 and IPv6, which are raced.

    ``active`` counts the connections taken or dialled there and not given back; ``idle`` are the others, oldest first.
    ``is_spare``: it is of the family that is only asked when the other one fails.
    """

    __slots__ = ("_behind_until", "_failures", "active", "idle", "infos", "is_gone", "is_spare", "turn")

    def __init__(self, infos: Sequence[AddressInfo]) -> None:
        self.infos = tuple(infos)
        self.active = 0
        self.idle: dict[Connection, None] = {}
        self.is_gone = False
        """The name no longer leads there."""
        self.is_spare = False
        self.turn = 0
        self._behind_until = float("-inf")
        self._failures = 0

    @property
    def places(self) -> tuple[Place, ...]:
        """Host and port of each of its addresses."""
        return tuple(_place(info) for info in self.infos)

    def is_behind(self, now: float) -> bool:
        """It could not be connected to, a while ago."""
        return now < self._behind_until

    def failed(self, now: float) -> None:
        """It could not be connected to."""
        self._behind_until = now + min(MAX_BEHIND_S, BEHIND_S * 2 ** min(self._failures, _MAX_DOUBLINGS))
        self._failures += 1

    def connected(self) -> None:
        """It could."""
        self._failures = 0
        self._behind_until = float("-inf")


class Endpoints:
    """All of one name's. Those that are gone are remembered while streams run there, so that one that comes back is
    still counted right."""

    def __init__(self) -> None:
        self.current: list[Endpoint] = []
        """In the order in which the resolver gave them."""
        self.learned_at = float("-inf")
        self._known: dict[frozenset[Place], Endpoint] = {}
        self._turns = count(1)

    @property
    def are_several(self) -> bool:
        """There is something to choose."""
        return len(self.current) > 1

    def learn(self, infos: Sequence[AddressInfo], now: float) -> list[Endpoint]:
        """What the name leads to now. Returns those that are gone from it."""
        self.learned_at = now
        groups = _grouped(infos)
        if len(groups) == 1 and len(self.current) == 1:
            self._moved(self.current[0], groups[0][0])
        self.current = []
        for group, is_spare in groups:
            places = frozenset(map(_place, group))
            endpoint = self._known.get(places) or Endpoint(group)
            endpoint.is_gone, endpoint.is_spare = False, is_spare
            self._known[places] = endpoint
            self.current.append(endpoint)
        gone = [endpoint for endpoint in self._known.values() if endpoint not in self.current]
        for endpoint in gone:
            endpoint.is_gone = True
            self._forget_unused(endpoint)
        return gone

    def in_order(self, now: float) -> list[Endpoint]:
        """Whom to ask first, and whom then: those that work before those that do not, fewest streams first, and of
        equals the one whose turn is longest ago."""
        return sorted(self.current, key=lambda one: (one.is_behind(now), one.is_spare, one.active, one.turn))

    def enter(self, endpoint: Endpoint) -> None:
        """One stream more there."""
        endpoint.active += 1
        endpoint.turn = next(self._turns)

    def leave(self, endpoint: Endpoint) -> None:
        """One stream less there."""
        endpoint.active -= 1
        if endpoint.is_gone:
            self._forget_unused(endpoint)

    def at(self, place: Place) -> Endpoint | None:
        """The one that has this address."""
        return next((one for one in self.current if place in one.places), None)

    def all(self) -> list[Endpoint]:
        """Those that are gone and still have streams, too."""
        return list(self._known.values())

    def _moved(self, endpoint: Endpoint, infos: Sequence[AddressInfo]) -> None:
        """The name's one address is another now. Many names give one out of several each time they are asked: what is
        connected already stays in use."""
        places = frozenset(map(_place, infos))
        if places not in self._known:
            del self._known[frozenset(endpoint.places)]
            endpoint.infos = tuple(infos)
            self._known[places] = endpoint

    def _forget_unused(self, endpoint: Endpoint) -> None:
        if not endpoint.active:
            self._known.pop(frozenset(endpoint.places), None)


def _place(info: AddressInfo) -> Place:
    return str(info[4][0]), int(info[4][1])


def _grouped(infos: Sequence[AddressInfo]) -> list[tuple[list[AddressInfo], bool]]:
    """Addresses as they are chosen among, and whether each is a spare. Two of different families are one host's. Of
    more, those of the larger family are chosen among: the other one may lead nowhere from here."""
    distinct = list({_place(info): info for info in infos}.values())
    families = [info[0] for info in distinct]
    if len(distinct) == _PAIR and families[0] != families[1]:
        return [(distinct, False)]
    preferred = max(dict.fromkeys(families), key=families.count, default=socket.AF_UNSPEC)
    return [([info], info[0] != preferred) for info in distinct]
