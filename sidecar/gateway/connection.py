"""The client's connection: aiohttp's HTTP server protocol, with the events it keeps to itself handed on.

Owns the hooks (departure, flow control, unread sockets), what the client is waited for and until when, and how protocol
errors are answered. Must not know routes, streams or upstreams; it tells one listener at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

from sidecar.answer import own_answer
from sidecar.errors import Failure
from sidecar.formats.problems import problem
from sidecar.gateway.request import ClientRequest
from sidecar.subscribers import WRITE_HIGH_WATER_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.streams import StreamReader
    from aiohttp.web_request import BaseRequest

    from sidecar.gateway.client_server import ClientServer
    from sidecar.subscribers import HttpSubscriber

    Handle = Callable[[ClientRequest, "ClientConnection"], Awaitable[bool]]
    """Answers one request; whether the connection it came on may carry another."""

logger = logging.getLogger("sidecar.gateway")

KEEPALIVE_TIMEOUT_S: Final = 75.0
"""How long a connection may wait for a request: the first one, too."""

UNREAD_ANSWERS_S: Final = 30.0
"""How long a client that sends requests in a row may leave their answers unread."""

LINGER_S: Final = 10.0
"""How long the rest of a body that nobody wanted is taken, so that its sender gets to read the answer."""


class Awaited(Enum):
    """What a client has to send next. Each has its deadline, which one sweep looks after."""

    __hash__ = object.__hash__

    NOTHING = "nothing"
    """It is our turn: its request is being answered, or sent on as it comes."""
    REQUEST = "request"
    """The first byte of its next request, or of its first one."""
    HEAD = "head"
    """The rest of a head that has begun."""
    BODY = "body"
    """The rest of a body that is read whole."""


AWAITED_MOVES: Final[dict[Awaited, frozenset[Awaited]]] = {
    Awaited.REQUEST: frozenset({Awaited.HEAD, Awaited.NOTHING}),
    Awaited.HEAD: frozenset({Awaited.NOTHING}),
    Awaited.NOTHING: frozenset({Awaited.BODY, Awaited.REQUEST, Awaited.HEAD}),
    Awaited.BODY: frozenset({Awaited.NOTHING, Awaited.REQUEST, Awaited.HEAD}),
}
"""What may be waited for after what."""


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


class ClientConnection(web.RequestHandler):
    """One client connection. `has_left` is true from the moment the peer closed either side of it."""

    __slots__ = (
        "_handle",
        "_head_bytes",
        "_is_reading",
        "_listener",
        "_server",
        "_subscriber",
        "awaited",
        "due_at",
        "has_left",
        "is_unread",
    )

    def __init__(self, server: ClientServer, *, handle: Handle, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._handle = handle
        self._head_bytes = 0
        self.awaited = Awaited.REQUEST
        self.due_at = self._loop.time() + KEEPALIVE_TIMEOUT_S
        """When what is awaited has to be there, by the loop's clock."""
        self._listener: ClientListener | None = None
        self._subscriber: HttpSubscriber | None = None
        self.has_left = False
        self.is_unread = False
        self._is_reading = True

    @property
    def task(self) -> asyncio.Task[None]:
        """The task that serves this connection, and runs as long as it lasts."""
        assert self._task_handler is not None  # noqa: S101 - it runs as long as the connection lasts
        return self._task_handler

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
        """Bound what this connection may hold before anything is read.

        aiohttp's own way sets TCP_NODELAY, which the loops have done, through a socket object made for that alone.
        """
        self.transport = own = cast("asyncio.Transport", transport)
        own.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        if self._manager is not None:
            self._manager.connection_made(self, own)
        self._task_handler = self._loop.create_task(self.start())

    def data_received(self, data: bytes) -> None:
        """aiohttp queues a body's framing error behind the very request that waits for that body: tell it now."""
        queued = len(self._messages)
        super().data_received(data)
        if len(self._messages) > queued:
            self._head_bytes = 0
            if isinstance(self._messages[-1][0], _ErrInfo):
                self._break_off_body()
        elif data and not self._is_within_body:
            self._hold_head(data)

    @property
    def _is_within_body(self) -> bool:
        """What comes next belongs to the body of a request whose head is here."""
        if self._messages:
            return not self._messages[-1][1].is_eof()
        return self._current_request is not None and not self._current_request.content.is_eof()

    def _hold_head(self, data: bytes) -> None:
        """``data`` is a piece of a head that is not whole yet, and held by the parser until it is."""
        if self._close or self._force_close or self._upgraded:
            return
        if not self._head_bytes and not data.strip(b"\r\n"):
            return  # what careless clients send behind a body
        self._head_bytes += len(data)
        is_waiting = self._waiter is not None and not self._waiter.done()
        if self._head_bytes > self._server.max_header_bytes:
            if is_waiting:
                self._break_off(_headers_too_large())
            else:
                self._close = True  # the request before it has its answer yet to come
        elif is_waiting and self.awaited is Awaited.REQUEST:
            self._await(Awaited.HEAD, self._loop.time() + self._server.limits.header_timeout_s)

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
        self._server.left()

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

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp says so at the end of every body; only what was paused has something to catch up with."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

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

    async def start(self) -> None:
        """Serve the connection's requests one after the other, in its own task.

        aiohttp's own way gives every request one more task, and keeps all that was read of it until it is answered.
        """
        try:
            while not self._force_close and await self._serve_next():
                self._await_request()
                if self._messages and not await self._take_turns():
                    break
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as error:  # noqa: BLE001 - a bug ends this connection and no other
            self.log_exception(exc_info=error)
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def _await(self, awaited: Awaited, due_at: float) -> None:
        if awaited not in AWAITED_MOVES[self.awaited]:
            raise RuntimeError(f"nothing leads from {self.awaited} to {awaited}")
        self.awaited = awaited
        self.due_at = due_at

    def _await_request(self) -> None:
        now = self._loop.time()
        if self._head_bytes:  # it began while the one before was answered
            self._await(Awaited.HEAD, now + self._server.limits.header_timeout_s)
        else:
            self._await(Awaited.REQUEST, now + KEEPALIVE_TIMEOUT_S)

    async def _serve_next(self) -> bool:
        """One request, from its head to its answer. Whether there may be another."""
        if not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._await(Awaited.NOTHING, inf)
        message, payload = self._messages.popleft()
        self._make_room()
        if isinstance(message, _ErrInfo):
            self._answer_error(message.exc)
            return False
        request = ClientRequest(message, payload)
        if self._server.is_crowded:
            request.keep_alive = False
        self._current_request = None if payload.is_eof() else cast("BaseRequest", request)
        self._request_in_progress = True
        answering = self._handle(request, self)
        del message, payload, request  # a stream lets go of its request long before its end
        try:
            try:
                keep_alive = await answering
            except ConnectionError:
                keep_alive = False
            except Exception as error:  # noqa: BLE001 - the client is told, whatever it was
                logger.error(  # noqa: TRY400 - its text may quote the request
                    "request failed: %s", type(error).__name__
                )
                self._answer_error(None)
                keep_alive = False
            # From here on nothing is written: the request has its answer.
            if self._current_request is not None and not self.has_left:
                keep_alive = await self._linger(self._current_request.content) and keep_alive
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        return keep_alive and not self._close and not self._upgraded

    def _make_room(self) -> None:
        """A request was taken off the queue: more may be parsed, and read where the queue was full."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    async def _take_turns(self) -> bool:
        """Between requests that came in one go: others get their turn, and answers wait for a client that reads none.
        False where it takes none for too long."""
        await asyncio.sleep(0)
        if not self.writing_paused:
            return True
        try:
            async with asyncio.timeout(UNREAD_ANSWERS_S):
                await self._drain_helper()
        except (TimeoutError, ConnectionError):
            return False
        return True

    async def _linger(self, unread: StreamReader) -> bool:
        """Take the rest of a body in silence: to close on bytes nobody has read would reset the answer. Whether all of
        it came."""
        with contextlib.suppress(TimeoutError, HttpProcessingError, RequestPayloadError, OSError):
            async with asyncio.timeout(LINGER_S):
                while not unread.is_eof() and not self._force_close:
                    await unread.readany()
        return unread.is_eof()

    def await_body(self) -> None:
        """All of the request's body has to be here before anything is done with it, and in time."""
        self._await(Awaited.BODY, self._loop.time() + self._server.limits.body_timeout_s)

    def body_taken(self) -> None:
        """All of the request's body has been read: nothing here needs the request any more."""
        self._current_request = None
        if self.awaited is Awaited.BODY:
            self._await(Awaited.NOTHING, inf)

    @property
    def is_upgrading(self) -> bool:
        """The parser has stopped behind a request for another protocol, so that no request behind it can be told."""
        return bool(self._upgraded)

    @property
    def has_unsent(self) -> bool:
        """A request waits for its turn, or the transport still holds bytes of an answer."""
        return bool(self._messages) or (self.transport is not None and self.transport.get_write_buffer_size() > 0)

    @property
    def is_idle(self) -> bool:
        """It waits for a request of which nothing has come."""
        return self.awaited is Awaited.REQUEST and self._waiter is not None and not self._waiter.done()

    def cut(self) -> None:
        """What was awaited has not come in time. What has come in this very turn is spared."""
        if self.awaited is Awaited.BODY:
            if self._current_request is not None and not self._current_request.content.is_eof():
                late = f"the request's body was not here within {self._server.limits.body_timeout_s:g} s"
                self._current_request.content.set_exception(Failure("request_timeout", late))
        elif self._waiter is None or self._waiter.done():
            return
        elif self.awaited is Awaited.HEAD:
            late = f"the request's head was not whole within {self._server.limits.header_timeout_s:g} s"
            self._break_off(Failure("request_timeout", late))
        else:
            self.force_close()

    def _answer_error(self, exc: BaseException | None) -> None:
        """Answer a request that could not be parsed, or a bug of ours; nothing of the request is echoed or logged."""
        if exc is None:
            failure = Failure("internal", "the sidecar failed on this request")
        elif isinstance(exc, LineTooLong) or "Too many headers" in str(exc):
            failure = _headers_too_large()
        else:
            failure = Failure("bad_request", "the request is not valid HTTP/1.1")
        self._answer_failure(failure)

    def _answer_failure(self, failure: Failure) -> None:
        if self.transport is None:
            return
        content_type, body = problem("problem", failure, "")
        headers = [(b"Content-Type", content_type.encode())]
        self.transport.write(own_answer((1, 1), failure.http_status, headers, body, keep_alive=False))

    def _break_off(self, failure: Failure) -> None:
        """Say why no request is waited for any more, and close."""
        self._answer_failure(failure)
        self.force_close()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """The kind of an unexpected error, never its text: that may quote the request."""
        del args
        logger.error("connection failed: %s", type(kw.get("exc_info")).__name__)


def _headers_too_large() -> Failure:
    return Failure("headers_too_large", "the request's header block is too large")
