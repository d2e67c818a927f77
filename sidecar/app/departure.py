"""The process's leave in this loop: what was asked, who waits for it, and the lines that say why it ends.

Owns the drain's timer, its waiters and its log. Must not know sockets or signals of the system: it is told words, and
asks the plane what is still under way.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.drain import Drain, Farewell, State, Word
from sidecar.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.drain import Doing
    from sidecar.settings import Settings

logger = logging.getLogger("sidecar.app")

LOOK_INTERVAL_S: Final = 0.05
"""How often a process that leaves looks whether its last request is over."""


class Leaving(Protocol):
    """What a departure asks of the plane it belongs to. All of it in the loop."""

    def active(self) -> int:
        """Requests under way, whether streams, plain ones or uploads."""

    def is_idle(self) -> bool:
        """No request is under way, and every byte of the last answers has left."""

    def entered(self, doing: Doing) -> None:
        """Do from now on what this state calls for."""


class Departure:
    """One per `App`. ``settings`` gives the configuration as it is now; ``clock`` is monotonic."""

    def __init__(
        self,
        plane: Leaving,
        settings: Callable[[], Settings],
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._plane = plane
        self._settings = settings
        self._clock = clock
        self._loop = loop
        self._started_at = clock()
        self._drain = Drain()
        self._timer: asyncio.TimerHandle | None = None
        self._hooks: list[Future[Farewell]] = []
        self._cut_off = 0
        self._is_closing = asyncio.Event()
        self.is_hurried = False
        """It ends because somebody, or the deadline, would wait no longer."""

    @property
    def doing(self) -> Doing:
        """What the present state means. Safe to read from any thread."""
        return self._drain.doing

    def tell(self, word: Word, who: str) -> None:
        """The process is asked to leave; ``who`` asks, for the log."""
        now = self._clock()
        before = self._drain.state
        settings = self._settings()
        if not self._drain.tell(word, now, settings.mode, settings.drain):
            return
        if before is State.SERVING:
            self._say_why(who)
        if word is not Word.IDLE and self._drain.state is State.CLOSING:
            self.is_hurried = True
        self._entered(now, who)
        if self._drain.is_waiting:
            self._look()

    def _entered(self, now: float, who: str) -> None:
        state, doing, active = self._drain.state, self._drain.doing, self._plane.active()
        if doing.ends_streams:
            self._cut_off += active
        self._plane.entered(doing)
        since_s = now - (self._drain.asked_at or now)
        if state in {State.REFUSING, State.LEAVING}:
            logger.info("no more requests are taken, %d active", active)
        elif state is State.DRAINED:
            logger.info("drained in %.1f s, %s; waiting to be stopped", since_s, self._how_it_went())
        elif state is State.CLOSING:
            logger.info("stopping: %s, %.1f s after the first word, %s", who, since_s, self._how_it_went())
            self._is_closing.set()
        if doing.answers_hook:
            for hook in self._hooks:
                self._answer(hook)
            self._hooks.clear()

    def _how_it_went(self) -> str:
        return f"{self._cut_off} requests cut off" if self._cut_off else "every request finished"

    def _say_why(self, who: str) -> None:
        settings, drain = self._settings(), self._drain
        plan = {
            State.NOTED: "requests go on being taken",
            State.DELAYING: f"requests are taken for {format_duration(settings.drain.delay_s)} more",
            State.LAST_CALL: f"requests are taken for {format_duration(settings.drain.delay_s)} more",
        }.get(drain.state, "waiting for those that are active")
        logger.info(
            "asked to leave: %s, %s mode, %d active, up %.0f s; %s",
            who,
            drain.mode,
            self._plane.active(),
            self._clock() - self._started_at,
            plan,
        )

    def _look(self) -> None:
        """Ask time and the requests; they may move it more than once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        word = self._drain.due(self._clock(), is_idle=self._plane.is_idle())
        if word is not None:
            self.tell(word, "the deadline" if word is Word.DEADLINE else "nothing is under way")
        elif self._drain.is_waiting:
            self._timer = self._loop.call_later(LOOK_INTERVAL_S, self._look)

    # Who waits for it.

    def hook(self) -> Future[Farewell]:
        """The hook: the answer comes when what it waits for is over. Safe to call from any thread."""
        answer: Future[Farewell] = Future()
        self._loop.call_soon_threadsafe(self._hooked, answer)
        return answer

    def _hooked(self, answer: Future[Farewell]) -> None:
        self.tell(Word.HOOK, "/drain")
        if self._drain.doing.answers_hook:
            self._answer(answer)
        else:
            self._hooks.append(answer)

    def _answer(self, hook: Future[Farewell]) -> None:
        if hook.set_running_or_notify_cancel():
            hook.set_result(Farewell(self._drain.state.value, self._plane.active(), self._cut_off))

    @property
    def patience_s(self) -> float:
        """How long the hook waits at most."""
        times = self._settings().drain
        return times.delay_s + times.timeout_s

    async def closing(self) -> None:
        """Until the process is to close."""
        await self._is_closing.wait()

    def closed(self) -> None:
        """The plane closes, whoever asked for it: nobody waits any longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for hook in self._hooks:
            self._answer(hook)
        self._hooks.clear()
