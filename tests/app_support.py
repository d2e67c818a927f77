"""What the tests over real sockets share: the assembled `App`, an upstream that answers by itself, and a raw client.

Tests that speak for the upstream byte by byte use `tests.upstream_support.serving` beside these.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sidecar.app import App
from sidecar.settings import Address, Route, Settings, Upstream
from sidecar.telemetry.line_output import LineOutput
from tests.observing import Counting
from tests.upstream_support import run_on, turns

ANY_PORT = Address("127.0.0.1", 0)
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
OLLAMA_CHAT = "/api/chat"
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
Headers = Sequence[tuple[str, str]]


def on_uvloop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on the loop the sidecar runs on; an exception that reaches the loop's handler fails it."""

    @functools.wraps(test)
    def sync(*args: Any, **fixtures: Any) -> None:
        run_on("uvloop", test(*args, **fixtures))  # type: ignore[arg-type]  # an async def's Awaitable is a coroutine

    return sync


# Building settings and the app.


def upstream_at(address: Address, name: str = "llm", **options: Any) -> Upstream:
    """Settings of an upstream, plain HTTP and no proxy unless told otherwise."""
    options = {"authority": f"{name}.test", "proxy": "", **options}
    return Upstream(name, options.pop("scheme", "http"), address, options.pop("authority"), **options)


def settings_for(
    *upstreams: Upstream, routes: Sequence[Route] = (), route: Mapping[str, Any] = {}, **options: Any
) -> Settings:
    """One route to all of ``upstreams``, changed by ``route``; or ``routes`` as they are. Ports are free ones."""
    chosen = tuple(routes) or (replace(Route("all", tuple(each.name for each in upstreams)), **route),)
    return Settings(
        {each.name: each for each in upstreams}, chosen, **{"listen": ANY_PORT, "admin": ANY_PORT, **options}
    )


@asynccontextmanager
async def running(
    settings: Settings,
    environ: Mapping[str, str] | None = None,
    observer: Counting | None = None,
    content_bytes: int | None = None,
    *,
    tells_itself: bool = False,
    lines: LineOutput | None = None,
) -> AsyncIterator[App]:
    """A started `App`, which must have let go of every stream, connection and byte when it is closed, and have told of
    every request once: ``observer``, or its own telemetry where it ``tells_itself``."""
    observer = observer or Counting()
    app = App(settings, environ or {}, lines, None if tells_itself else observer, content_bytes)
    await app.start()
    try:
        yield app
    finally:
        await app.close()
        await turns(3)
    assert (len(app.streams), app.streams.body_bytes, app.streams.tasks) == (0, 0, 0)
    assert [app.pool(name).active for name in settings.upstreams] == [0] * len(settings.upstreams)
    assert observer.ended_count == observer.started_count


@asynccontextmanager
async def before(*addresses: Address, environ: Mapping[str, str] | None = None, **options: Any) -> AsyncIterator[App]:
    """`running` with one route to upstreams at ``addresses``; ``upstream`` and ``route`` change their settings."""
    told = {
        name: options.pop(name) for name in ("observer", "content_bytes", "tells_itself", "lines") if name in options
    }
    changed: Mapping[str, Any] = options.pop("upstream", {})
    names = ["llm", "second", "third"]
    upstreams = [upstream_at(address, name, **changed) for address, name in zip(addresses, names, strict=False)]
    async with running(settings_for(*upstreams, **options), environ, **told) as app:
        yield app


# The client.


def request(
    method: str, target: str, body: bytes | None = None, headers: Headers = (), *, version: str = "1.1"
) -> bytes:
    """A request's bytes; Content-Length is added for a body."""
    lines = [
        f"{method} {target} HTTP/{version}",
        "Host: sidecar.test",
        *(f"{name}: {value}" for name, value in headers),
    ]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def ask(target: str = CHAT, headers: Headers = (), *, version: str = "1.1", **body: Any) -> bytes:
    """A POST of JSON: a stream request unless ``body`` says ``stream=False``."""
    sent = json.dumps({"model": "m", "stream": True, **body}).encode()
    return request("POST", target, sent, [("Content-Type", "application/json"), *headers], version=version)


