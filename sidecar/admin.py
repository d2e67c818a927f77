"""The admin door: liveness, readiness, metrics and what is streaming right now.

Owns its own thread and loop, so that it answers while the data loop is busy, and says so when that loop is stuck.
Must not know the traffic door; it sees the data plane, of one process or of several, through one `DataPlane`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from aiohttp import web

from sidecar.secrets import SecretUnreadableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from sidecar.drain import Farewell
    from sidecar.secrets import Secret
    from sidecar.settings import Address

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    MetricsPage = Callable[[str], tuple[bytes, str]]
    """Takes what the scraper accepts and gives the page and its content type; not in a loop."""

logger = logging.getLogger("sidecar.admin")
T = TypeVar("T")

STUCK_AFTER_S: Final = 10.0
"""How long the data loop may go without a turn before the process is called dead."""

_SNAPSHOT_TIMEOUT_S: Final = 5.0
_START_TIMEOUT_S: Final = 10.0
_DRAIN_MARGIN_S: Final = 5.0
"""How much later than it should be a drain's end is still waited for."""

_PROBES: Final = frozenset({"/livez", "/readyz"})


class DataPlane(Protocol):
    """What the admin door may ask, from its own thread."""

    def not_ready_because(self) -> str:
        """Why nobody should send requests here now; "" where they should."""

    def silent_s(self) -> float:
        """Seconds since the data loop last turned."""

    def ask(self) -> Future[dict[str, Any]]:
        """How many streams are ``active`` and a description of each, oldest first. TimeoutError where nobody knows."""

    def ask_to_drain(self) -> Future[Farewell]:
        """The hook: answered when the drain is over."""

    @property
    def drain_patience_s(self) -> float:
        """How long that takes at most."""

    def ask_upstreams(self) -> Future[list[dict[str, Any]]]:
        """A description of every upstream, made in the data loop."""


class Admin:
    """The admin port. `start` returns when it listens; `stop` when its thread has ended."""

    def __init__(
        self, address: Address, plane: DataPlane, auth: Secret | None, page: MetricsPage | None = None
    ) -> None:
        self._address = address
        self._plane = plane
        self.auth = auth
        """Who may ask; may be another at any time."""
        self._page = page
        self._thread = threading.Thread(target=self._run, name="sidecar-admin", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._listening = threading.Event()
        self._error: BaseException | None = None
        self.port = address.port
        """The port really listened on, where 0 was asked for."""

    def start(self) -> None:
        """Raises OSError when the address cannot be listened on."""
        self._thread.start()
        if not self._listening.wait(_START_TIMEOUT_S):
            raise OSError(f"the admin port {self._address} did not come up")
        if self._error is not None:
            raise OSError(f"cannot listen on {self._address}: {self._error}") from self._error

    def stop(self) -> None:
        """Stop answering. Idempotent."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_TIMEOUT_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._error = error
        finally:
            self._listening.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/streams", self._streams)
        app.router.add_get("/drain", self._drain, allow_head=False)
        app.router.add_post("/drain", self._drain)
        app.router.add_get("/upstreams", self._upstreams)
        if self._page is not None:
            app.router.add_get("/metrics", partial(self._metrics, self._page))
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site: web.BaseSite
            if self._address.path:
                site = web.UnixSite(runner, self._address.path)
            else:
                site = web.TCPSite(runner, self._address.host or None, self._address.port)
            await site.start()
            if not self._address.path:
                self.port = int(runner.addresses[0][1])
            self._listening.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Probes carry no token; everything else needs one where one is configured. A hook of this machine needs none
        either, as whoever can call it there could send a signal."""
        is_open = request.path in _PROBES or (request.path == "/drain" and self._address.is_loopback)
        if self.auth is not None and not is_open:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            try:
                allowed = scheme.lower() == "bearer" and self.auth.matches(token.strip())
            except SecretUnreadableError as error:
                logger.error("the admin port's token: %s", error)  # noqa: TRY400 - the message names the source, no more
                allowed = False
            if not allowed:
                return web.json_response({"error": "unauthorized"}, status=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    async def _livez(self, request: web.Request) -> web.StreamResponse:
        del request
        silent_s = self._plane.silent_s()
        if silent_s > STUCK_AFTER_S:
            return web.Response(status=503, text=f"the data loop has not turned for {silent_s:.0f} s\n")
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        del request
        if reason := self._plane.not_ready_because():
            return web.Response(status=503, text=f"{reason}\n")
        return web.Response(text="ok\n")

    async def _streams(self, request: web.Request) -> web.StreamResponse:
        del request
        body = await self._described(self._plane.ask())
        return _silent() if body is None else web.json_response(body)

    async def _upstreams(self, request: web.Request) -> web.StreamResponse:
        del request
        upstreams = await self._described(self._plane.ask_upstreams())
        return _silent() if upstreams is None else web.json_response({"upstreams": upstreams})

    async def _described(self, asked: Future[T]) -> T | None:
        """What the data loop answers; None where it does not in time."""
        try:
            async with asyncio.timeout(_SNAPSHOT_TIMEOUT_S):
                return await asyncio.wrap_future(asked)
        except TimeoutError:
            return None

    async def _drain(self, request: web.Request) -> web.StreamResponse:
        """A preStop hook: its answer is what the kubelet waits for, whatever the status."""
        if request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
            return web.json_response({"error": "not for other sites' pages"}, status=403)
        try:
            async with asyncio.timeout(self._plane.drain_patience_s + _DRAIN_MARGIN_S):
                drained = await asyncio.wrap_future(self._plane.ask_to_drain())
        except TimeoutError:
            return web.json_response({"error": "the data loop did not answer"}, status=503)
        return web.json_response({"state": drained.state, "active": drained.active, "cut_off": drained.cut_off})

    async def _metrics(self, page: MetricsPage, request: web.Request) -> web.StreamResponse:
        body, content_type = await asyncio.to_thread(page, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})


def _silent() -> web.Response:
    return web.json_response({"error": "the data loop did not answer"}, status=503)
