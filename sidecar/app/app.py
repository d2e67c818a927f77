"""One process's data plane and its admin port, from start to end.

Owns the order in which things start and stop. Must not hold a rule of its own: what a part does is its own business.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from sidecar.admin import Admin
from sidecar.app.listening import bound_address, open_listener, server_tls
from sidecar.app.plans import make_plan, secret_of
from sidecar.gateway import ClientServer, Gateway
from sidecar.streams import Streams
from sidecar.telemetry import names
from sidecar.telemetry.assembly import assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.app.listening import Shared
    from sidecar.record import Observer
    from sidecar.settings import Settings
    from sidecar.stream import Stream
    from sidecar.telemetry.line_output import LineOutput
    from sidecar.upstream import UpstreamPool

logger = logging.getLogger("sidecar.app")

LISTEN_BACKLOG: Final = 4096
CLOSE_TIMEOUT_S: Final = 5.0
_MAX_FIELD_BYTES: Final = 16 * 1024
_GC_THRESHOLDS: Final = (20_000, 50, 1_000)


class App:
    """One process's data plane and its admin port.

    ``environ`` is where secrets and proxies are looked up; ``lines`` is where requests are logged, None for nowhere.
    ``observer`` is told of every request in place of the telemetry that is configured. With what is ``shared`` among
    several processes it listens where it is told to, and has no admin port: whoever began it answers for it. Raises
    SecretUnreadableError or ValueError at construction for what can never work (an unset variable, a CA file that is
    none, an extra that is not installed).
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        lines: LineOutput | None = None,
        observer: Observer | None = None,
        content_bytes: int | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._clock = time.monotonic
        self.telemetry = assemble(settings.telemetry, environ, self._clock, time.time_ns, self._gauges(), lines)
        self.streams = Streams(
            self._clock,
            self._loop,
            settings.max_buffered_bytes,
            observer=self.telemetry if observer is None else observer,
            content_bytes=self.telemetry.content_bytes if content_bytes is None else content_bytes,
        )
        wall_clock = time.time
        self._gateway = Gateway(make_plan(settings, environ), self.streams, self._clock, wall_clock)
        self._protocols = ClientServer(self._gateway.handle, max_field=_MAX_FIELD_BYTES)
        self._server: asyncio.Server | None = None
        page = self.telemetry.prometheus if self.telemetry.has_metrics else None
        auth = secret_of(settings.admin_auth, environ)
        self._admin = Admin(settings.admin, self, auth, page) if shared is None else None
        self.address = settings.listen
        """Where the traffic port really listens, once started."""

    def _gauges(self) -> dict[str, Callable[[], float]]:
        """What the process holds, read whenever somebody asks, in the asker's thread."""
        return {
            names.STREAMS_ACTIVE: lambda: len(self.streams),
            names.BUFFERED: lambda: self.streams.buffered_bytes,
            names.BUFFERED_LIMIT: lambda: self._settings.max_buffered_bytes,
        }

    # What the admin door may ask.

    @property
    def is_ready(self) -> bool:
        """The traffic port takes requests."""
        return self._server is not None

    def silent_s(self) -> float:
        """Seconds since the data loop last turned."""
        return self._clock() - self.streams.last_turn_at

    def ask(self) -> Future[dict[str, Any]]:
        """A description of every running stream, made in the data loop. Safe to call from any thread."""
        answer: Future[dict[str, Any]] = Future()
        self._loop.call_soon_threadsafe(self._answer, answer)
        return answer

    def _answer(self, answer: Future[dict[str, Any]]) -> None:
        if not answer.set_running_or_notify_cancel():
            return  # whoever asked has stopped waiting
        try:
            answer.set_result({"active": len(self.streams), "streams": self.describe_streams()})
        except Exception as error:  # noqa: BLE001 - the one who asked is told, in its own thread
            answer.set_exception(error)

    def describe_streams(self) -> list[dict[str, Any]]:
        """What /streams shows, oldest first."""
        now = self._clock()
        return [_describe(stream, now) for stream in self.streams]

    @property
    def admin_port(self) -> int:
        """The admin port really listened on; 0 where there is none."""
        return 0 if self._admin is None else self._admin.port

    def pool(self, name: str) -> UpstreamPool:
        """The connections to one upstream."""
        return self._gateway.plan.targets[name].pool

    # Life.

    async def start(self) -> None:
        """Listen. Raises OSError for an address that cannot be had."""
        listener = open_listener(self._settings) if self._shared is None else self._shared.listener
        try:
            if self._admin is not None:
                self._admin.start()
            options: dict[str, Any] = {"backlog": LISTEN_BACKLOG, "ssl": server_tls(self._settings)}
            if listener.family == socket.AF_UNIX:
                if sys.version_info >= (3, 13):
                    options["cleanup_socket"] = False  # the path may be others' too; `close` minds our own
                server = await self._loop.create_unix_server(self._protocols, sock=listener, **options)
            else:
                server = await self._loop.create_server(self._protocols, sock=listener, **options)
        except BaseException:
            listener.close()
            if self._admin is not None:
                self._admin.stop()
            raise
        self.address = bound_address(listener, self._settings.listen)
        self._server = server
        self.telemetry.start()
        self.streams.start(self._sweep_idle)
        # What is long-lived is not looked at again, and collections are rare: per-stream objects are acyclic, and a
        # full collection over thousands of live streams is a pause that every one of them feels.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)

    def _sweep_idle(self, now: float) -> None:
        del now  # pools go by the loop's own clock, which stamps their idle connections
        loop_now = self._loop.time()
        for target in self._gateway.plan.targets.values():
            target.pool.sweep(loop_now)
        self._protocols.sweep(loop_now)

    async def close(self) -> None:
        """Stop listening, end every stream and leave nothing behind."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self.streams.close()
        for target in self._gateway.plan.targets.values():
            target.pool.close()
        await asyncio.sleep(0)  # the doors' waiters run now, so their answers are out before connections close
        self._protocols.pre_shutdown()
        await self._protocols.shutdown(CLOSE_TIMEOUT_S)
        await asyncio.to_thread(self.telemetry.close)  # every request has been told of by now
        if self._admin is not None:
            await asyncio.to_thread(self._admin.stop)
        if self._settings.listen.path and self._shared is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._settings.listen.path)


def _describe(stream: Stream, now: float) -> dict[str, Any]:
    return {
        "stream": stream.asked.stream_id,
        "route": stream.route.name,
        "upstream": stream.upstream.name if stream.upstream is not None else None,
        "model": stream.asked.model or None,
        "format": stream.format,
        "phase": stream.phase,
        "age_s": round(now - stream.session.received_at, 3),
        "content_events": stream.session.content_events,
        "bytes_buffered": stream.buffered_bytes,
        "lag_bytes": stream.lag_bytes,
    }
