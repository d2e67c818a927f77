"""What the tests of the upstream edge share: both event loops, a sink that records, a peer the test speaks for."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from sidecar.errors import Failure
from sidecar.ports import Exchange, ResponseHead
from sidecar.settings import Address, Timeouts, Upstream, UpstreamTls
from sidecar.upstream import Connection, UpstreamPool, request_head

Run = Callable[[Coroutine[Any, Any, None]], None]
DEADLINE_S = 10.0
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def run_on(loop_name: str, body: Coroutine[Any, Any, None]) -> None:
    """Run one test body to its end; an exception that reaches the loop's handler fails the test."""
    factory = uvloop.new_event_loop if loop_name == "uvloop" else asyncio.new_event_loop
    unhandled: list[dict[str, Any]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        async with asyncio.timeout(DEADLINE_S):
            await body
        await turns(5)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bounded())
    assert unhandled == []


LOOPS = [functools.partial(run_on, name) for name in ("asyncio", "uvloop")]
each_loop = pytest.mark.parametrize("run", LOOPS, ids=["asyncio", "uvloop"])
"""Runs a test on both loops; its ``run`` takes the test's coroutine."""


async def turns(count: int) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


class Watched:
    """Something a test can wait on until a condition holds."""

    def __init__(self) -> None:
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def changed(self) -> None:
        for condition, waiter in list(self._waiters):
            if not waiter.done() and condition():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        if condition():
            return
        entry = (condition, asyncio.get_running_loop().create_future())
        self._waiters.append(entry)
        try:
            await entry[1]
        finally:
            self._waiters.remove(entry)


class Recorder(Watched):
    """A ResponseSink that remembers what it was told; ``react`` is called with each word, inside the callback."""

    def __init__(self, react: Callable[[str], None] = lambda _word: None) -> None:
        super().__init__()
        self.words: list[str] = []
        self.pieces: list[bytes] = []
        self.head: ResponseHead | None = None
        self.failure: Failure | None = None
        self.may_resend: bool | None = None
        self._react = react

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def code(self) -> str | None:
        return None if self.failure is None else self.failure.code

    def _told(self, word: str) -> None:
        self.words.append(word)
        self.changed()
        self._react(word)

    def on_head(self, head: ResponseHead) -> None:
        self.head = head
        self._told("head")

    def on_last_body(self, data: bytes) -> None:
        self.on_body(data)

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)
        self._told("body")

    def on_end(self) -> None:
        self._told("end")

    def on_fail(self, failure: Failure, *, may_resend: bool) -> None:
        self.failure = failure
        self.may_resend = may_resend
        self._told("fail")

    async def told_more(self, than: int) -> None:
        """Until more words than this have come."""
        await self.until(lambda: len(self.words) > than)

    async def has_body(self, body: bytes) -> None:
        """Until exactly this body has come."""
        await self.until(lambda: self.body == body)

    async def over(self) -> None:
        await self.until(lambda: bool(self.words) and self.words[-1] in {"end", "fail"})


class Peer(asyncio.Protocol, Watched):
    """The upstream's end of one connection; the test says what it does."""

    def __init__(self, server: Server) -> None:
        Watched.__init__(self)
        self.data = bytearray()
        self.is_lost = False
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._server.peers.append(self)
        self._server.changed()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.changed()

    async def request(self) -> bytes:
        """The next request's head, taken off the received bytes."""
        await self.until(lambda: b"\r\n\r\n" in self.data)
        head, _, rest = bytes(self.data).partition(b"\r\n\r\n")
        self.data[:] = rest
        return head + b"\r\n\r\n"

    def write_now(self, data: bytes) -> None:
        """Into the kernel's buffer before this call returns, whatever the loop."""
        os.write(self.transport.get_extra_info("socket").fileno(), data)

    def end_now(self) -> None:
        """Half-close before this call returns."""
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as copy:
            copy.shutdown(socket.SHUT_WR)

    async def received(self) -> None:
        """Until anything has come."""
        await self.until(lambda: bool(self.data))

    async def lost(self) -> None:
        await self.until(lambda: self.is_lost)

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def end(self) -> None:
        self.transport.close()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()


class Server(Watched):
    """A listening upstream; ``peers`` in the order they connected."""

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[Peer] = []
        self.address = Address()

    async def peer(self, number: int = 0) -> Peer:
        await self.until(lambda: len(self.peers) > number)
        return self.peers[number]


@asynccontextmanager
async def serving(*, tls: ssl.SSLContext | None = None, unix_path: str = "") -> AsyncIterator[Server]:
    """A `Server` on loopback, or on a Unix socket."""
    loop = asyncio.get_running_loop()
    server = Server()
    if unix_path:
        listener = await loop.create_unix_server(lambda: Peer(server), unix_path, ssl=tls)
        server.address = Address(path=unix_path)
    else:
        listener = await loop.create_server(lambda: Peer(server), "127.0.0.1", 0, ssl=tls)
        server.address = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        listener.close()
        for peer in server.peers:
            peer.transport.abort()
        await turns(3)


def open_files() -> int:
    """How many file descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))


def upstream_at(
    address: Address,
    *,
    scheme: Any = "http",
    connect_s: float = 5.0,
    tls: UpstreamTls = UpstreamTls(),  # noqa: B008 - frozen
    proxy: str | None = None,
    authority: str = "llm.test",
) -> Upstream:
    """Settings of an upstream at an address."""
    return Upstream("llm", scheme, address, authority, timeouts=Timeouts(connect_s=connect_s), tls=tls, proxy=proxy)


@asynccontextmanager
async def pooled(upstream: Upstream, **options: Any) -> AsyncIterator[UpstreamPool]:
    """A pool that leaves nothing behind."""
    pool = UpstreamPool(upstream, environ=options.pop("environ", {}), **options)
    try:
        yield pool
    finally:
        pool.close()
        await turns(3)
        assert (pool.active, pool.idle) == (0, 0)


def send(
    connection: Connection,
    sink: Recorder,
    *,
    method: bytes = b"GET",
    body: bytes | None = b"",
    chunked: bool = False,
) -> Exchange:
    """Send a small request."""
    head = request_head(method, b"/", [(b"Host", b"llm.test")])
    return connection.send(sink, method=method, head=head, body=body, chunked_body=chunked)


async def asked(
    pool: UpstreamPool, server: Server, sink: Recorder, *, number: int = 0, **options: Any
) -> tuple[Peer, Exchange]:
    """Dial, send, and wait until the peer has the request."""
    connection = pool.take() or await pool.dial()
    exchange = send(connection, sink, **options)
    peer = await server.peer(number)
    await peer.request()
    return peer, exchange


async def raises(code: str, attempt: Awaitable[object]) -> Failure:
    """The Failure of this code that the attempt raises."""
    with pytest.raises(Failure) as caught:
        await attempt
    assert caught.value.code == code, caught.value.message
    return caught.value
