"""One process's data plane and its admin port, from start to end.

Owns the order in which things start and stop. Must not hold a rule of its own: what a part does is its own business.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sidecar.admin import Admin
from sidecar.admission import Admission
from sidecar.app.accepting import Accepting, backlog_warning
from sidecar.app.changes import compare
from sidecar.app.departure import Departure
from sidecar.app.listening import bound_address, open_listener, prepare_for
from sidecar.app.plans import make_plan, secret_of
from sidecar.app.watching import Watching, describe_upstreams, unready_route, upstreams_up
from sidecar.certificates import ServerCertificate
from sidecar.descriptors import current_limit, most_connections
from sidecar.gateway import CallerNames, ClientServer, Gateway
from sidecar.gateway.caller import KEY_BYTES
from sidecar.local_counts import LocalCounts
from sidecar.streams import Streams
from sidecar.telemetry import names
from sidecar.telemetry.assembly import assemble
from sidecar.telemetry.telemetry import CLOSE_TIMEOUT_S as FLUSH_S

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from sidecar.app.changes import Changes
    from sidecar.app.listening import Shared
    from sidecar.drain import Doing, Farewell, Word
    from sidecar.gateway import Plan
    from sidecar.record import Observer
    from sidecar.secrets import Secret
    from sidecar.settings import Settings
    from sidecar.stream import Stream
    from sidecar.telemetry.line_output import LineOutput
    from sidecar.upstream import UpstreamPool

logger = logging.getLogger("sidecar.app")
T = TypeVar("T")

CLOSE_TIMEOUT_S: Final = 5.0
HURRIED_S: Final = 0.25
"""How long clients that are still sending are waited for by a process that nobody waits for any longer."""

HURRIED_FLUSH_S: Final = 0.5
"""How long telemetry may then take, and as long again to be broken off: the kubelet leaves two seconds at least."""

_MAX_FIELD_BYTES: Final = 16 * 1024
_GC_THRESHOLDS: Final = (20_000, 50, 1_000)


class App:
    """One process's data plane and its admin port.

    ``environ`` is where secrets and proxies are looked up; ``lines`` is where requests are logged, None for nowhere.
    ``observer`` is told of every request in place of the telemetry that is configured. With what is ``shared`` among
    several processes it listens where it is told to, and has no admin port: whoever began it answers for it. Raises
    SecretUnreadableError or ValueError at construction for what can never work (an unset variable, a CA file that is
    none, an extra that is not installed, more connections than descriptors).
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
        # A closure, which no repr of what is kept here prints.
        self._environ: Callable[[], Mapping[str, str]] = lambda: environ
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
        self.admission = Admission(LocalCounts() if shared is None else shared.counts, self._clock)
        callers = CallerNames(os.urandom(KEY_BYTES) if shared is None else shared.caller_key)
        plan = make_plan(settings, environ)
        self._gateway = Gateway(plan, self.streams, self._clock, time.time, self.admission, callers)
        self._most_connections = most_connections(settings, current_limit())
        self._certificate = ServerCertificate(settings.tls) if settings.tls.certificate else None
        self._protocols = ClientServer(
            self._gateway.handle,
            settings.connections,
            max_field=_MAX_FIELD_BYTES,
            max_header_bytes=settings.max_header_bytes,
            has_tls=self._certificate is not None,
        )
        self._listener: socket.socket | None = None
        self._server: Accepting | None = None
        self._retired: list[UpstreamPool] = []
        self._departure = Departure(self, lambda: self._settings, self._clock, self._loop)
        self._watching = Watching(self.streams, self._clock)
        page = self.telemetry.prometheus if self.telemetry.has_metrics else None
        auth = secret_of(settings.admin_auth, environ)
        self._admin = Admin(settings.admin, self, auth, page) if shared is None else None
        self.address = settings.listen
        """Where the traffic port really listens, once started."""

    def _gauges(self) -> dict[str, Callable[[], float | dict[str, float]]]:
        """What the process holds, read whenever somebody asks, in the asker's thread."""
        return {
            names.STREAMS_ACTIVE: lambda: len(self.streams),
            names.QUEUE: lambda: self.admission.waiting,
            names.BUFFERED: lambda: self.streams.buffered_bytes,
            names.BUFFERED_LIMIT: lambda: self._settings.max_buffered_bytes,
            names.CONNECTIONS: lambda: self._protocols.open_count,
            names.CONNECTIONS_LIMIT: lambda: self._most_connections,
            names.UPSTREAM_UP: lambda: upstreams_up(self._gateway.plan, self._clock()),
        }

    # What the admin door may ask.

    def not_ready_because(self) -> str:
        """Why nobody should send requests here now; "" where they should. A cheap read, from any thread."""
        if self._server is None:
            return "not accepting requests"
        if not self._departure.doing.is_ready:
            return "draining"
        plan = self._gateway.plan
        return unready_route(plan, self._clock()) if plan.settings.mode == "ingress" else ""

    def silent_s(self) -> float:
        """Seconds since the data loop last turned."""
        return self._clock() - self.streams.last_turn_at

    def ask(self) -> Future[dict[str, Any]]:
        """A description of every running stream, made in the data loop. Safe to call from any thread."""
        return self._asked(lambda: {"active": len(self.streams), "streams": self.describe_streams()})

    def _asked(self, describe: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()
        self._loop.call_soon_threadsafe(self._answer, answer, describe)
        return answer

    def _answer(self, answer: Future[T], describe: Callable[[], T]) -> None:
        if not answer.set_running_or_notify_cancel():
            return  # whoever asked has stopped waiting
        try:
            answer.set_result(describe())
        except Exception as error:  # noqa: BLE001 - the one who asked is told, in its own thread
            answer.set_exception(error)

    def describe_streams(self) -> list[dict[str, Any]]:
        """What /streams shows, oldest first."""
        now = self._clock()
        return [_describe(stream, now) for stream in self.streams]

    def ask_to_drain(self) -> Future[Farewell]:
        """The hook: answered when the drain is over, in egress mode at once. Safe to call from any thread."""
        return self._departure.hook()

    @property
    def drain_patience_s(self) -> float:
        """How long that takes at most."""
        return self._departure.patience_s

    def ask_upstreams(self) -> Future[list[dict[str, Any]]]:
        """A description of every upstream, made in the data loop. Safe to call from any thread."""
        return self._asked(self.describe_upstreams)

    def describe_upstreams(self) -> list[dict[str, Any]]:
        """What /upstreams shows."""
        return describe_upstreams(self._gateway.plan, self._clock())

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
            accepting = Accepting(
                listener,
                self._protocols,
                self._most_connections,
                self._certificate.context if self._certificate is not None else None,
                self._loop,
                self.streams.spawn,
            )
            await accepting.start()
        except BaseException:
            listener.close()
            if self._admin is not None:
                self._admin.stop()
            raise
        self.address = bound_address(listener, self._settings.listen)
        self._listener, self._server = listener, accepting
        logger.info("up to %d connections at a time", self._most_connections)
        if (warning := backlog_warning()) != "":
            logger.warning(warning)
        self._watching.follow(self._gateway.plan)
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
        self._retired = [pool for pool in self._retired if pool.active]
        self._protocols.sweep(loop_now)
        if self._departure.doing.refuses:
            self._close_idle()
        if self._server is not None:
            self._server.sweep(loop_now)
        if self._certificate is not None:
            self._certificate.look()

    def _close_idle(self) -> None:
        """What waits for a request would be refused it."""
        self._protocols.close_idle(self._protocols.open_count, self._loop.time())

    # Another configuration.

    def prepare(self, wanted: Settings, *, afresh: bool = False) -> Prepared:
        """All that ``wanted`` needs and is not there yet. Safe to call from another thread than the loop's, one at a
        time. ``afresh``: files of secrets and certificates are read again. Raises as construction does."""
        settings, changes = compare(self._settings, wanted)
        most_connections(settings, current_limit())
        plan = make_plan(settings, self._environ(), self._gateway.plan, afresh=afresh)
        admin_auth = None if self._admin is None else self._admin.auth
        if self._admin is not None and (afresh or settings.admin_auth != self._settings.admin_auth):
            admin_auth = secret_of(settings.admin_auth, self._environ())
        return Prepared(settings, changes, plan, admin_auth)

    def adopt(self, prepared: Prepared) -> Changes:
        """Requests that begin now go by it. Those that run keep what they have, down to their upstreams' connections,
        which end with them where the upstream is another now."""
        settings, plan = prepared.settings, prepared.plan
        before, self._gateway.plan = self._gateway.plan, plan
        self._settings = settings
        if self._admin is not None:
            self._admin.auth = prepared.admin_auth
        self.streams.bound(settings.max_buffered_bytes)
        self._protocols.max_header_bytes = settings.max_header_bytes
        if self._listener is not None:
            prepare_for(self._listener, settings)
        self._watching.follow(plan)
        kept = {target.pool for target in plan.targets.values()}
        for target in before.targets.values():
            if target.pool not in kept:
                target.pool.retire()
                self._retired.append(target.pool)
        return prepared.changes

    def reload(self, wanted: Settings, *, afresh: bool = False) -> Changes:
        """`prepare` and `adopt` in one: for whoever has the time in the loop."""
        return self.adopt(self.prepare(wanted, afresh=afresh))

    # Leaving.

    def tell(self, word: Word, who: str) -> None:
        """The process is asked to leave; ``who`` asks, for the log. `closing` says when to `close`."""
        self._departure.tell(word, who)

    async def drain(self) -> Farewell:
        """Drain as the hook does; returns when it is over, in egress mode at once. Idempotent."""
        return await asyncio.wrap_future(self._departure.hook())

    async def closing(self) -> None:
        """Until the process is to close: its requests are over, or will not be waited for."""
        await self._departure.closing()

    def active(self) -> int:
        """Requests under way, whether streams, plain ones or uploads."""
        return self._gateway.active

    def is_idle(self) -> bool:
        """No request is under way, and every byte of the last answers has left."""
        return not self._gateway.active and not self._protocols.has_unsent()

    def entered(self, doing: Doing) -> None:
        """Do from now on what this state of the leave calls for."""
        self._gateway.doing = doing
        if not doing.keeps:
            self.streams.keep_no_connection()
        if doing.refuses:
            self._close_idle()
        if doing.ends_streams:
            self.streams.end_all()

    async def close(self) -> None:
        """Stop listening, end every stream and leave nothing behind."""
        is_hurried = self._departure.is_hurried
        self._departure.closed()
        server, self._server, self._listener = self._server, None, None
        if server is not None:
            server.close()
        await self.streams.close()
        for pool in (*self._retired, *(target.pool for target in self._gateway.plan.targets.values())):
            pool.close()
        await asyncio.sleep(0)  # the doors' waiters run now, so their answers are out before connections close
        self._protocols.pre_shutdown()
        await self._protocols.shutdown(HURRIED_S if is_hurried else CLOSE_TIMEOUT_S)
        # Every request has been told of by now.
        await asyncio.to_thread(self.telemetry.close, HURRIED_FLUSH_S if is_hurried else FLUSH_S)
        if self._admin is not None:
            await asyncio.to_thread(self._admin.stop)
        if self._settings.listen.path and self._shared is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._settings.listen.path)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Another configuration, ready to be gone by."""

    settings: Settings
    changes: Changes
    plan: Plan
    admin_auth: Secret | None


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
