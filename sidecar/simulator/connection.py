"""The simulated upstream's side of one HTTP/1.1 connection: requests in, bytes out, departures noticed.

Owns parsing, flow control and the ways a connection can end. Must not know dialects or which fault was asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NoReturn, cast
from urllib.parse import parse_qsl, unquote

import httptools

UPLOAD_PATH: Final = "/upload"
"""Bodies sent here are counted and hashed as they come, never held."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class ConnectionEndedError(Exception):
    """The connection was ended on purpose in the middle of an answer; nothing more can be sent."""


@dataclass(slots=True)
class Request:
    """One request; header names are lower-case."""

    method: str = ""
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    body_bytes: int = 0
    body_sha256: str = ""
    is_http_10: bool = False


@dataclass(slots=True)
class Books:
    """What the server knows about all its connections; ``changed`` is called after each change."""

    changed: Callable[[], None]
    connections: set[Connection] = field(default_factory=set)
    cancelled: int = 0
    bytes_sent: int = 0
    is_closing: bool = False


class Connection(asyncio.Protocol):
    """Parses requests and has each answered by ``answer``, one at a time."""

    def __init__(self, books: Books, answer: Callable[[Request, Connection], Coroutine[None, None, None]]) -> None:
        self._books = books
        self._answer = answer
        self._request = Request()
        self._digest = hashlib.sha256()
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_exchanging = False
        self.keeps_alive = True
        self.task: asyncio.Task[None] | None = None

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer has come."""
        self.transport = cast("asyncio.Transport", transport)
        # Nothing waits here: a peer that stops reading is felt at once, and what was sent is in the kernel's hands.
        self.transport.set_write_buffer_limits(high=0)
        self._parser = httptools.HttpRequestParser(self)
        self._books.connections.add(self)
        self._books.changed()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.keeps_alive = False  # answered as the plain request it also is; what follows it is not HTTP
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.transport.close()

    def eof_received(self) -> None:
        """The peer sends no more: to a model server that means it has left."""
        if self.is_exchanging:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        self._books.connections.discard(self)
        if self.is_exchanging and not self._books.is_closing:
            self._books.cancelled += 1
        if self.task is not None:
            self.task.cancel()
        self._books.changed()

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """All that was written is in the kernel."""
        self._writable.set()

    # What the parser says

    def on_message_begin(self) -> None:
        """A request begins."""
        if self.is_exchanging:
            self.transport.abort()  # pipelining, which no client of ours does
        self._request = Request()
        self._digest = hashlib.sha256()
        self._target = b""

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        url = httptools.parse_url(self._target)
        self._request.method = self._parser.get_method().decode()
        self._request.path = unquote((url.path or b"/").decode("latin-1"))
        self._request.query = dict(parse_qsl((url.query or b"").decode("latin-1"), keep_blank_values=True))
        self._request.is_http_10 = self._parser.get_http_version() == "1.0"
        self.is_exchanging = True
        self._books.changed()
        if self._request.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._request.body_bytes += len(data)
        if self._request.path == UPLOAD_PATH:
            self._digest.update(data)
        else:
            self._request.body += data

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._request.body_sha256 = self._digest.hexdigest()
        self.keeps_alive = self._parser.should_keep_alive()
        self.task = asyncio.get_running_loop().create_task(self._exchange(self._request))

    async def _exchange(self, request: Request) -> None:
        try:
            await self._answer(request, self)
        except ConnectionEndedError:
            self.keeps_alive = False
        self.is_exchanging = False
        if not self.keeps_alive:
            self.transport.close()
        self._books.changed()

    # What an answer does

    async def send(self, data: bytes) -> None:
        """Write ``data`` and wait until the kernel has it."""
        self.transport.write(data)
        self._books.bytes_sent += len(data)
        await self._writable.wait()

    async def send_head(self, status: int, headers: dict[str, str]) -> None:
        """Write the status line and headers, which say whether the connection is kept."""
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "Unknown"
        connection = "keep-alive" if self.keeps_alive else "close"
        fields = {"Server": "sidecar-simulator", **headers, "Connection": connection}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self.send(f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode("latin-1"))

    def cut(self, *, with_reset: bool) -> NoReturn:
        """End the connection now, with FIN or RST; a reset may cost the peer what it has not read yet. Always raises
        ConnectionEndedError."""
        self.is_exchanging = False
        if with_reset:
            sock: socket.socket = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()
        raise ConnectionEndedError
