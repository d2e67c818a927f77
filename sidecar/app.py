"""The composition root: the one place that builds concrete parts and ties them together.

Owns the order in which things start and stop. Must not hold a rule of its own: what a part does is its own business.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import ssl
import stat
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from sidecar.admin import Admin
from sidecar.gateway import ClientServer, Gateway, Target
from sidecar.headers import HeaderPolicy, credential_headers
from sidecar.secrets import AwsKeys, Secret
from sidecar.settings import Limits
from sidecar.signing import Signer
from sidecar.streams import Streams
from sidecar.subscribers import prepare_listener
from sidecar.telemetry import names
from sidecar.telemetry.assembly import assemble
from sidecar.upstream import UpstreamPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.record import Observer
    from sidecar.settings import Address, AwsSigning, SecretSource, Settings
    from sidecar.stream import Stream
    from sidecar.telemetry.line_output import LineOutput

logger = logging.getLogger("sidecar.app")

LISTEN_BACKLOG: Final = 4096
CLOSE_TIMEOUT_S: Final = 5.0
_MAX_FIELD_BYTES: Final = 16 * 1024
_GC_THRESHOLDS: Final = (20_000, 50, 1_000)


class App:
    """One process's data plane and its admin port.

    ``environ`` is where secrets and proxies are looked up; ``lines`` is where requests are logged, None for nowhere.
    ``observer`` is told of every request in place of the telemetry that is configured. Raises SecretUnreadableError or
    ValueError at construction for what can never work (an unset variable, a CA file that is none, an extra that is not
    installed).
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        lines: LineOutput | None = None,
        observer: Observer | None = None,
        content_bytes: int | None = None,
    ) -> None:
        self._settings = settings
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
        credential_names = credential_headers(settings)
        self._targets = {
            name: Target(
                upstream,
                UpstreamPool(upstream, environ=environ, stream_buffer_bytes=_smallest_buffer(settings, name)),
                HeaderPolicy(upstream, credential_names),
                _secret(upstream.credentials.secret, environ),
                _signer(upstream.credentials.aws, environ),
            )
            for name, upstream in settings.upstreams.items()
        }
        wall_clock = time.time
        gateway = Gateway(
            settings, self._targets, self.streams, _secret(settings.auth, environ), self._clock, wall_clock
        )
        stall_timeout_s = max(route.limits.stall_timeout_s for route in settings.routes)
        self._stall_timeout_s = stall_timeout_s
        self._protocols = ClientServer(gateway.handle, max_field=_MAX_FIELD_BYTES)
        self._server: asyncio.Server | None = None
        page = self.telemetry.prometheus if self.telemetry.has_metrics else None
        self._admin = Admin(settings.admin, self, _secret(settings.admin_auth, environ), page)
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

    def ask(self) -> Future[list[dict[str, Any]]]:
        """A description of every running stream, made in the data loop. Safe to call from any thread."""
        answer: Future[list[dict[str, Any]]] = Future()
        self._loop.call_soon_threadsafe(self._answer, answer)
        return answer

    def _answer(self, answer: Future[list[dict[str, Any]]]) -> None:
        if not answer.set_running_or_notify_cancel():
            return  # whoever asked has stopped waiting
        try:
            answer.set_result(self.describe_streams())
        except Exception as error:  # noqa: BLE001 - the one who asked is told, in its own thread
            answer.set_exception(error)

    def describe_streams(self) -> list[dict[str, Any]]:
        """What /streams shows, oldest first."""
        now = self._clock()
        return [_describe(stream, now) for stream in self.streams]

    @property
    def admin_port(self) -> int:
        """The admin port really listened on."""
        return self._admin.port

    def pool(self, name: str) -> UpstreamPool:
        """The connections to one upstream."""
        return self._targets[name].pool

    # Life.

    async def start(self) -> None:
        """Listen. Raises OSError for an address that cannot be had."""
        listener = _listening_socket(self._settings.listen)
        try:
            prepare_listener(listener, self._stall_timeout_s)
            self._admin.start()
            tls = _server_tls(self._settings)
            if listener.family == socket.AF_UNIX:
                server = await self._loop.create_unix_server(
                    self._protocols, sock=listener, backlog=LISTEN_BACKLOG, ssl=tls
                )
            else:
                server = await self._loop.create_server(self._protocols, sock=listener, backlog=LISTEN_BACKLOG, ssl=tls)
        except BaseException:
            listener.close()
            self._admin.stop()
            raise
        self.address = _bound_address(listener, self._settings.listen)
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
        for target in self._targets.values():
            target.pool.sweep(loop_now)
        self._protocols.sweep(loop_now)

    async def close(self) -> None:
        """Stop listening, end every stream and leave nothing behind."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self.streams.close()
        for target in self._targets.values():
            target.pool.close()
        await asyncio.sleep(0)  # the doors' waiters run now, so their answers are out before connections close
        self._protocols.pre_shutdown()
        await self._protocols.shutdown(CLOSE_TIMEOUT_S)
        await asyncio.to_thread(self.telemetry.close)  # every request has been told of by now
        await asyncio.to_thread(self._admin.stop)
        if self._settings.listen.path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._settings.listen.path)


def _smallest_buffer(settings: Settings, upstream: str) -> int:
    """What an upstream's answers may have to fit into, whichever route they take."""
    return min(
        (route.limits.buffer_bytes for route in settings.routes if upstream in route.upstreams),
        default=Limits().buffer_bytes,
    )


def _secret(source: SecretSource | None, environ: Mapping[str, str]) -> Secret | None:
    return Secret(source, environ) if source is not None else None


def _signer(signing: AwsSigning | None, environ: Mapping[str, str]) -> Signer | None:
    return Signer(signing, AwsKeys(signing.keys, environ).read) if signing is not None else None


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


def _listening_socket(address: Address) -> socket.socket:
    """A bound socket. A Unix path left by a dead process is taken over; one that somebody listens on is not."""
    if address.path:
        _remove_stale_socket(address.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bind_to: Any = address.path
    else:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, bind_to = found[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(bind_to)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {address}: {error.strerror or error}") from error
    return listener


def _remove_stale_socket(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def _bound_address(listener: socket.socket, asked: Address) -> Address:
    if asked.path:
        return asked
    return type(asked)(asked.host, int(listener.getsockname()[1]))


def _server_tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.tls.certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(settings.tls.certificate, settings.tls.key or None)
    return context
