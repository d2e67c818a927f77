"""Every way a request can end, and a first token that is late, made to happen over sockets on a running sidecar.

Owns what client and upstream do and what they say. Must not know who watches the sidecar, nor what they are told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from sidecar.app import App
from sidecar.events import Usage
from sidecar.settings import KIB, Address, Credentials, Limits, Match, Route, SecretSource, Timeouts
from tests.app_support import (
    CHAT,
    LAST_CHUNK,
    MESSAGES,
    SSE_HEAD,
    Client,
    Reply,
    answering,
    ask,
    asked,
    chunk,
    client_of,
    openai_frames,
    plain,
    request,
    stream,
)
from tests.core_support import Clock
from tests.departures import blackhole, leave, until
from tests.test_accounting import QUIET, REASONING
from tests.upstream_support import Peer, Server, serving

NOBODY = Address("127.0.0.1", 9)
USAGE = {"input_tokens": 25, "cache_read_input_tokens": 5, "output_tokens": 1}
START = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "usage": USAGE}
SEEN = Usage(30, 1, 31, 5, native=USAGE)
"""The usage that is known once a stream has begun."""


class Watching(Protocol):
    """Somebody who runs a sidecar and is told of its requests."""

    def before(self, *addresses: Address, **options: Any) -> AbstractAsyncContextManager[App]:
        """As `tests.app_support.before`."""

    async def over(self, app: App) -> None:
        """A request is over."""


Play = Callable[[Watching, str], Awaitable[Any]]
"""One ending of a request in a format, made to happen before somebody who watches."""


def sse(name: str, **fields: Any) -> bytes:
    """A frame as Anthropic sends it."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def delta(text: str) -> bytes:
    """A piece of the answer."""
    return sse("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


BEGUN = [
    sse("message_start", message=START),
    sse("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    delta("Hello"),
]
REST = [
    delta(" you"),
    sse("content_block_stop", index=0),
    sse("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}),
    sse("message_stop"),
]
PAGE = plain(b"<html>Log in</html>", headers=[("Content-Type", "text/html"), ("Connection", "close")])
NO_HTTP = b"220 mail.test ESMTP connection: close\r\n"


async def begin(server: Server, client: Client, format_name: str, pieces: list[bytes] = BEGUN) -> Peer:
    """The upstream's side of a stream that has begun, once its client has seen the beginning."""
    await client.send(ask(MESSAGES, [("X-Stream-Format", format_name)]))
    peer = await server.peer()
    await peer.request()
    peer.send(SSE_HEAD + b"".join(map(chunk, pieces)))
    await client.head()
    await client.chunk()
    return peer


async def completed(watching: Watching, format_name: str) -> int:
    """An answer that is whole; the upstream's port."""
    async with answering(stream([*BEGUN, *REST])) as upstream, watching.before(upstream.address) as app:
        await asked(app, ask(MESSAGES, [("X-Stream-Format", format_name)]))
        return upstream.address.port


async def client_cancelled(watching: Watching, format_name: str, how: str = "reset") -> None:
    """The client leaves in the middle, as `tests.departures.leave` has it."""
    async with serving() as server, watching.before(server.address) as app, client_of(app) as client:
        await begin(server, client, format_name)
        leave(client, how)
        await watching.over(app)


async def client_cancelled_before_an_answer(watching: Watching, format_name: str = "native") -> None:
    """The client leaves while its upstream thinks."""
    async with serving() as server, watching.before(server.address) as app, client_of(app) as client:
        await client.send(ask(headers=[("X-Stream-Format", format_name)]))
        await (await server.peer()).request()
        leave(client, "reset")
        await watching.over(app)


async def client_too_slow(watching: Watching, format_name: str) -> None:
    """The client stops reading, and its route evicts it."""
    limits = Limits(buffer_bytes=64 * KIB, on_slow_client="evict")
    async with (
        serving() as server,
        watching.before(server.address, route={"limits": limits}) as app,
        client_of(app) as client,
    ):
        peer = await begin(server, client, format_name)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half
        peer.send(chunk(delta("x" * KIB)) * 20_000)
        await watching.over(app)


async def upstream_refusing(watching: Watching, format_name: str = "native") -> tuple[Reply, int]:
    """Nobody listens, at any of the route's two upstreams; the answer, and their port."""
    async with serving() as server:
        closed = server.address
    async with watching.before(closed, closed) as app:
        return await asked(app, ask(headers=[("X-Stream-Format", format_name)])), closed.port


async def upstream_not_accepting(watching: Watching, format_name: str = "native") -> Reply:
    """Connecting to the upstream takes longer than it may."""
    with blackhole() as address:
        async with watching.before(address, upstream={"timeouts": Timeouts(connect_s=0.2)}) as app:
            return await asked(app, ask(headers=[("X-Stream-Format", format_name)]))


async def upstream_rejecting(watching: Watching, format_name: str, status: str = "429 Too Many Requests") -> Reply:
    """The upstream answers with an error, which quotes what it was asked."""
    body = json.dumps({"error": {"message": "You said: secret", "type": "requests", "code": "rate_limit_exceeded"}})
    async with answering(plain(body.encode(), status)) as upstream, watching.before(upstream.address) as app:
        return await asked(app, ask(headers=[("X-Stream-Format", format_name)]))


async def upstream_broken(watching: Watching, format_name: str, how: str) -> None:
    """The upstream's stream is cut: by an ``end`` before its terminator, a ``reset``, or what is no ``chunk``."""
    async with serving() as server, watching.before(server.address) as app, client_of(app) as client:
        peer = await begin(server, client, format_name)
        if how == "reset":
            peer.reset()
        else:
            peer.send(LAST_CHUNK if how == "end" else b"no size\r\n")
        await watching.over(app)


async def upstream_of_another_kind(watching: Watching, format_name: str, answer: bytes = PAGE) -> Reply:
    """What answers is no LLM API: it has a page for whoever wants a stream, or does not speak HTTP."""
    async with answering(answer) as upstream, watching.before(upstream.address) as app:
        return await asked(app, ask(headers=[("X-Stream-Format", format_name)]))


async def upstream_failing(watching: Watching, format_name: str) -> None:
    """The upstream says in its stream that it fails."""
    async with serving() as server, watching.before(server.address) as app, client_of(app) as client:
        peer = await begin(server, client, format_name)
        error = {"type": "overloaded_error", "message": "Overloaded"}
        peer.send(chunk(sse("error", error=error)) + LAST_CHUNK)
        await watching.over(app)


async def timed_out(watching: Watching, format_name: str) -> None:
    """The upstream falls silent in its stream."""
    async with (
        serving() as server,
        watching.before(server.address, upstream={"timeouts": Timeouts(idle_s=0.3)}) as app,
        client_of(app) as client,
    ):
        await begin(server, client, format_name)
        await watching.over(app)


async def timed_out_before_an_answer(watching: Watching, format_name: str) -> Reply:
    """The upstream is silent from the first."""
    options = {"upstream": {"timeouts": Timeouts(first_token_s=0.3)}}
    async with serving() as server, watching.before(server.address, **options) as app:
        return await asked(app, ask(headers=[("X-Stream-Format", format_name)]))


async def shut_down(watching: Watching, format_name: str) -> None:
    """The sidecar stops while it streams."""
    async with serving() as server, watching.before(server.address) as app, client_of(app) as client:
        await begin(server, client, format_name)
        await app.close()


async def internal_without_a_credential(watching: Watching, format_name: str = "native") -> Reply:
    """The secret that the upstream wants cannot be read; it is never asked."""
    credentials = Credentials("replace", secret=SecretSource(file="/nowhere"))
    async with (
        answering(plain(b"{}")) as upstream,
        watching.before(upstream.address, upstream={"credentials": credentials}) as app,
    ):
        reply = await asked(app, ask(headers=[("X-Stream-Format", format_name)]))
        assert upstream.received == []
        return reply


async def internal_by_a_bug_before_an_answer(watching: Watching, format_name: str = "native") -> Reply:
    """A bug in a sweep, while the upstream thinks."""
    async with serving() as server, watching.before(server.address) as app, client_of(app) as client:
        await client.send(ask(headers=[("X-Stream-Format", format_name)]))
        await (await server.peer()).request()
        for stream_of_one in app.streams:
            stream_of_one.crash()
        return await client.reply()


async def internal_by_a_bug(watching: Watching, format_name: str) -> None:
    """A bug in a sweep, in the middle of a stream."""
    async with serving() as server, watching.before(server.address) as app, client_of(app) as client:
        await begin(server, client, format_name)
        for stream_of_one in app.streams:
            stream_of_one.crash()
        await watching.over(app)


# Refusals.


REFUSALS: list[tuple[bytes, int, str]] = [
    (request("GET", "/nowhere/at/all"), 404, "route_not_found"),
    (request("GET", "/v1/../x"), 400, "bad_request"),
    (ask(headers=[("X-Stream-Format", "x")]), 400, "unknown_format"),
    (request("POST", "/v1/by-model", b"{}", [("Content-Type", "application/json")]), 400, "model_missing"),
    (ask(text="x" * 5000), 413, "body_too_large"),
    (request("GET", "/v1", headers=[(f"X-{number}", "x" * 4000) for number in range(17)]), 431, "headers_too_large"),
    (
        request("GET", "/v1", headers=[("Upgrade", "websocket"), ("Connection", "Upgrade")]),
        501,
        "websocket_unsupported",
    ),
]
"""What is sent, and how it is refused."""

ROUTES = [
    Route("by-model", ("llm",), Match("/v1/by-model", model="m*")),
    Route("all", ("llm",), Match("/v1/**"), limits=Limits(max_body_bytes=4 * KIB)),
]


async def refused(watching: Watching, data: bytes) -> Reply:
    """One of `REFUSALS`."""
    async with watching.before(NOBODY, routes=ROUTES) as app:
        return await asked(app, data)


async def refused_for_want_of_a_token(watching: Watching, format_name: str = "native") -> Reply:
    """The sidecar itself wants a bearer token."""
    async with watching.before(NOBODY, environ={"OWN": "token"}, auth=SecretSource(env="OWN")) as app:
        return await asked(app, ask(headers=[("X-Stream-Format", format_name)]))


async def refused_for_want_of_room(watching: Watching, format_name: str = "native") -> Reply:
    """The process holds as much as it may."""
    async with watching.before(NOBODY, max_buffered_bytes=-1) as app:
        return await asked(app, ask(headers=[("X-Stream-Format", format_name)]))


# The first token.


async def thinking_first(watching: Watching, format_name: str, clock: Clock) -> bytes:
    """What comes at once is role-only, pings, empty and comment frames; reasoning comes 200 ms later, and the rest
    another 300 ms after it, by the ``clock`` that the app goes by. What the client had after its head."""
    async with serving() as server, watching.before(server.address) as app, client_of(app) as client:
        await client.send(ask(CHAT, [("X-Stream-Format", format_name)]))
        peer = await server.peer()
        await peer.request()
        peer.send(SSE_HEAD + b"".join(map(chunk, QUIET)) + chunk(b": mark\n\n"))
        await client.head()
        (running_stream,) = app.streams
        await until(lambda: running_stream.session.start is not None)
        clock.now += 0.2
        peer.send(chunk(REASONING))
        await until(lambda: running_stream.session.content_events == 1)
        clock.now += 0.3
        peer.send(b"".join(map(chunk, openai_frames("a"))) + LAST_CHUNK)
        await watching.over(app)
        return await client.reader.readuntil(LAST_CHUNK)


def move_by_hand(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that apps built from now on go by."""
    clock = Clock()
    monkeypatch.setattr("sidecar.app.app.time", SimpleNamespace(monotonic=clock, time=time.time, time_ns=time.time_ns))
    return clock
