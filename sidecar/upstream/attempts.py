"""Waits that all have the same deadline, under one timer.

Owns who waits, who has waited too long, and the one timer of all. Must not know what is waited for.
"""

from __future__ import annotations

import asyncio
from typing import cast


class Attempt:
    """One task's wait."""

    __slots__ = ("_cancelling", "_task", "due_at", "is_late")

    def __init__(self, task: asyncio.Task[object], due_at: float) -> None:
        self._task = task
        self._cancelling = task.cancelling()
        self.due_at = due_at
        self.is_late = False

    def cut_off(self) -> None:
        """Its time is up: the task's await ends with CancelledError."""
        self.is_late = True
        self._task.cancel()

    def was_cut_off(self) -> bool:
        """Whether a CancelledError came from here and from nobody else besides; asked once, by who caught it."""
        return self.is_late and self._task.uncancel() <= self._cancelling


class Attempts:
    """Everybody who waits ``timeout_s`` at most. As all wait equally long, the first to begin is the first due.

    ``asyncio.timeout`` makes an object, a context and a timer for each; under thousands of dials that is felt.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waiting: dict[Attempt, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> Attempt:
        """The running task waits from now on."""
        task = cast("asyncio.Task[object]", asyncio.current_task(loop))
        attempt = Attempt(task, loop.time() + self._timeout_s)
        self._waiting[attempt] = None
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._cut_off, loop)
        return attempt

    def end(self, attempt: Attempt) -> None:
        """It waits no more, whatever came of it. Idempotent."""
        self._waiting.pop(attempt, None)

    def _cut_off(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for attempt in tuple(self._waiting):
            if attempt.due_at > now:
                self._timer = loop.call_at(attempt.due_at, self._cut_off, loop)
                return
            self.end(attempt)
            attempt.cut_off()
