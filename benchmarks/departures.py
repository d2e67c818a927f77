"""Clients that leave, and the upstream that notices: both in one loop, so that one clock sees both ends.

Owns the sockets of both sides and the moments they note. Must not know proxies, nor how moments become a table.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
import time
from typing import Final, Literal, cast

Phase = Literal["prefill", "headers", "stream", "stalled", "nonstream"]
Way = Literal["fin", "rst", "half"]

_TOKEN_INTERVAL_S: Final = 0.1
"""Wide, so that a proxy which notices a departure only at the next token is seen to."""

_STALLED_FOR_S: Final = 1.0
_STALLED_CLIENT_BUFFER_BYTES: Final = 4096
_UPSTREAM_BUFFER_BYTES: Final = 64 * 1024
_TAG: Final = re.compile(rb"departure-(\d+)\.")
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS: Final = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n{"object":"list","data":[]}'
)


def _token(content: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "bench", "choices": [choice]}
    frame = b"data: %b\n\n" % json.dumps(chunk).encode()
    return b"%x\r\n%b\r\n" % (len(frame), frame)


_SMALL_TOKEN: Final = _token("word")
_LARGE_TOKENS: Final = _token("x" * 4000) * 8


class Departure:
    """A stream its client will leave, and what each side has seen of it. Times are `time.perf_counter` seconds."""

    __slots__ = ("arrived", "blocked", "left_at", "noticed_at", "phase")

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.arrived = asyncio.Event()
        """The phase is reached: the upstream has the request, or the client its first token."""
        self.blocked = asyncio.Event()
        """The upstream can write no more."""
        self.left_at = 0.0
        self.noticed_at = 0.0

    @property
    def latency_ms(self) -> float | None:
        """From leaving to the upstream's connection closing; None if that has not happened."""
        return (self.noticed_at - self.left_at) * 1e3 if self.left_at and self.noticed_at else None


class Upstream:
    """Listens, and recognises the departures it has been told of by the tag in their requests."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._server: asyncio.Server | None = None
        self.departures: dict[int, Departure] = {}
        self.port = 0
        self.filled_at = 0.0
        """When a stalled stream last took anything, by the loop's clock."""

    async def __aenter__(self) -> Upstream:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _UpstreamConnection(self, loop), "127.0.0.1", 0, ssl=self._tls, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    async def wait_until_stalled(self) -> None:
        """Return when every buffer on the way is full: nothing has been taken for a while."""
        loop = asyncio.get_running_loop()
        while loop.time() < self.filled_at + _STALLED_FOR_S:
            await asyncio.sleep(_STALLED_FOR_S / 10)


class _UpstreamConnection(asyncio.Protocol):
    """One connection of the proxy's: says nothing, or streams, as the phase of its departure asks."""

    def __init__(self, upstream: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self._upstream = upstream
        self._loop = loop
        self._request = b""
        self._departure: Departure | None = None
        self._is_full = False
        self._is_gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods without the base class.
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UPSTREAM_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._departure is not None:
            return
        self._request += data
        if self._request.startswith(b"GET") and b"\r\n\r\n" in self._request:
            self._request = b""
            self._transport.write(_MODELS)
        elif tag := _TAG.search(self._request):
            self._departure = self._upstream.departures.get(int(tag.group(1)))
            if self._departure is not None:
                self._answer(self._departure)

    def _answer(self, departure: Departure) -> None:
        if departure.phase in {"headers", "stream", "stalled"}:
            self._transport.write(_HEAD)
        if departure.phase == "stream":
            self._write_tokens()
            return
        departure.arrived.set()
        if departure.phase == "stalled":
            self._fill()

    def _write_tokens(self) -> None:
        if not self._is_gone:
            self._transport.write(_SMALL_TOKEN)
            self._loop.call_later(_TOKEN_INTERVAL_S, self._write_tokens)

    def _fill(self) -> None:
        if not self._is_gone and not self._is_full:
            self._upstream.filled_at = self._loop.time()
            self._transport.write(_LARGE_TOKENS)
            self._loop.call_soon(self._fill)

    def pause_writing(self) -> None:
        self._is_full = True
        if self._departure is not None:
            self._departure.blocked.set()

    def resume_writing(self) -> None:
        self._is_full = False
        self._fill()

    def eof_received(self) -> None:
        self._notice()

    def connection_lost(self, exc: Exception | None) -> None:
        self._notice()

    def _notice(self) -> None:
        self._is_gone = True
        if self._departure is not None and not self._departure.noticed_at:
            self._departure.noticed_at = time.perf_counter()


class Client:
    """One client, on a bare socket: a transport would add turns of the loop between leaving and the system call."""

    def __init__(self, departure: Departure, tls: ssl.SSLContext | None) -> None:
        self._departure = departure
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._is_reading = False

    async def ask(self, port: int, number: int, headers: tuple[str, ...]) -> None:
        """Connect and send the request; read what comes, unless this client is one that never reads."""
        if self._departure.phase == "stalled":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STALLED_CLIENT_BUFFER_BYTES)
        self._socket.setblocking(False)
        await self._loop.sock_connect(self._socket, ("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            await self._shake_hands(self._tls)
        # One write of some hundred bytes into an empty socket is taken whole.
        self._socket.send(_request(self._departure.phase, number, headers))
        if self._departure.phase != "stalled":
            self._loop.add_reader(self._socket.fileno(), self._read)
            self._is_reading = True

    async def _shake_hands(self, tls: ssl.SSLContext) -> None:
        secured = tls.wrap_socket(self._socket, server_hostname="127.0.0.1", do_handshake_on_connect=False)
        self._socket = secured
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                await self._readable()
            else:
                return

    async def _readable(self) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(self._socket.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(self._socket.fileno())

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if not data:
            self._stop_reading()
        elif b"word" in data:
            self._departure.arrived.set()

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._socket.fileno())

    def leave(self, way: Way) -> None:
        """Go, as ``way`` says. Over TLS "fin" and "half" say goodbye first, as real clients do."""
        self._stop_reading()
        departure = self._departure
        if way == "rst":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            departure.left_at = time.perf_counter()
            self._socket.close()
            return
        departure.left_at = time.perf_counter()
        if isinstance(self._socket, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                self._socket.unwrap()
        # shutdown, not close: with unread bytes close() would send an RST.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR if way == "half" else socket.SHUT_RDWR)

    def close(self) -> None:
        """Free the socket. Idempotent."""
        self._stop_reading()
        self._socket.close()


def _request(phase: Phase, number: int, headers: tuple[str, ...]) -> bytes:
    content = f"departure-{number}."
    asked = {"model": "bench", "stream": phase != "nonstream", "messages": [{"role": "user", "content": content}]}
    body = json.dumps(asked)
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        *headers,
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
