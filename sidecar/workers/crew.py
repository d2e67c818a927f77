"""All workers of one sidecar, as the admin port and the signals see them.

Owns who has which seat, who is replaced when, and when the whole is over. Must not know how a process is begun
(`child`), what an app is, or who asks. What it does happens in callbacks of one loop.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from sidecar.drain import Word
from sidecar.workers.child import Child, status_in_words
from sidecar.workers.messages import About, Answer, Ask, Configure, Failed, Leave, Pulse, Ready
from sidecar.workers.rounds import DEADLINE_S, Rounds
from sidecar.workers.seat import Move, Seat, SeatState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from sidecar.configuration import Source
    from sidecar.shared_counts import SharedCounts
    from sidecar.workers.messages import ToParent, ToWorker

logger = logging.getLogger("sidecar.workers")

TICK_S: Final = 1.0
STUCK_AFTER_S: Final = 10.0
"""How long a worker's data loop may stand before the worker is replaced: its streams stand as long."""
START_TIMEOUT_S: Final = 60.0
"""How long a worker may take to serve, and all of them for the first of them to do so."""
STOP_TIMEOUT_S: Final = 20.0
"""How long workers may take to exit beside what their drain takes: telemetry has to be told."""
HURRY_TIMEOUT_S: Final = 5.0
"""How long they may take when they were told a second time."""

_CALLER_KEY_BYTES: Final = 32
_ANSWERING: Final = frozenset({SeatState.READY, SeatState.STOPPING})


class WorkersFailedError(OSError):
    """No worker has ever become ready, and none is going to."""


class Launch:
    """What every worker is begun with: ``source`` is what it serves, ``instance`` what telemetry calls the whole, and
    ``descriptors`` are what it inherits."""

    def __init__(
        self, source: Source, instance: str, descriptors: Mapping[str, int], environ: Mapping[str, str]
    ) -> None:
        self._caller_key = os.urandom(_CALLER_KEY_BYTES)
        self._began = source
        self.source = source
        self.instance = instance
        self.descriptors = descriptors
        self.environ = environ

    def child(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        on_message: Callable[[ToParent], None],
        on_exit: Callable[[int], None],
    ) -> Child:
        """A fresh worker for this seat. Raises OSError."""
        child = Child(loop, {"number": number, **self.descriptors}, self.environ, on_message, on_exit)
        child.tell(self.configure(number))
        return child

    def configure(self, number: int, *, afresh: bool = False) -> Configure:
        """What the worker in this seat is told to serve."""
        return Configure(self.source, self._began, f"{self.instance}-{number}", self._caller_key, afresh)