@dataclass
class Reply:
    """One answer as it came. ``chunks`` are those of its framing; ``is_whole`` says that its end was marked."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    raw_head: bytes
    chunks: list[bytes] = field(default_factory=list)
    is_whole: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def header(self, name: str) -> str | None:
        """The one value of a header; None where it is absent."""
        found = [value for each, value in self.headers if each.lower() == name.lower()]
        assert len(found) <= 1, found
        return found[0] if found else None

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[tuple[str, Any]]:
        """Name and data of every typed event; heartbeat comments are left out."""
        found = []
        for block in self.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
            if fields:
                found.append((fields["event"], json.loads(fields["data"])))
        return found


class Client:
    """A client's end of one connection, which sees every byte and chunk."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Reply:
        """The next answer's head; an interim one is an answer of its own."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        _, status, reason = first.split(" ", 2)
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
        return Reply(int(status), reason, headers, raw)

    async def chunk(self) -> bytes | None:
        """The next chunk, b"" for the last one, None where the connection ended before it."""
        try:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None

    async def reply(self, *, to_head: bool = False) -> Reply:
        """The next answer, its body read as its head frames it."""
        reply = await self.head()
        if to_head or reply.status < 200 or reply.status in {204, 304}:
            reply.is_whole = True
        elif reply.header("Transfer-Encoding") == "chunked":
            while chunk := await self.chunk():
                reply.chunks.append(chunk)
            reply.is_whole = chunk == b""
        elif (length := reply.header("Content-Length")) is not None:
            with suppress(asyncio.IncompleteReadError):
                reply.chunks.append(await self.reader.readexactly(int(length)))
                reply.is_whole = True
        else:
            reply.chunks.append(await self.reader.read())
        return reply

    async def ask(self, data: bytes, *, to_head: bool = False) -> Reply:
        await self.send(data)
        return await self.reply(to_head=to_head)

    async def rest(self) -> bytes:
        """Everything until the sidecar ends the connection."""
        return await self.reader.read()

    def reset(self) -> None:
        """Drop the connection."""
        self.writer.transport.abort()


@asynccontextmanager
async def client_of(app: App) -> AsyncIterator[Client]:
    """A connection to the traffic port."""
    address = app.address
    if address.path:
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        await turns(2)


async def asked(app: App, data: bytes, *, to_head: bool = False) -> Reply:
    """One answer over a connection of its own."""
    async with client_of(app) as client:
        return await client.ask(data, to_head=to_head)


# The upstream that answers by itself.


@dataclass(frozen=True)
class Received:
    """A request as the upstream got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    raw: bytes

    def header(self, name: str) -> str | None:
        found = [value for each, value in self.headers if each.lower() == name.lower()]
        return found[0] if found else None


Answering = Callable[[Received], "bytes | Sequence[bytes]"]


class Answers:
    """A running upstream: what it was sent, in order, and where it is."""

    def __init__(self, answer: Answering) -> None:
        self.received: list[Received] = []
        self.address = Address()
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                received = await _receive(reader)
                self.received.append(received)
                pieces = self._answer(received)
                for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"connection: close" in (pieces if isinstance(pieces, bytes) else pieces[0]).lower():
                    break
        writer.close()


async def _receive(reader: asyncio.StreamReader) -> Received:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    framing = {name.lower(): value for name, value in headers}
    body = b""
    if framing.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif "content-length" in framing:
        body = await reader.readexactly(int(framing["content-length"]))
    return Received(method, target, headers, body, raw + body)


@asynccontextmanager
async def answering(answer: Answering | bytes | Sequence[bytes]) -> AsyncIterator[Answers]:
    """An upstream that answers each request with these bytes, piece by piece, and keeps the connection.

    An answer whose first piece says ``Connection: close`` ends its connection.
    """
    answers = Answers(answer if callable(answer) else lambda _received: answer)
    server = await asyncio.start_server(answers.serve, "127.0.0.1", 0, limit=2**20)
    answers.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield answers
    finally:
        server.close()
        await turns(3)


def plain(body: bytes, status: str = "200 OK", headers: Headers = (("Content-Type", "application/json"),)) -> bytes:
    """An answer with its length."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(frames: Sequence[bytes], content_type: str = "text/event-stream") -> list[bytes]:
    """A whole streamed answer, a chunk to a frame."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return [head, *map(chunk, frames), LAST_CHUNK]


def openai_frames(*texts: str, usage: bool = True, done: bool = True) -> list[bytes]:
    """A Chat Completions stream of these texts."""
    bodies: list[Any] = [
        {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        for text in texts
    ]
    bodies.append({"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage:
        counts = {"prompt_tokens": 1, "completion_tokens": len(texts), "total_tokens": 1 + len(texts)}
        bodies.append({"id": "c1", "model": "m", "choices": [], "usage": counts})
    frames = [b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies]
    return [*frames, b"data: [DONE]\n\n"] if done else frames
