"""One worker's seat: the state of whoever holds it, and when it is given to the next one.

Owns the table of legal moves, the backoff between two workers and how long one has been silent. Must not know
processes or sockets; the time is passed in.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from sidecar.workers.messages import Pulse

FIRST_BACKOFF_S: Final = 0.1
MOST_BACKOFF_S: Final = 10.0
PROVEN_AFTER_S: Final = 60.0
"""A worker that ran for so long was a good one: its successor begins at once."""


class SeatState(Enum):
    """What a worker is doing: being set up, serving, taking its leave, or gone."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    DEAD = "dead"


class Move(Enum):
    """What can happen to it."""

    STARTED = "started"
    READY = "ready"
    STOP = "stop"
    EXITED = "exited"


_S, _M = SeatState, Move

MOVES: Final[dict[SeatState, dict[Move, SeatState]]] = {
    _S.DEAD: {_M.STARTED: _S.STARTING},
    _S.STARTING: {_M.READY: _S.READY, _M.STOP: _S.STOPPING, _M.EXITED: _S.DEAD},
    _S.READY: {_M.STOP: _S.STOPPING, _M.EXITED: _S.DEAD},
    _S.STOPPING: {_M.EXITED: _S.DEAD},
}


class IllegalMoveError(Exception):
    """A move the table does not know: a bug in the parent, never an accident of a worker's."""


class Seat:
    """``number`` counts from 1 and stays with the seat, whoever holds it."""

    __slots__ = ("_backoff_s", "number", "silent_s", "since", "state", "told")

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = SeatState.DEAD
        self.since = float("-inf")
        """When its worker was started."""
        self.told = Pulse()
        """What its worker last said of itself."""
        self.silent_s = 0.0
        """For how long it has said nothing, by the turns of whoever listens."""
        self._backoff_s = 0.0

    def move(self, move: Move) -> None:
        """Take one legal step. Raises IllegalMoveError for any other."""
        try:
            self.state = MOVES[self.state][move]
        except KeyError:
            raise IllegalMoveError(f"{move.value} while {self.state.value}") from None

    def started(self, now: float) -> None:
        """A worker takes the seat."""
        self.move(Move.STARTED)
        self.since, self.told, self.silent_s = now, Pulse(), 0.0

    def exited(self, now: float) -> float:
        """It is gone. In how many seconds the next one may start."""
        self.move(Move.EXITED)
        was_proven = now - self.since >= PROVEN_AFTER_S
        doubled_s = min(self._backoff_s * 2, MOST_BACKOFF_S)
        self._backoff_s = FIRST_BACKOFF_S if was_proven else max(FIRST_BACKOFF_S, doubled_s)
        return self._backoff_s

    @property
    def is_alive(self) -> bool:
        """There is a process."""
        return self.state is not SeatState.DEAD
