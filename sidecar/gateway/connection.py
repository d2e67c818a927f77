"""The client's connection: aiohttp's HTTP server protocol, with the events it keeps to itself handed on.

Owns the hooks (departure, flow control, unread sockets) and how protocol errors are answered. Must not know routes,
streams or upstreams; it tells one listener at a time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

from sidecar.answer import own_answer
from sidecar.errors import Failure
from sidecar.formats.problems import problem
from sidecar.subscribers import prepare_client_socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.web_request import BaseRequest

    from sidecar.subscribers import HttpSubscriber

logger = logging.getLogger("sidecar.gateway")

KEEPALIVE_TIMEOUT_S: Final = 75.0
_READ_BUFFER_BYTES: Final = 16 * 1024


class ClientListener(Protocol):
    """Who is told what happens to the connection while a request is being answered."""

    def client_gone(self) -> None:
        """FIN, RST or half-close."""

    def client_blocked(self) -> None:
        """The transport is full."""

    def client_writable(self) -> None:
        """The transport has room again."""

    def client_unread(self, is_unread: bool) -> None:
        """Its leaving would go unheard (its socket is not read, say), or would be heard again."""


class AlreadySent(web.StreamResponse):
    """Tells aiohttp that the answer is on the transport, and whether the connection may carry another."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._is_kept = keep_alive

    async def prepare(self, request: BaseRequest) -> None:
        """Nothing is left to prepare."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may carry another request."""
        return self._is_kept


KEEP: Final = AlreadySent(keep_alive=True)
CLOSE: Final = AlreadySent(keep_alive=False)


class ClientConnection(web.RequestHandler):
    """One client connection. `has_left` is true from the moment the peer closed either side of it."""

    __slots__ = ("_is_reading", "_listener", "_stall_timeout_s", "_subscriber", "has_left", "is_unread")

    def __init__(self, manager: web.Server, *, stall_timeout_s: float, **options: Any) -> None:
        super().__init__(manager, **options)
        self._stall_timeout_s = stall_timeout_s
        self._listener: ClientListener | None = None
        self._subscriber: HttpSubscriber | None = None
        self.has_left = False
        self.is_unread = False
        self._is_reading = True

    def listen(self, listener: ClientListener, subscriber: HttpSubscriber) -> None:
        """From now on ``listener`` is told; at once, if the client has already left."""
        self._listener = listener
        self._subscriber = subscriber
        if self.has_left:
            listener.client_gone()
        elif self.is_unread:
            listener.client_unread(True)

    def unlisten(self) -> None:
        """The request has been answered."""
        self._listener = None
        self._subscriber = None

    def say_continue(self) -> None:
        """Tell a client that waits to be asked that its body is wanted (RFC 9110 section 10.1.1)."""
        if self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what this connection may hold before anything is read."""
        prepare_client_socket(cast("asyncio.Transport", transport), self._stall_timeout_s)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """aiohttp queues a body's framing error behind the very request that waits for that body: tell it now."""
        queued = len(self._messages)
        super().data_received(data)
        if len(self._messages) > queued and isinstance(self._messages[-1][0], _ErrInfo):
            self._break_off_body()

    def _break_off_body(self) -> None:
        """Let the request whose body broke give the one answer there is, and the connection end with it."""
        bodies = [payload for _, payload in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(RequestPayloadError())
                body.feed_eof()
                self._messages.pop()
                self.close()
                return

    def eof_received(self) -> None:
        """A FIN is a departure, even where we could still write: nobody pays for a generation to half a client."""
        self._leave()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The departure first: the upstream is aborted before anything else happens."""
        self._leave()
        super().connection_lost(exc)

    def _leave(self) -> None:
        if not self.has_left:
            self.has_left = True
            if self._listener is not None:
                self._listener.client_gone()

    def pause_writing(self) -> None:
        """The transport is full: the subscriber is not ready."""
        super().pause_writing()
        self._tell_unread()
        if self._subscriber is not None and self._listener is not None:
            self._subscriber.is_ready = False
            self._listener.client_blocked()

    def resume_writing(self) -> None:
        """The transport drained: the subscriber reads on."""
        super().resume_writing()
        self._tell_unread()
        if self._subscriber is not None and self._listener is not None:
            self._subscriber.is_ready = True
            self._listener.client_writable()

    def _pause_transport_reading(self) -> None:
        super()._pause_transport_reading()
        self._is_reading = False
        self._tell_unread()

    def _resume_transport_reading(self) -> None:
        super()._resume_transport_reading()
        self._is_reading = True
        self._tell_unread()

    def _tell_unread(self) -> None:
        """A departure is no event while nobody reads; nor over TLS while writing waits: the loops keep a bare FIN to
        themselves until what they hold is flushed, which to a client that has gone it never is."""
        is_unread = not self._is_reading or (self.writing_paused and self.ssl_context is not None)
        if is_unread != self.is_unread:
            self.is_unread = is_unread
            if self._listener is not None:
                self._listener.client_unread(is_unread)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed, or a bug of ours; nothing of the request is echoed or logged."""
        del message
        if status >= 500:
            logger.error("request failed: %s", type(exc).__name__)
            failure = Failure("internal", "the sidecar failed on this request")
        elif isinstance(exc, LineTooLong) or "Too many headers" in str(exc):
            failure = Failure("headers_too_large", "the request's header block is too large")
        else:
            failure = Failure("bad_request", "the request is not valid HTTP/1.1")
        if self.transport is None or request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        content_type, body = problem("problem", failure, "")
        headers = [(b"Content-Type", content_type.encode())]
        self.transport.write(own_answer((1, 1), failure.http_status, headers, body, keep_alive=False))
        return CLOSE

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """The kind of an unexpected error, never its text: that may quote the request."""
        del args
        logger.error("connection failed: %s", type(kw.get("exc_info")).__name__)


class ClientServer(web.Server):
    """Makes a `ClientConnection` for each accepted socket."""

    def __init__(
        self, handler: Callable[[BaseRequest], Awaitable[web.StreamResponse]], *, stall_timeout_s: float, max_field: int
    ) -> None:
        super().__init__(handler, handler_cancellation=False)
        self._options: dict[str, Any] = {
            "loop": asyncio.get_running_loop(),
            "stall_timeout_s": stall_timeout_s,
            "keepalive_timeout": KEEPALIVE_TIMEOUT_S,
            "tcp_keepalive": False,
            "access_log": None,
            "auto_decompress": False,
            "max_line_size": max_field,
            "max_field_size": max_field,
            "read_bufsize": _READ_BUFFER_BYTES,
        }

    def __call__(self) -> ClientConnection:
        return ClientConnection(self, **self._options)
