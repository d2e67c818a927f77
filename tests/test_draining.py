"""The leave of a whole sidecar over sockets: who is still served, who is refused, and when it is over."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from sidecar.app import App
from sidecar.drain import State, Word
from sidecar.errors import Outcome
from sidecar.settings import Address, Drain, HealthCheck, SecretSource
from tests.app_support import (
    CHAT,
    LAST_CHUNK,
    MESSAGES,
    OLLAMA_CHAT,
    SSE_HEAD,
    Client,
    Reply,
    answering,
    ask,
    asked,
    before,
    chunk,
    client_of,
    on_uvloop,
    openai_frames,
    plain,
    request,
)
from tests.departures import until
from tests.upstream_support import Peer, Server, serving, turns

FRAMES = openai_frames("a", "b")
UNCHECKED = {"health": HealthCheck(path="")}
SOON = Drain(delay_s=0.05, timeout_s=30.0)
LATER = Drain(delay_s=30.0, timeout_s=30.0)
TYPED = [("X-Stream-Format", "typed")]


def ingress(server: Server, drain: Drain) -> AbstractAsyncContextManager[App]:
    return before(server.address, mode="ingress", upstream=UNCHECKED, drain=drain)


async def admin(app: App, method: str, path: str, headers: list[tuple[str, str]] | None = None) -> Reply:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.admin_port)
    try:
        return await Client(reader, writer).ask(request(method, path, headers=headers or []), to_head=method == "HEAD")
    finally:
        writer.transport.abort()
        await turns(2)


async def hook(app: App) -> dict[str, Any]:
    reply = await admin(app, "GET", "/drain")
    assert reply.status == 200
    told: dict[str, Any] = reply.json()
    return told


async def status(app: App, path: str) -> int:
    return (await admin(app, "GET", path)).status


def in_state(app: App, state: State) -> bool:
    return app._departure._drain.state is state


async def streaming(client: Client, server: Server, number: int = 0, headers: Any = TYPED) -> Peer:
    """A stream that has had its first frame."""
    await client.send(ask(headers=headers))
    peer = await server.peer(number)
    await peer.request()
    peer.send(SSE_HEAD + chunk(FRAMES[0]))
    return peer


def finish(peer: Peer) -> None:
    peer.send(b"".join(map(chunk, FRAMES[1:])) + LAST_CHUNK)


@on_uvloop
async def test_a_hook_lets_the_last_stream_end_and_refuses_more() -> None:
    async with (
        serving() as server,
        before(server.address, mode="ingress", upstream=UNCHECKED, drain=SOON) as app,
        client_of(app) as client,
        client_of(app) as late,
    ):
        peer = await streaming(client, server)
        hooks = [asyncio.create_task(hook(app)) for _ in range(2)]
        await until(lambda: in_state(app, State.REFUSING))
        assert (await status(app, "/readyz"), await status(app, "/livez")) == (503, 200)
        for path in (CHAT, MESSAGES, OLLAMA_CHAT, "/anything"):
            reply = await asked(app, ask(path))
            assert (reply.status, reply.header("Connection"), reply.header("Retry-After")) == (503, "close", "1")
            assert b"shutting" in reply.body
        reply = await late.ask(ask())  # on a connection that was there before
        assert (reply.status, reply.header("Connection")) == (503, "close")
        assert not any(task.done() for task in hooks)
        finish(peer)
        reply = await client.reply()
        assert reply.is_whole
        assert [name for name, _ in reply.events()][-1] == "done"
        for task in hooks:
            assert await task == {"state": "drained", "active": 0, "cut_off": 0}
        assert await hook(app) == {"state": "drained", "active": 0, "cut_off": 0}, "asked again, it answers at once"
        assert (await status(app, "/readyz"), await status(app, "/livez")) == (503, 200)
        app.tell(Word.STOP, "SIGTERM")
        await app.closing()
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}


@on_uvloop
async def test_within_the_delay_requests_are_taken_and_connections_are_not_kept() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        serving() as server,
        before(upstream.address, mode="ingress", upstream=UNCHECKED, drain=LATER) as app,
        before(server.address, mode="ingress", upstream=UNCHECKED, drain=LATER) as slow,
        client_of(slow) as waiting,
    ):
        await waiting.send(ask())
        peer = await server.peer()
        await peer.request()
        for each in (app, slow):
            asyncio.get_running_loop().call_soon(each.tell, Word.HOOK, "a test")
        await until(lambda: in_state(app, State.DELAYING) and in_state(slow, State.DELAYING))
        assert await status(app, "/readyz") == 503
        reply = await asked(app, ask(stream=False))
        assert (reply.status, reply.header("Connection")) == (200, "close")
        reply = await asked(app, request("GET", "/a/../b"))
        assert (reply.status, reply.header("Connection")) == (400, "close")
        peer.send(SSE_HEAD + b"".join(map(chunk, FRAMES)) + LAST_CHUNK)
        reply = await waiting.reply()  # it was asked before, and is answered after the word
        assert (reply.is_whole, reply.header("Connection")) == (True, "close")
        assert await waiting.rest() == b""


@pytest.mark.parametrize("format_name", ["typed", "native"])
@on_uvloop
async def test_what_is_left_at_the_deadline_is_told(format_name: str) -> None:
    drain = Drain(delay_s=0.0, timeout_s=0.2)
    async with (
        serving() as server,
        before(server.address, mode="ingress", upstream=UNCHECKED, drain=drain) as app,
        client_of(app) as client,
    ):
        peer = await streaming(client, server, headers=[("X-Stream-Format", format_name)])
        assert await hook(app) == {"state": "drained", "active": 1, "cut_off": 1}
        reply = await client.reply()
        if format_name == "typed":
            (_, error), (_, done) = reply.events()[-2:]
            assert (error["code"], done["status"]) == ("shutting_down", "interrupted")
            assert reply.is_whole
        else:
            assert json.loads(reply.body.split(b"data: ")[-1])["error"]["code"] == "shutting_down"
            assert b"[DONE]" not in reply.body
            assert not reply.is_whole
        await peer.lost()
        assert app.streams.outcomes == {Outcome.SHUT_DOWN: 1}
        assert not app._departure.is_hurried


@on_uvloop
async def test_beside_an_application_a_hook_changes_nothing_until_the_stop() -> None:
    async with serving() as server, before(server.address, drain=SOON) as app, client_of(app) as client:
        await streaming(client, server)
        assert await hook(app) == {"state": "noted", "active": 1, "cut_off": 0}
        assert await status(app, "/readyz") == 200
        async with client_of(app) as more:
            peer = await streaming(more, server, 1)
            finish(peer)
            reply = await more.reply()
            assert (reply.is_whole, reply.header("Connection")) == (True, None)
        app.tell(Word.STOP, "SIGTERM")
        await app.closing()
        assert b"shutting_down" in (await client.reply()).body
        assert app.streams.outcomes == {Outcome.COMPLETED: 1, Outcome.SHUT_DOWN: 1}
        assert app._departure.is_hurried


@on_uvloop
async def test_beside_an_application_a_stop_waits_and_refuses_nobody() -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        first = await streaming(client, server)
        app.tell(Word.STOP, "SIGTERM")
        closing = asyncio.create_task(app.closing())
        assert await status(app, "/readyz") == 200
        async with client_of(app) as more:
            second = await streaming(more, server, 1)
            finish(first)
            assert (await client.reply()).is_whole
            assert not closing.done()
            finish(second)
            assert (await more.reply()).is_whole
        await closing
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}
        assert not app._departure.is_hurried


@on_uvloop
async def test_whoever_has_nothing_under_way_ends_at_once() -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        app.tell(Word.INTERRUPT, "SIGINT")
        assert in_state(app, State.CLOSING)


@on_uvloop
async def test_a_second_signal_waits_no_longer() -> None:
    async with (
        serving() as server,
        before(server.address, mode="ingress", upstream=UNCHECKED, drain=LATER) as app,
        client_of(app) as client,
    ):
        await streaming(client, server)
        app.tell(Word.STOP, "SIGTERM")
        assert in_state(app, State.LAST_CALL)
        app.tell(Word.STOP, "SIGTERM")
        await app.closing()
        assert b"shutting_down" in (await client.reply()).body


@on_uvloop
async def test_plain_requests_and_uploads_are_waited_for() -> None:
    async with (
        serving() as server,
        before(server.address, mode="ingress", upstream=UNCHECKED, drain=SOON) as app,
        client_of(app) as plainly,
        client_of(app) as uploading,
        client_of(app) as sending,
    ):
        await plainly.send(request("GET", "/v1/models"))
        await (await server.peer(0)).request()
        await uploading.send(request("POST", "/upload", headers=[("Content-Length", "10")]) + b"12345")
        await (await server.peer(1)).request()
        whole = ask(stream=False, text="x" * 50_000)
        await sending.send(whole[:-10])
        await until(lambda: app.active() == 3)
        over = asyncio.create_task(app.drain())
        await until(lambda: in_state(app, State.REFUSING))
        answer = plain(b"{}", headers=[("Connection", "close")])
        await uploading.send(b"67890")
        server.peers[1].send(answer)
        assert (await uploading.reply()).status == 200
        server.peers[0].send(answer)
        assert (await plainly.reply()).status == 200
        assert not over.done()
        await sending.send(whole[-10:])
        peer = await server.peer(2)
        await peer.request()
        peer.send(answer)
        assert (await sending.reply()).status == 200
        assert (await over).cut_off == 0


@on_uvloop
async def test_a_body_that_is_not_there_at_the_deadline_makes_no_stream() -> None:
    drain = Drain(delay_s=0.0, timeout_s=0.1)
    async with (
        serving() as server,
        before(server.address, mode="ingress", upstream=UNCHECKED, drain=drain) as app,
        client_of(app) as client,
    ):
        whole = ask(text="x" * 50_000)
        await client.send(whole[:-10])
        await until(app.active)
        assert (await app.drain()).cut_off == 1
        await client.send(whole[-10:])
        reply = await client.reply()
        assert (reply.status, reply.header("Connection")) == (503, "close")
        assert server.peers == []


@on_uvloop
async def test_a_tail_that_has_yet_to_leave_is_waited_for() -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(ask(stream=False))
        peer = await server.peer()
        await peer.request()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half
        body = b"x" * 8_000_000
        peer.send(plain(body))
        await until(lambda: any(stream.lag_bytes > 16_000 for stream in app.streams))
        app.tell(Word.STOP, "SIGTERM")
        assert in_state(app, State.FINISHING)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        reply = await client.reply()
        assert reply.body == body
        await app.closing()


@on_uvloop
async def test_idle_connections_are_closed_when_refusing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.gateway.client_server.IDLE_GRACE_S", 0.0)
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, mode="ingress", upstream=UNCHECKED, drain=SOON) as app,
        client_of(app) as client,
    ):
        reply = await client.ask(ask(stream=False))
        assert (reply.status, reply.header("Connection")) == (200, None)
        await app.drain()
        assert await client.rest() == b""


@on_uvloop
async def test_who_may_call_the_hook() -> None:
    environ = {"ADMIN": "admin-token"}
    source = SecretSource(env="ADMIN")
    everywhere = {"admin": Address("0.0.0.0", 0), "admin_auth": source}
    async with answering(plain(b"{}")) as upstream:
        async with before(upstream.address, environ=environ, **everywhere) as app:
            assert (await admin(app, "GET", "/drain")).status == 401
            assert in_state(app, State.SERVING)
            assert (await admin(app, "POST", "/drain", [("Authorization", "Bearer admin-token")])).status == 200
        async with before(upstream.address, environ=environ, admin_auth=source) as app:
            page = [("Sec-Fetch-Site", "cross-site")]
            assert (await admin(app, "GET", "/drain", page)).status == 403
            assert (await admin(app, "HEAD", "/drain")).status == 405
            assert in_state(app, State.SERVING)
            assert (await admin(app, "GET", "/drain")).status == 200
            assert in_state(app, State.NOTED)


@on_uvloop
async def test_the_log_says_why_and_how(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sidecar.app")
    drain = Drain(delay_s=0.0, timeout_s=0.05)
    async with (
        serving() as server,
        before(server.address, mode="ingress", upstream=UNCHECKED, drain=drain) as app,
        client_of(app) as client,
    ):
        await streaming(client, server)
        await hook(app)
        app.tell(Word.STOP, "SIGTERM")
    lines = [line for record in caplog.records if not (line := record.getMessage()).startswith("up to ")]
    assert len(lines) == 4
    assert "/drain, ingress mode, 1 active, up 0 s" in lines[0]
    assert "no more requests are taken, 1 active" in lines[1]
    assert "1 requests cut off" in lines[2]
    assert lines[3].startswith("stopping: SIGTERM, ")
