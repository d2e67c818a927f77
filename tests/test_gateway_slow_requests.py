"""Clients that send a request and never get done: cut by their deadline, told so, and held to a bound until then."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import App
from sidecar.errors import Outcome
from sidecar.gateway.connection import AWAITED_MOVES, KEEPALIVE_TIMEOUT_S, Awaited, ClientConnection
from sidecar.settings import Connections, ServerTls
from tests.app_support import CHAT, MESSAGES, Client, answering, ask, before, client_of, on_uvloop, plain, request
from tests.departures import connected, make_certificates, until
from tests.observing import Counting
from tests.upstream_support import serving, turns

HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: sidecar.test\r\nX-A: "
UPLOAD = [("Content-Type", "application/octet-stream"), ("Content-Length", "30")]
QUICK = Connections(header_timeout_s=5.0, body_timeout_s=7.0)


def only(app: App) -> ClientConnection:
    (connection,) = app._protocols.connections
    assert isinstance(connection, ClientConnection)
    return connection


def later(app: App, seconds: float) -> None:
    """Let the sweep look as if so much time had gone by."""
    app._protocols.sweep(asyncio.get_running_loop().time() + seconds)


async def refused(client: Client, *, shape: str = "problem") -> Any:
    """The 408 that ends the connection."""
    reply = await client.reply()
    assert (reply.status, reply.header("Connection")) == (408, "close")
    told = reply.json()
    assert await client.rest() == b""
    if shape == "problem":
        assert reply.header("Content-Type") == "application/problem+json"
        assert told["code"] == "request_timeout"
    return told


def test_every_state_ends_where_it_is_our_turn() -> None:
    assert set(AWAITED_MOVES) == set(Awaited)
    for state in set(Awaited) - {Awaited.NOTHING}:
        assert Awaited.NOTHING in AWAITED_MOVES[state]


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@on_uvloop
async def test_half_a_head_is_cut_by_its_deadline(is_tls: bool, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    tls = ServerTls(certificates.certificate, certificates.key) if is_tls else ServerTls()
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK, tls=tls) as app,
        connected(app, certificates.client() if is_tls else None) as client,
    ):
        await client.send(HALF_A_HEAD)
        await until(lambda: app._protocols.connections and only(app).awaited is Awaited.HEAD)
        later(app, 4)
        await turns(3)
        assert not only(app).has_left
        later(app, 6)
        await refused(client)
        await until(lambda: app._protocols.open_count == 0)


@on_uvloop
async def test_a_trickled_head_gets_no_more_time() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK) as app,
        client_of(app) as client,
    ):
        await client.send(HALF_A_HEAD)
        await until(lambda: only(app).awaited is Awaited.HEAD)
        due_at = only(app).due_at
        for count in range(1, 6):
            await client.send(b"x")
            await until(lambda: only(app)._head_bytes == len(HALF_A_HEAD) + count)  # noqa: B023 - awaited at once
        assert only(app).due_at == due_at
        later(app, 6)
        await refused(client)


@on_uvloop
async def test_a_head_that_is_done_in_time_is_served_and_the_next_has_its_own() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK) as app,
        client_of(app) as client,
    ):
        for _ in range(2):
            data = ask(stream=False)
            await client.send(data[:40])
            await until(lambda: only(app).awaited is Awaited.HEAD)
            assert (await client.ask(data[40:])).status == 200
            await until(lambda: only(app).awaited is Awaited.REQUEST)
            later(app, 10)
        assert only(app).due_at > asyncio.get_running_loop().time() + KEEPALIVE_TIMEOUT_S - 5


@on_uvloop
async def test_a_connection_that_sends_nothing_is_closed_in_silence() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK) as app,
        client_of(app) as client,
    ):
        await until(lambda: app._protocols.connections)
        later(app, 10)
        await turns(3)
        assert len(app._protocols.connections) == 1
        later(app, KEEPALIVE_TIMEOUT_S + 1)
        assert await client.rest() == b""


@on_uvloop
async def test_empty_lines_behind_a_body_begin_no_head() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK) as app,
        client_of(app) as client,
    ):
        await client.ask(ask(stream=False))
        await client.send(b"\r\n")
        await turns(5)
        later(app, 10)
        assert (await client.ask(ask(stream=False))).status == 200


@on_uvloop
async def test_a_head_that_begins_within_an_answer_has_its_time_from_its_end() -> None:
    async with serving() as server, before(server.address, connections=QUICK) as app, client_of(app) as client:
        await client.send(ask(stream=False))
        peer = await server.peer()
        await peer.request()
        await client.send(HALF_A_HEAD)
        await until(lambda: only(app)._head_bytes)
        later(app, 100)
        peer.send(plain(b"{}"))
        assert (await client.reply()).status == 200
        await until(lambda: only(app).awaited is Awaited.HEAD)
        later(app, 6)
        await refused(client)


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/api/chat", "/anything"])
@on_uvloop
async def test_half_a_body_is_cut_and_told_once_in_the_paths_shape(path: str) -> None:
    observer = Counting()
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK, observer=observer) as app,
        client_of(app) as client,
    ):
        await client.send(ask(path)[:-5])
        await until(lambda: app._protocols.connections and only(app).awaited is Awaited.BODY)
        later(app, 6)
        await turns(3)
        assert observer.ended_count == 0
        later(app, 8)
        told = await refused(client, shape="problem" if path == "/anything" else "dialect")
        assert "7 s" in str(told)
        assert observer.ended_count == 1
        assert upstream.received == []


@on_uvloop
async def test_a_trickled_body_gets_no_more_time() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK) as app,
        client_of(app) as client,
    ):
        data = ask()
        await client.send(data[:-20])
        await until(lambda: app._protocols.connections and only(app).awaited is Awaited.BODY)
        due_at = only(app).due_at
        for at in range(-20, -10):
            await client.send(data[at : at + 1])
        await until(lambda: app.streams.body_bytes > 0)
        assert only(app).due_at == due_at
        later(app, 8)
        await refused(client, shape="dialect")
        await until(lambda: app.streams.body_bytes == 0)


@on_uvloop
async def test_a_body_that_is_there_in_time_is_served() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK) as app,
        client_of(app) as client,
    ):
        data = ask(stream=False)
        await client.send(data[:-5])
        await until(lambda: app._protocols.connections and only(app).awaited is Awaited.BODY)
        connection = only(app)
        connection.data_received(data[-5:])
        later(app, 8)  # in the turn in which it became whole
        assert (await client.reply()).status == 200
        assert (await client.ask(ask(stream=False))).status == 200


@on_uvloop
async def test_an_upload_may_take_longer_than_either() -> None:
    async with serving() as server, before(server.address, connections=QUICK) as app, client_of(app) as client:
        await client.send(request("POST", "/v1/files", None, UPLOAD) + b"x" * 10)
        peer = await server.peer()
        await peer.request()
        later(app, 1000)
        await client.send(b"x" * 20)
        await peer.until(lambda: len(peer.data) == 30)
        peer.send(plain(b"{}"))
        assert (await client.reply()).status == 200
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}


@on_uvloop
async def test_half_a_head_is_held_up_to_its_bound_and_no_further() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, max_header_bytes=8192) as app,
        client_of(app) as client,
    ):
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        line = b"X-A: " + b"x" * 200 + b"\r\n"
        for _ in range(8192 // len(line) - 1):
            await client.send(line)
        await until(lambda: app._protocols.connections and only(app)._head_bytes > 8192 - 2 * len(line))
        assert not client.reader.at_eof()
        await client.send(line * 2)
        reply = await client.reply()
        assert (reply.status, reply.header("Connection"), reply.json()["code"]) == (431, "close", "headers_too_large")
        await until(lambda: app._protocols.open_count == 0)


@on_uvloop
async def test_half_a_head_that_grows_within_an_answer_ends_the_connection_behind_it() -> None:
    async with serving() as server, before(server.address, max_header_bytes=4096) as app, client_of(app) as client:
        await client.send(ask(stream=False))
        peer = await server.peer()
        await peer.request()
        for number in range(40):
            await client.send(b"" if number else b"GET / HTTP/1.1\r\n")
            await client.send(b"X-%03d: %b\r\n" % (number, b"x" * 200))
            await turns(2)
        await until(lambda: only(app)._close)
        peer.send(plain(b"{}"))
        assert (await client.reply()).status == 200
        assert await client.rest() == b""


@on_uvloop
async def test_the_process_itself_looks_after_both_deadlines() -> None:
    limits = Connections(header_timeout_s=0.05, body_timeout_s=0.05)
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=limits) as app,
        client_of(app) as slow_head,
        client_of(app) as slow_body,
        client_of(app) as idle,
    ):
        await slow_head.send(HALF_A_HEAD)
        await slow_body.send(ask()[:-5])
        await refused(slow_head)
        await refused(slow_body, shape="dialect")
        assert (await idle.ask(ask(stream=False))).status == 200


@on_uvloop
async def test_two_hundred_half_heads_are_bounded_each_and_all_gone_by_their_deadline() -> None:
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=QUICK, max_header_bytes=4096) as app,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(client_of(app)) for _ in range(200)]
        for client in clients:
            await client.send(HALF_A_HEAD + b"x" * 3000)
        await until(lambda: [one for one in app._protocols._own() if one.awaited is Awaited.HEAD][199:])
        assert all(one._head_bytes <= 4096 for one in app._protocols._own())
        later(app, 6)
        for client in clients:
            await refused(client)
        await until(lambda: app._protocols.open_count == 0)
