"""How many requests are sent upstream in one turn of the loop, so that a thousand that come at once hold up nobody.

Owns the turns. Must not know requests, nor what beginning means.

Beginning a stream costs ten times what refusing one does. Without turns, whoever is refused, and every token of those
that run, would wait until all that came before it have begun.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

STARTS_A_TURN: Final = 4
"""Some 1 ms of work: less than a turn costs that brings a burst, so that a burst is told of its refusals first."""


class Pace:
    """First come, first served, a few in every turn."""

    __slots__ = ("_begun", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._begun = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def turn(self) -> asyncio.Future[None] | None:
        """None where one more may begin in this turn, else what to wait for."""
        if not self._begun:
            self._loop.call_soon(self._next_turn)
        if self._begun < STARTS_A_TURN:
            self._begun += 1
            return None
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def _next_turn(self) -> None:
        self._begun = 0
        while self._waiting and self._begun < STARTS_A_TURN:
            future = self._waiting.popleft()
            if not future.done():  # else whoever waited is gone
                future.set_result(None)
                self._begun += 1
        if self._begun:
            self._loop.call_soon(self._next_turn)
