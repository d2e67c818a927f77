"""One question to many workers: who still owes an answer, and when it is no longer waited for.

Owns which answers belong together. Must not know how questions travel, or what answers say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping

DEADLINE_S: Final = 3.0
"""How long a worker may take to answer: less than the admin port, and a scraper, wait for all of them."""


class Rounds:
    """Every question that is not answered yet. Its methods belong to one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: dict[int, Round] = {}
        self._last = 0

    def begin(
        self, asked: Iterable[int], done: Callable[[Mapping[int, str]], None], deadline_s: float = DEADLINE_S
    ) -> int:
        """The question's number, by which it is answered. ``done`` is called once, with the answers that came in time,
        by the number of whoever gave them; at once where nobody is asked."""
        self._last += 1
        number = self._last
        waiting = Round(set(asked), done)
        self._open[number] = waiting
        waiting.timer = self._loop.call_later(deadline_s, self._finish, number)
        self._finish_if_whole(number)
        return number

    def answered(self, number: int, by: int, text: str) -> None:
        """An answer; nobody wants one that comes too late, or that was not asked for."""
        waiting = self._open.get(number)
        if waiting is not None and by in waiting.owing:
            waiting.owing.discard(by)
            waiting.answers[by] = text
            self._finish_if_whole(number)

    def gone(self, by: int) -> None:
        """No answer will come from there."""
        for number in tuple(self._open):
            self._open[number].owing.discard(by)
            self._finish_if_whole(number)

    def _finish_if_whole(self, number: int) -> None:
        if not self._open[number].owing:
            self._finish(number)

    def _finish(self, number: int) -> None:
        waiting = self._open.pop(number)
        if waiting.timer is not None:
            waiting.timer.cancel()
        waiting.done(waiting.answers)


class Round:
    """One question."""

    __slots__ = ("answers", "done", "owing", "timer")

    def __init__(self, owing: set[int], done: Callable[[Mapping[int, str]], None]) -> None:
        self.owing = owing
        self.done = done
        self.answers: dict[int, str] = {}
        self.timer: asyncio.TimerHandle | None = None
