"""A worker: a whole app without an admin port, on the listener that it inherited, under its parent's orders.

Owns its beginning and end and what its parent is told. Must not know other workers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from sidecar.app import App, Shared
from sidecar.app.changes import compare
from sidecar.drain import Word
from sidecar.secrets import SecretUnreadableError
from sidecar.shared_counts import SharedCounts
from sidecar.telemetry.line_output import LineOutput, redirect_logging
from sidecar.telemetry.parent_page import worker_environ
from sidecar.workers.channel import CALM_UNSENT_BYTES, Channel, receive, tell
from sidecar.workers.child import HELD_BACK
from sidecar.workers.messages import About, Answer, Ask, Configure, Failed, Leave, Pulse, Ready, encode, for_worker

if TYPE_CHECKING:
    from concurrent.futures import Future

    from sidecar.app import Prepared
    from sidecar.configuration import Source
    from sidecar.drain import Farewell
    from sidecar.settings import Settings
    from sidecar.workers.messages import ToParent

logger = logging.getLogger("sidecar.workers")

PULSE_S: Final = 0.5
"""How often the data loop says that it turns."""

_PATIENCE_S: Final = 10.0
_CANNOT_START: Final = 1


def run_worker(number: int, listener: int, counts: int, control: int) -> int:
    """Serve until the parent says stop, or is gone. The last three are inherited descriptors. Returns the exit status;
    whatever keeps it from starting has been told to the parent."""
    for each in HELD_BACK:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    told = socket.socket(fileno=control)
    first = for_worker(receive(told, _PATIENCE_S))
    if not isinstance(first, Configure):
        raise TypeError("a worker is told first what it serves")
    try:
        settings = _settings(first)
        shared = Shared(socket.socket(fileno=listener), SharedCounts(counts, number - 1), first.caller_key)
        lines = LineOutput(settings.logs, is_shared=True)
        redirect_logging(lines, settings.logs.level)
        lines.start()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(settings, first.instance, lines, shared, told))
        finally:
            lines.close()
    except (OSError, SecretUnreadableError, ValueError) as error:
        tell(told, encode(Failed(str(error))), _PATIENCE_S)
        return _CANNOT_START
    finally:
        told.detach()  # the parent takes its end for ours, so nothing may end it before the process does
    return 0


def _settings(first: Configure) -> Settings:
    """What a worker begins with: like those that began earlier, it keeps what cannot change without a restart. Raises
    ValueError for a configuration that is none any more."""
    wanted = _loaded(first.source)
    return wanted if first.began == first.source else compare(_loaded(first.began), wanted)[0]


def _loaded(source: Source) -> Settings:
    loaded = source.load(os.environ)
    if loaded.settings is None:
        raise ValueError(loaded.render_problems())
    return loaded.settings


async def _serve(settings: Settings, instance: str, lines: LineOutput, shared: Shared, told: socket.socket) -> None:
    app = App(settings, worker_environ(os.environ, instance), lines, shared=shared)
    await app.start()
    orders = Orders(asyncio.get_running_loop(), app, told)
    try:
        await app.closing()
    finally:
        await app.close()
        orders.close()


class Orders:
    """What the parent says, and what it is told. The app leaves on its parent's word; and at once where there is no
    parent any more, so that no orphan keeps the port."""

    def __init__(self, loop: asyncio.AbstractEventLoop, app: App, told: socket.socket) -> None:
        self._loop = loop
        self._app = app
        self._channel = Channel(loop, told, self._heard, self._end)
        self._wanted: deque[Configure] = deque()
        self._say(Ready())
        self._pulse()

    def close(self) -> None:
        """Say nothing more. The channel stays open for as long as the process lasts."""
        self._timer.cancel()
        self._channel.leave()

    def _heard(self, data: bytes) -> None:
        try:
            message = for_worker(data)
        except msgspec.MsgspecError:
            self._end()  # that is not our parent
            return
        match message:
            case Leave(who=who, word=word):
                self._app.tell(word, who)
                self._pulse_now()
            case Configure():
                self._wanted.append(message)
                if len(self._wanted) == 1:
                    self._reload()
            case Ask(about=About.STREAMS, number=number):
                self._answer(number, json.dumps(self._app.describe_streams()))
            case Ask(about=About.UPSTREAMS, number=number):
                self._answer(number, json.dumps(self._app.describe_upstreams()))
            case Ask(about=About.DRAIN, number=number):
                self._drain(number)
            case Ask(about=About.METRICS, number=number, accept=accept):
                page = self._loop.run_in_executor(None, self._app.telemetry.prometheus, accept)
                page.add_done_callback(lambda done: self._page(number, done))

    def _drain(self, number: int) -> None:
        """The answer comes when the drain is over; that it has begun is told at once."""
        drained = asyncio.wrap_future(self._app.ask_to_drain(), loop=self._loop)
        drained.add_done_callback(lambda done: self._drained(number, done))
        self._loop.call_soon(self._pulse_now)

    def _drained(self, number: int, done: asyncio.Future[Farewell]) -> None:
        if not done.cancelled() and done.exception() is None:
            told = done.result()
            self._answer(number, json.dumps({"state": told.state, "active": told.active, "cut_off": told.cut_off}))

    def _reload(self) -> None:
        """What is new is made in a thread, one after the other, each from the one before; the parent has checked it,
        and says what it changes."""
        prepared = self._loop.run_in_executor(None, self._prepare, self._wanted[0])
        prepared.add_done_callback(self._adopt)

    def _prepare(self, wanted: Configure) -> Prepared:
        return self._app.prepare(_loaded(wanted.source), afresh=wanted.afresh)

    def _adopt(self, done: asyncio.Future[Prepared]) -> None:
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            logger.error("this worker's configuration stays as it is: %s", _in_words(error))
        else:
            self._app.adopt(done.result())
        self._wanted.popleft()
        if self._wanted:
            self._reload()

    def _page(self, number: int, done: asyncio.Future[tuple[bytes, str]] | Future[tuple[bytes, str]]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._answer(number, done.result()[0].decode())

    def _answer(self, number: int, text: str) -> None:
        self._say(Answer(number, text))

    def _pulse(self) -> None:
        if self._channel.unsent_bytes < CALM_UNSENT_BYTES:
            self._pulse_now()
        self._timer = self._loop.call_later(PULSE_S, self._pulse)

    def _pulse_now(self) -> None:
        self._say(Pulse(self._app.not_ready_because(), len(self._app.streams)))

    def _say(self, message: ToParent) -> None:
        self._channel.send(encode(message))

    def _end(self) -> None:
        for _ in range(2):
            self._app.tell(Word.STOP, "its parent, which is gone")


def _in_words(error: BaseException) -> str:
    """What may be shown: these errors name a source, others may quote it."""
    return str(error) if isinstance(error, OSError | SecretUnreadableError | ValueError) else type(error).__name__
