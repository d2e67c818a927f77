"""Deadlines over real sockets: each before and after headers, typed and native, with the status or code of its row."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sidecar.errors import Outcome
from sidecar.settings import Limits, Timeouts
from tests.app_support import (
    LAST_CHUNK,
    SSE_HEAD,
    Client,
    Reply,
    ask,
    before,
    chunk,
    client_of,
    on_uvloop,
    openai_frames,
)
from tests.departures import blackhole, until
from tests.upstream_support import Peer, Server, serving

SOON = 0.3
FORMATS = pytest.mark.parametrize("format_name", ["typed", "native"])
FRAMES = openai_frames("a", "b")


def asking(format_name: str, **body: Any) -> bytes:
    return ask(headers=[("X-Stream-Format", format_name)], **body)


async def asked_peer(server: Server, client: Client, data: bytes, number: int = 0) -> Peer:
    """The upstream's side of a request that has arrived there."""
    await client.send(data)
    peer = await server.peer(number)
    await peer.request()
    return peer


def check_timed_out(reply: Reply, format_name: str, code: str) -> None:
    """The end of a stream that ran out of time after its headers."""
    assert reply.status == 200
    if format_name == "typed":
        assert [name for name, _ in reply.events()][-2:] == ["error", "done"]
        assert [name for name, _ in reply.events()].count("done") == 1
        assert reply.events()[-2][1]["code"] == code
        assert reply.events()[-1][1]["status"] == "timed_out"
        assert reply.is_whole
    else:
        assert json.loads(reply.body.split(b"data: ")[-1])["error"]["code"] == code
        assert b"[DONE]" not in reply.body
        assert not reply.is_whole


def check_gateway_timeout(reply: Reply, code: str) -> None:
    assert (reply.status, reply.json()["error"]["code"], reply.is_whole) == (504, code, True)


@FORMATS
@on_uvloop
async def test_connect(format_name: str) -> None:
    with blackhole() as nowhere:
        async with (
            before(nowhere, upstream={"timeouts": Timeouts(connect_s=SOON)}) as app,
            client_of(app) as client,
        ):
            check_gateway_timeout(await client.ask(asking(format_name)), "upstream_connect_timeout")
            assert app.streams.outcomes == {Outcome.UPSTREAM_UNREACHABLE: 1}


@FORMATS
@on_uvloop
async def test_total_passes_while_the_first_upstream_is_dialled(format_name: str) -> None:
    with blackhole() as nowhere:
        async with (
            before(nowhere, upstream={"timeouts": Timeouts(connect_s=60.0, total_s=SOON)}) as app,
            client_of(app) as client,
        ):
            check_gateway_timeout(await client.ask(asking(format_name)), "total_timeout")
            assert app.streams.outcomes == {Outcome.TIMED_OUT: 1}


@pytest.mark.parametrize(
    ("timeouts", "code"),
    [
        (Timeouts(first_token_s=SOON), "first_token_timeout"),
        (Timeouts(total_s=SOON), "total_timeout"),
    ],
)
@pytest.mark.parametrize("is_stream", [True, False])
@FORMATS
@on_uvloop
async def test_silence_before_headers(format_name: str, is_stream: bool, timeouts: Timeouts, code: str) -> None:
    async with (
        serving() as server,
        before(server.address, upstream={"timeouts": timeouts}) as app,
        client_of(app) as client,
    ):
        peer = await asked_peer(server, client, asking(format_name, stream=is_stream))
        check_gateway_timeout(await client.reply(), code)
        await peer.lost()
        assert app.streams.outcomes == {Outcome.TIMED_OUT: 1}


@FORMATS
@on_uvloop
async def test_comments_do_not_satisfy_first_token(format_name: str) -> None:
    async with (
        serving() as server,
        before(server.address, upstream={"timeouts": Timeouts(first_token_s=SOON)}) as app,
        client_of(app) as client,
    ):
        peer = await asked_peer(server, client, asking(format_name))
        peer.send(SSE_HEAD)
        pinging = asyncio.create_task(ping(peer))
        check_timed_out(await client.reply(), format_name, "first_token_timeout")
        await pinging
        assert app.streams.outcomes == {Outcome.TIMED_OUT: 1}


async def ping(peer: Peer) -> None:
    """A comment and an empty delta now and then, for as long as anybody listens."""
    role = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    while not peer.is_lost:
        peer.send(chunk(b": ping\n\n") + chunk(role))
        await asyncio.sleep(0.02)


