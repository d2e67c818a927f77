"""One connection to an upstream and the one exchange it may be carrying.

Owns the callbacks of the transport, the order in which a sink is told things, and the verdict whether the connection
can carry another exchange. Must not know who the sink is, nor how the connection was dialled.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from sidecar.errors import Failure
from sidecar.ports import Exchange, ResponseSink
from sidecar.upstream import sockets
from sidecar.upstream.exchange import NOBODY, Drain, Handle
from sidecar.upstream.response import ResponseReader

_SIZE_LINE_BYTES: Final = 6
CHUNK_SIZES: Final = {size: number for number in range(1, 0x1000) for size in (b"%x" % number, b"%X" % number)}
"""The size lines of small chunks: looking one up is strict, where int() would take signs and underscores."""

JOINED_WRITE_BYTES: Final = 64 * 1024
"""Bodies up to this size are copied behind their head: one write is cheaper than one copy."""


class ConnectionOwner(Protocol):
    """Who keeps connections between exchanges."""

    def give_back(self, connection: Connection) -> None:
        """The connection may be used again."""

    def forget(self, connection: Connection) -> None:
        """The connection is gone. Idempotent."""


class Connection(asyncio.Protocol):
    """An HTTP/1.1 client connection: one `send` at a time. ``is_reused``: it has carried an exchange before.

    The owner is told exactly when it may be used again; every other end drops it.
    """

    __slots__ = (
        "__weakref__",
        "_chunked_body",
        "_exchange",
        "_has_answered",
        "_in_body",
        "_is_paused",
        "_is_request_sent",
        "_loop",
        "_owner",
        "_reader",
        "_sink",
        "_transport",
        "_writable",
        "idle_since",
        "is_reused",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: ConnectionOwner, max_header_bytes: int) -> None:
        self._loop = loop
        self._owner: ConnectionOwner | None = owner
        self._reader = ResponseReader(max_header_bytes)
        self._transport: asyncio.Transport | None = None
        self._exchange: Handle | None = None
        self._sink: ResponseSink = NOBODY
        self._writable: asyncio.Event | None = None
        self._in_body = False
        self._has_answered = False
        self._is_paused = False
        self._is_request_sent = False
        self._chunked_body = False
        self.is_reused = False
        self.idle_since = 0.0

    def __repr__(self) -> str:
        state = "closed" if self.is_closing else "busy" if self._exchange is not None else "idle"
        return f"<Connection {state}>"

    @property
    def is_closing(self) -> bool:
        """No exchange can begin on it: closed, by either side, or by its owner while it was dialled."""
        return self._owner is None or self._transport is None or self._transport.is_closing()

    @property
    def is_quiet(self) -> bool:
        """Open, and the peer has sent neither bytes nor an end since the last exchange. One system call."""
        transport = self._transport
        if transport is None or self.is_closing:
            return False
        return sockets.is_quiet(transport.get_extra_info("socket").fileno())

    def send(
        self, sink: ResponseSink, *, method: bytes, head: bytes, body: bytes | None, chunked_body: bool
    ) -> Exchange:
        """Send a request and tell ``sink`` what is answered, never before this has returned.

        ``head`` is what `request_head` gave. ``body`` is the whole body (b"" for none); None means that it follows
        through ``Exchange.write_body`` and ``end_body``: in chunks if ``chunked_body``, else bare.
        """
        exchange = Handle(self)
        self._exchange = exchange
        self._sink = sink
        self._in_body = False
        self._has_answered = False
        self._chunked_body = chunked_body
        self._is_request_sent = body is not None
        self._reader.start(is_head_request=method == b"HEAD")
        transport = self._transport
        if transport is None:
            self._loop.call_soon(exchange.lost)
        elif body and len(body) <= JOINED_WRITE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            if body:
                transport.write(body)
        return exchange

    def close(self) -> None:
        """Drop the connection now; a running exchange's sink hears nothing more. Idempotent."""
        self._end_exchange()
        if self._transport is not None:
            # Not close(): over TLS that waits for the peer, which may go on generating meanwhile.
            self._transport.abort()
        self._leave_owner()

    def fail(self, failure: Failure, *, may_resend: bool = False) -> None:
        """Drop the connection now and tell a running exchange's sink why."""
        sink = self._sink
        self.close()
        sink.on_fail(failure, may_resend=may_resend)

    # The transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods without the base class.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=sockets.WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._read_head(data)
            return
        reader = self._reader
        if reader.is_between_chunks:
            # One chunk a read is what a generating model gives: its size line is looked up, not parsed.
            line_end = data.find(b"\r\n", 1, _SIZE_LINE_BYTES)
            size = CHUNK_SIZES.get(data[:line_end])
            if size is not None and size + line_end + 4 == len(data) and data.endswith(b"\r\n"):
                try:
                    self._sink.on_body(data[line_end + 2 : -2])
                except BaseException:
                    self.close()
                    raise
                return
        body = reader.feed(data)
        if body:
            try:
                if reader.message.is_over:
                    self._sink.on_last_body(body)
                else:
                    self._sink.on_body(body)
            except BaseException:
                self.close()
                raise
        if reader.message.is_over:
            self._end_response()

    def eof_received(self) -> None:
        self._peer_left(None)
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._peer_left(exc)
        self._leave_owner()

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = asyncio.Event()
        self._writable.clear()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()

    # What an answer leads to

    def _read_head(self, data: bytes) -> None:
        if self._exchange is None:
            # Nothing was asked: whatever this is, the next answer could not be told from it.
            self.close()
            return
        self._has_answered = True
        reader = self._reader
        head = reader.read_head(data)
        if head is None:
            if reader.failure is not None:
                self.fail(reader.failure)
            return
        self._in_body = True
        exchange = self._exchange
        try:
            self._sink.on_head(head)
        except BaseException:
            self.close()
            raise
        if self._exchange is not exchange:
            return
        if reader.message.is_over:
            self._end_response()
        elif reader.rest:
            rest, reader.rest = reader.rest, b""
            self.data_received(rest)

    def _end_response(self) -> None:
        """The body is whole or malformed. Only a connection in a known, quiet state is used again."""
        if self._exchange is None:
            return
        reader, transport = self._reader, self._transport
        if reader.failure is not None:
            self.fail(reader.failure)
            return
        sink = self._sink
        if (
            reader.is_kept_alive
            and self._is_request_sent
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        ):
            self._end_exchange()
            self._become_idle()
        else:
            self.close()
        sink.on_end()

    def _become_idle(self) -> None:
        self.resume_reading()
        self.is_reused = True
        self.idle_since = self._loop.time()
        if self._owner is not None:
            self._owner.give_back(self)

    def _peer_left(self, error: Exception | None) -> None:
        """The peer ended the connection, or ``error`` did. Tells a running exchange's sink."""
        if self._exchange is None:
            return
        if not self._has_answered:
            failure = Failure("upstream_reset", "the upstream closed the connection without an answer")
            self.fail(failure, may_resend=self.is_reused)
        elif error is not None:
            self.fail(Failure("upstream_reset", "the upstream reset the connection within its answer"))
        elif not self._in_body:
            self.fail(Failure("upstream_truncated", "the upstream closed the connection within its header block"))
        elif self._reader.is_eof_delimited:
            sink = self._sink
            self.close()
            sink.on_end()
        else:
            self.fail(Failure("upstream_truncated", "the upstream closed the connection before the end of the body"))

    def _end_exchange(self) -> None:
        """Cut every tie to the exchange, so that a late call on it cannot reach the next one."""
        exchange = self._exchange
        if exchange is None:
            return
        exchange.connection = None
        self._exchange = None
        self._sink = NOBODY
        self._in_body = False
        if self._writable is not None:
            self._writable.set()

    def _leave_owner(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.forget(self)

    # What the exchange asks for

    def pause_reading(self) -> None:
        """Stop reading. Idempotent."""
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on. Idempotent."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def hand_to(self, sink: ResponseSink) -> None:
        """Tell ``sink`` what is still to come of the answer."""
        if self._exchange is not None:
            self._sink = sink

    def drain_answer(self) -> None:
        """Take the rest of the answer in silence, within bounds. Idempotent."""
        if self._exchange is not None:
            if not isinstance(self._sink, Drain):
                self._sink = Drain(self._exchange, self._loop)
            self.resume_reading()

    @property
    def is_writable(self) -> bool:
        """The transport's write buffer is below its mark."""
        return self._writable is None or self._writable.is_set()

    async def wait_writable(self) -> None:
        """Suspends until `is_writable` or the exchange is over."""
        if self._writable is not None:
            await self._writable.wait()

    def write_body(self, data: bytes) -> None:
        """Send a piece of the request body."""
        if self._transport is None or self._is_request_sent or not data:
            return
        if self._chunked_body:
            self._transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
        else:
            self._transport.write(data)

    def end_body(self) -> None:
        """The request body is whole."""
        if self._transport is None or self._is_request_sent:
            return
        self._is_request_sent = True
        if self._chunked_body:
            self._transport.write(b"0\r\n\r\n")
