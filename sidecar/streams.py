"""Every running stream, and every task: who owns them, when they are looked after, how they end.

Owns the registry, the one coarse sweep over all deadlines, and the only place a task is created. Must not know aiohttp,
HTTP parsing or how clients are admitted; a stream talks to both its sides through ports.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sidecar.accounting import Guarded
from sidecar.errors import Outcome
from sidecar.kept_content import KeptContent
from sidecar.record import NOBODY
from sidecar.session import Session
from sidecar.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from sidecar.answer import Asked
    from sidecar.ports import ClientSide
    from sidecar.record import Observer
    from sidecar.settings import Route

SWEEP_INTERVAL_S: Final = 0.25
"""How often deadlines are looked at: the coarseness of every one of them."""

COUNT_INTERVAL_S: Final = 1.0
"""How often what all streams hold together is added up, and idle upstream connections are looked through."""

CALM_COUNT_INTERVAL_S: Final = 4.0
CALM_BYTES: Final = 1024 * 1024
"""As long as less than this is held, and less than a quarter of what may be, it is added up less often: over thousands
of streams the adding is what costs."""

WATCH_INTERVAL_S: Final = 0.005
"""How often a client is looked at whose socket nobody reads, so that its leaving is not an event."""


class Streams:
    """The registry of one process. ``clock`` gives seconds of a monotonic clock; over ``max_buffered_bytes`` the door
    takes no more requests. ``observer`` is told of every request; of what is said in it, ``content_bytes`` each way are
    kept for it, by default nothing."""

    def __init__(
        self,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        max_buffered_bytes: int = 4 * CALM_BYTES,
        *,
        observer: Observer = NOBODY,
        content_bytes: int = 0,
    ) -> None:
        self._clock = clock
        self._loop = loop
        self._streams: dict[str, Stream] = {}
        self._watched: set[Stream] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._repeats: set[asyncio.TimerHandle] = set()
        self._sweeps: list[Callable[[float], None]] = []
        self.last_turn_at = clock()
        """When the loop last got round to a sweep; what liveness is judged by."""
        self._sweep_due_at = self.last_turn_at
        self.observer = Guarded(observer, self._observer_failed)
        self._content_bytes = content_bytes
        self.outcomes: Counter[Outcome] = Counter()
        self._stream_bytes = 0
        self._count_at = self._sweep_idle_at = 0.0
        self.bound(max_buffered_bytes)
        self.body_bytes = 0
        """Request bodies held for routing or another try."""

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(tuple(self._streams.values()))

    @property
    def tasks(self) -> int:
        """Tasks alive."""
        return len(self._tasks)

    @property
    def buffered_bytes(self) -> int:
        """Everything held for somebody: request bodies and what slow clients have not taken as of now, since a burst of
        streams fills memory in less than a second; partial frames and what clients have taken since as of the last
        second, or of the last four while that is little."""
        return self.body_bytes + self._stream_bytes

    def bound(self, max_buffered_bytes: int) -> None:
        """From now on so much may be held."""
        self._calm_bytes = min(CALM_BYTES, max_buffered_bytes // 4)

    def open(self, asked: Asked, route: Route, client: ClientSide, received_at: float) -> Stream:
        """Register a new stream; it leaves the registry by itself when its outcome is announced."""
        session = Session(received_at)
        if self._content_bytes:
            session.content = KeptContent(self._content_bytes)
        stream = Stream(asked, route, client, session, self, self._clock)
        self._streams[asked.stream_id] = stream
        return stream

    def note_buffered(self, stream: Stream) -> None:
        """What ``stream`` holds has changed by more than a token. Nothing where it has ended: that is counted out."""
        if stream.session.outcome is not None:
            return
        held_bytes = stream.buffered_bytes
        self._stream_bytes += held_bytes - stream.noted_bytes
        stream.noted_bytes = held_bytes

    def ended(self, stream: Stream) -> None:
        """A stream announces its outcome: the last thing it does."""
        del self._streams[stream.asked.stream_id]
        self._stream_bytes -= stream.noted_bytes
        self._watched.discard(stream)
        self.outcomes[stream.session.outcome or Outcome.INTERNAL] += 1
        self.observer.stream_ended(stream)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``work`` as a task this registry owns: it is cancelled and awaited at shutdown."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def future(self) -> asyncio.Future[None]:
        """A fresh future of this registry's loop."""
        return self._loop.create_future()

    def watch(self, stream: Stream) -> None:
        """Look for this stream's client every few milliseconds: nobody reads its socket."""
        self._watched.add(stream)
        if self._watch_timer is None:
            self._watch_timer = self._loop.call_later(WATCH_INTERVAL_S, self._watch)

    def unwatch(self, stream: Stream) -> None:
        """Its socket is being read again."""
        self._watched.discard(stream)

    def _watch(self) -> None:
        for stream in tuple(self._watched):
            self._guarded(stream, stream.look_for_client)
        self._watch_timer = self._loop.call_later(WATCH_INTERVAL_S, self._watch) if self._watched else None

    def repeat(self, interval_s: float, work: Callable[[], bool]) -> None:
        """Call ``work`` every ``interval_s`` for as long as it returns True."""

        def turn() -> None:
            self._repeats.discard(timer)
            if work():
                self.repeat(interval_s, work)

        timer = self._loop.call_later(interval_s, turn)
        self._repeats.add(timer)

    def start(self, *sweeps: Callable[[float], None]) -> None:
        """Begin sweeping; ``sweeps`` are called with the time along with the streams' own deadlines."""
        self._sweeps.extend(sweeps)
        self._sweep_at(self._clock() + SWEEP_INTERVAL_S)

    def _sweep_at(self, due_at: float) -> None:
        self._sweep_due_at = due_at
        self._sweep_timer = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def _sweep(self) -> None:
        now = self.last_turn_at = self._clock()
        self.observer.turned(max(0.0, now - self._sweep_due_at))
        self._sweep_at(now + SWEEP_INTERVAL_S)
        due = [stream for stream in self._streams.values() if stream.check_at <= now]
        for stream in due:
            self._guarded(stream, partial(stream.check, now))
        if now >= self._count_at:
            for stream in self._streams.values():
                self.note_buffered(stream)
            is_calm = self._stream_bytes < self._calm_bytes
            self._count_at = now + (CALM_COUNT_INTERVAL_S if is_calm else COUNT_INTERVAL_S)
        if now >= self._sweep_idle_at:
            self._sweep_idle_at = now + COUNT_INTERVAL_S
            for sweep in self._sweeps:
                sweep(now)

    def _guarded(self, stream: Stream, work: Callable[[], None]) -> None:
        """A bug that shows on one stream ends that one; the others keep their deadlines."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - reported to the loop's handler, as for any callback
            stream.crash()
            self._loop.call_exception_handler({"message": "a stream's deadline check failed", "exception": error})

    def _observer_failed(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "whoever observes this process failed", "exception": error})

    def keep_no_connection(self) -> None:
        """No answer that has yet to begin leaves its connection open."""
        for stream in self:
            stream.keep_no_connection()

    def end_all(self) -> None:
        """End every stream as ``shutting_down``, telling its client where that can still be told."""
        for stream in self:
            stream.shut_down()

    async def close(self) -> None:
        """End what still runs and wait for every task."""
        self.end_all()
        for timer in (self._sweep_timer, self._watch_timer, *self._repeats):
            if timer is not None:
                timer.cancel()
        self._repeats.clear()
        self._sweep_timer = self._watch_timer = None
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