@on_uvloop
async def test_a_plain_answer_has_until_its_headers_only() -> None:
    async with (
        serving() as server,
        before(server.address, upstream={"timeouts": Timeouts(first_token_s=SOON)}) as app,
        client_of(app) as client,
    ):
        peer = await asked_peer(server, client, ask(stream=False))
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{")
        reply = await client.head()
        await asyncio.sleep(3 * SOON)  # the deadline that must not strike
        peer.send(b"}")
        assert await client.reader.readexactly(2) == b"{}"
        assert reply.status == 200
        await until(lambda: app.streams.outcomes == {Outcome.COMPLETED: 1})


@FORMATS
@on_uvloop
async def test_idle(format_name: str) -> None:
    async with (
        serving() as server,
        before(server.address, upstream={"timeouts": Timeouts(idle_s=SOON)}) as app,
        client_of(app) as client,
    ):
        peer = await asked_peer(server, client, asking(format_name))
        peer.send(SSE_HEAD + chunk(FRAMES[0]))
        check_timed_out(await client.reply(), format_name, "idle_timeout")
        await peer.lost()
        assert app.streams.outcomes == {Outcome.TIMED_OUT: 1}


@on_uvloop
async def test_idle_within_a_plain_body() -> None:
    async with (
        serving() as server,
        before(server.address, upstream={"timeouts": Timeouts(idle_s=SOON)}) as app,
        client_of(app) as client,
    ):
        peer = await asked_peer(server, client, ask(stream=False))
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        reply = await client.reply()
        assert (reply.status, reply.is_whole) == (200, False)
        await peer.lost()
        assert app.streams.outcomes == {Outcome.TIMED_OUT: 1}


@on_uvloop
async def test_idle_stands_still_while_the_client_holds_the_stream_back() -> None:
    async with (
        serving() as server,
        before(
            server.address,
            upstream={"timeouts": Timeouts(idle_s=SOON)},
            route={"limits": Limits(buffer_bytes=64 * 1024)},
        ) as app,
        client_of(app) as client,
    ):
        peer = await asked_peer(server, client, ask())
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half
        peer.send(SSE_HEAD + chunk(FRAMES[0]) * 50_000)
        stream = next(iter(app.streams))
        await until(lambda: stream._paused)
        await asyncio.sleep(3 * SOON)  # the deadline that must not strike
        assert stream.session.outcome is None
        peer.send(b"".join(map(chunk, FRAMES)) + LAST_CHUNK)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        reply = await client.reply()
        assert (reply.is_whole, reply.body) == (True, FRAMES[0] * 50_000 + b"".join(FRAMES))


@FORMATS
@on_uvloop
async def test_total_strikes_a_stream_that_flows(format_name: str) -> None:
    async with (
        serving() as server,
        before(server.address, upstream={"timeouts": Timeouts(total_s=SOON)}) as app,
        client_of(app) as client,
    ):
        peer = await asked_peer(server, client, asking(format_name))
        peer.send(SSE_HEAD + chunk(FRAMES[0]))
        pinging = asyncio.create_task(ping(peer))
        check_timed_out(await client.reply(), format_name, "total_timeout")
        await pinging
        assert app.streams.outcomes == {Outcome.TIMED_OUT: 1}


# After the terminator.


@pytest.mark.parametrize("frames", [FRAMES, FRAMES[-1:]], ids=["content", "empty"])
@FORMATS
@on_uvloop
async def test_an_upstream_that_never_ends_its_body_is_let_go_of(format_name: str, frames: list[bytes]) -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        peer = await asked_peer(server, client, asking(format_name))
        peer.send(SSE_HEAD + b"".join(map(chunk, frames)))
        reply = await client.reply()
        assert reply.is_whole
        if format_name == "typed":
            assert reply.events()[-1][1]["status"] == "completed"
        else:
            assert reply.body == b"".join(frames)
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}
        await peer.lost()
        assert app.pool("llm").active == 0


@FORMATS
@on_uvloop
async def test_the_connection_carries_the_next_request(format_name: str) -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        for _ in range(3):
            peer = await asked_peer(server, client, asking(format_name))
            peer.send(SSE_HEAD + b"".join(map(chunk, FRAMES)))
            if format_name == "typed":
                assert (await client.reply()).is_whole
            peer.send(LAST_CHUNK)
            if format_name == "native":
                assert (await client.reply()).is_whole
            await until(lambda: app.pool("llm").idle == 1)
        assert len(server.peers) == 1


@FORMATS
@on_uvloop
async def test_a_dead_idle_connection_is_invisible_to_the_client(format_name: str) -> None:
    """The upstream takes the second request on the kept connection and closes it without a byte."""
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        first = await asked_peer(server, client, asking(format_name))
        first.send(SSE_HEAD + b"".join(map(chunk, FRAMES)) + LAST_CHUNK)
        assert (await client.reply()).is_whole
        await until(lambda: app.pool("llm").idle == 1)
        again = await asked_peer(server, client, asking(format_name))
        assert again is first
        again.end()
        second = await server.peer(1)
        await second.request()
        second.send(SSE_HEAD + b"".join(map(chunk, FRAMES)) + LAST_CHUNK)
        assert (await client.reply()).is_whole
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}


@on_uvloop
async def test_a_fresh_connection_is_not_tried_again() -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        peer = await asked_peer(server, client, ask())
        peer.end()
        reply = await client.reply()
        assert (reply.status, reply.json()["error"]["code"]) == (502, "upstream_reset")
        assert len(server.peers) == 1
        assert app.streams.outcomes == {Outcome.UPSTREAM_BROKEN: 1}