class Crew:
    """``number`` workers. ``on_first_ready`` is called once, when the first of them serves."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        launch: Launch,
        counts: SharedCounts,
        number: int,
        on_first_ready: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._launch = launch
        self._counts = counts
        self._seats = {each: Seat(each) for each in range(1, number + 1)}
        self._children: dict[int, Child] = {}
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._rounds = Rounds(loop)
        self._on_first_ready = on_first_ready
        self._was_ready = self._is_draining = self._is_hidden = False
        self._is_ending = self._is_hurried = False
        self._error = ""
        self._began_at = self._ticked_at = self._clock()
        self.turned_at = self._began_at
        """When any worker's data loop was last heard to turn; before one has served, now and then."""
        self.over: asyncio.Future[None] = loop.create_future()
        """Done when no worker is left: after `leave`, or with WorkersFailedError."""
        self.were_all_clean = True
        """Every worker that was told to leave did so by itself."""

    # What may be asked from any thread.

    @property
    def states(self) -> dict[int, SeatState]:
        """What each worker is doing."""
        return {number: seat.state for number, seat in self._seats.items()}

    def not_ready_because(self) -> str:
        """Why no worker takes requests; "" where one does."""
        if self._is_ending:
            return "shutting down"
        if self._is_hidden:
            return "draining"
        told = [seat.told.not_ready for seat in self._seats.values() if seat.state is SeatState.READY]
        return "no worker is ready" if not told else "" if "" in told else told[0]

    # The loop's.

    def start(self) -> None:
        """Begin all workers."""
        for seat in self._seats.values():
            self._begin(seat)
        self._later("tick", TICK_S, self._tick)

    def ask(
        self,
        about: About,
        accept: str,
        done: Callable[[Mapping[int, str]], None],
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """Ask every worker that serves, or has streams yet to end; ``done`` is called with what came in time."""
        asked = [number for number, seat in self._seats.items() if seat.state in _ANSWERING]
        question = self._rounds.begin(asked, done, deadline_s)
        for number in asked:
            self._tell(number, Ask(question, about, accept))

    def drain(self, done: Callable[[Mapping[int, str]], None], deadline_s: float, *, hides: bool) -> None:
        """Have every worker drain as the hook has it, and whoever takes a seat from now on. ``hides``: nobody is to
        take them for ready meanwhile, a worker that has only just begun neither."""
        if not self._is_draining:
            self._is_draining, self._is_hidden = True, hides
        self.ask(About.DRAIN, "", done, deadline_s)

    def reconfigure(self, source: Source, *, afresh: bool) -> None:
        """From now on workers serve this, those that run too."""
        self._launch.source = source
        for number in self._seats:
            self._tell(number, self._launch.configure(number, afresh=afresh))

    def leave(self, who: str, patience_s: float = 0.0, word: Word = Word.STOP) -> None:
        """Have every worker leave as ``word`` has it, which may take ``patience_s`` by its own will. Said once more, it
        means: now."""
        is_hurried, is_repeated, self._is_ending = self._is_hurried, self._is_ending, True
        self._is_hurried = is_repeated
        for number, seat in self._seats.items():
            self._cancel(("begin", number))
            if seat.state in {SeatState.STARTING, SeatState.READY}:
                seat.move(Move.STOP)
            self._tell(number, Leave(who, word))
        if not is_hurried:  # whoever says it again and again puts nothing off
            self._later("leave", HURRY_TIMEOUT_S if is_repeated else patience_s + STOP_TIMEOUT_S, self._leave_in_vain)
        self._end_if_empty()

    def kill(self) -> None:
        """End every worker now, whatever it is doing."""
        if not self.over.done():
            self.leave("an end at once")
        for child in self._children.values():
            child.kill()

    # Workers come and go.

    def _begin(self, seat: Seat) -> None:
        number = seat.number
        seat.started(self._clock())
        try:
            self._children[number] = self._launch.child(
                self._loop, number, partial(self._heard, seat), partial(self._exited, seat)
            )
        except OSError as error:
            logger.error("worker %d cannot be started: %s", number, error.strerror)  # noqa: TRY400 - no trace is needed
            self._gone(seat)
            return
        self._later(("start", number), START_TIMEOUT_S, partial(self._start_in_vain, seat))

    def _heard(self, seat: Seat, message: ToParent) -> None:
        seat.silent_s = 0.0
        match message:
            case Pulse():
                seat.told = message
                self.turned_at = self._clock()
            case Answer(number=question, text=text):
                self._rounds.answered(question, seat.number, text)
            case Ready() if seat.state is SeatState.STARTING:
                self._ready(seat)
            case Failed(reason=reason):
                logger.error("worker %d cannot start: %s", seat.number, reason)
                self._error = self._error or reason
            case _:
                pass  # it became ready while it was already being stopped

    def _ready(self, seat: Seat) -> None:
        seat.move(Move.READY)
        self._cancel(("start", seat.number))
        self.turned_at = self._clock()
        logger.info("worker %d is ready, process %d", seat.number, self._children[seat.number].pid)
        if self._is_draining:
            self._tell(seat.number, Ask(0, About.DRAIN))  # nobody waits for the answer
        if not self._was_ready:
            self._was_ready = True
            self._on_first_ready()

    def _exited(self, seat: Seat, status: int) -> None:
        was = seat.state
        del self._children[seat.number]
        self._cancel(("start", seat.number))
        streams = self._counts.held(seat.number - 1) or seat.told.streams
        self._counts.clear(seat.number - 1)
        self._rounds.gone(seat.number)
        ended = f"worker {seat.number} ended {status_in_words(status)}"
        if was is SeatState.STOPPING and status == 0:
            logger.debug("%s", ended)
        else:
            self.were_all_clean = self.were_all_clean and not self._is_ending
            logger.warning("%s while %s, with %d streams", ended, was.value, streams)
        self._gone(seat)

    def _gone(self, seat: Seat) -> None:
        wait_s = seat.exited(self._clock())
        if not self._was_ready and not self._is_ending and self._is_hopeless():
            self._error = self._error or f"no worker became ready within {START_TIMEOUT_S:.0f} s"
            self.kill()
        if self._is_ending:
            self._end_if_empty()
        else:
            self._later(("begin", seat.number), wait_s, partial(self._begin, seat))

    def _is_hopeless(self) -> bool:
        """What keeps a worker from starting and can be named is the configuration's, and will keep the next one."""
        return bool(self._error) or self._clock() - self._began_at > START_TIMEOUT_S

    def _end_if_empty(self) -> None:
        if self.over.done() or any(seat.is_alive for seat in self._seats.values()):
            return
        for key in tuple(self._timers):
            self._cancel(key)
        if self._was_ready or not self._error:
            self.over.set_result(None)
        else:
            self.over.set_exception(WorkersFailedError(self._error))

    # Deadlines.

    def _tick(self) -> None:
        now = self._clock()
        passed_s = min(now - self._ticked_at, 2 * TICK_S)  # a parent that stood still itself has heard nobody
        self._ticked_at = now
        if not self._was_ready and now - self._began_at < START_TIMEOUT_S:
            self.turned_at = now
        for number, seat in self._seats.items():
            if seat.state is not SeatState.READY:
                continue
            seat.silent_s += passed_s
            if seat.silent_s > STUCK_AFTER_S:
                logger.error("worker %d has not turned for %.0f s: it is replaced", number, seat.silent_s)
                seat.silent_s = 0.0
                self._children[number].kill()
        self._later("tick", TICK_S, self._tick)

    def _start_in_vain(self, seat: Seat) -> None:
        logger.error("worker %d is not ready after %.0f s: it is replaced", seat.number, START_TIMEOUT_S)
        self._children[seat.number].kill()

    def _leave_in_vain(self) -> None:
        for number, child in self._children.items():
            logger.error("worker %d does not stop: it is killed", number)
            child.kill()

    def _tell(self, number: int, message: ToWorker) -> None:
        child = self._children.get(number)
        if child is not None:
            child.tell(message)

    def _later(self, key: object, delay_s: float, work: Callable[[], None]) -> None:
        self._cancel(key)
        self._timers[key] = self._loop.call_later(delay_s, self._due, key, work)

    def _due(self, key: object, work: Callable[[], None]) -> None:
        del self._timers[key]
        work()

    def _cancel(self, key: object) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
