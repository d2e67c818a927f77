"""Slow clients over real sockets: who is waited for, who is let go of, and that no byte is lost in between."""

from __future__ import annotations

import asyncio
import hashlib
import socket

import pytest

from sidecar.app import App
from sidecar.errors import Outcome
from sidecar.settings import Limits, SlowClientPolicy
from sidecar.simulator import Behaviour, serve
from tests.app_support import ANY_PORT, SSE_HEAD, Client, ask, asked, before, chunk, client_of, on_uvloop, openai_frames
from tests.departures import until
from tests.upstream_support import serving

MIB = 1024 * 1024
FRAME = openai_frames("a" * 1000)[0]
FLOOD = chunk(FRAME) * 20_000
SMALL_BUFFER = 64 * 1024
FORMATS = pytest.mark.parametrize("format_name", ["typed", "native"])


def stop_reading(client: Client) -> None:
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half


def read_on(client: Client) -> None:
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above


async def digest_of(client: Client) -> tuple[str, int]:
    """A whole chunked body's hash, ids aside, and length; raises where its end was not marked."""
    reply = await client.head()
    assert reply.status == 200
    digest, size = hashlib.sha256(), 0
    while data := await client.chunk():
        digest.update(data)
        size += len(data)
    assert data == b""
    return digest.hexdigest(), size


async def is_held_back(app: App) -> None:
    await until(lambda: any(stream._paused for stream in app.streams))


@on_uvloop
async def test_a_client_that_reads_on_gets_every_byte() -> None:
    upstream = await serve(ANY_PORT, Behaviour(repeat_mib=24))
    async with before(upstream.address) as app:
        async with client_of(app) as steady:
            await steady.send(ask())
            expected = await digest_of(steady)
        async with client_of(app) as client:
            await client.send(ask())
            reading = asyncio.create_task(digest_of(client))
            for _ in range(3):
                stop_reading(client)
                await is_held_back(app)
                read_on(client)
                await until(lambda: not any(stream._paused for stream in app.streams))
            assert await reading == expected
        assert expected[1] > 24 * MIB
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}
    await upstream.close()


@FORMATS
@on_uvloop
async def test_a_slow_but_steady_reader_stays_and_one_that_stops_does_not(format_name: str) -> None:
    upstream = await serve(ANY_PORT, Behaviour(repeat_mib=50))
    loop = asyncio.get_running_loop()
    async with before(upstream.address, route={"limits": Limits(stall_timeout_s=0.5)}) as app:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", app.address.port))
            await loop.sock_sendall(client, ask(headers=[("X-Stream-Format", format_name)]))
            await is_held_back(app)
            stream = next(iter(app.streams))
            for _ in range(40):
                assert await loop.sock_recv(client, SMALL_BUFFER)
                await asyncio.sleep(0.05)  # the pace of this reader: over all, several times the stall timeout
                assert stream.session.outcome is None
            await until(lambda: app.streams.outcomes == {Outcome.CLIENT_TOO_SLOW: 1})
        await until(lambda: upstream.open_connections == 0)
    await upstream.close()


@pytest.mark.parametrize("policy", ["pause", "evict"])
@on_uvloop
async def test_a_client_that_stalls_within_its_buffer_is_let_go_of(policy: SlowClientPolicy) -> None:
    limits = Limits(buffer_bytes=4 * MIB, on_slow_client=policy, stall_timeout_s=0.3)
    async with serving() as server, before(server.address, route={"limits": limits}) as app, client_of(app) as client:
        await client.send(ask())
        peer = await server.peer()
        await peer.request()
        peer.send(SSE_HEAD)
        await client.head()
        stop_reading(client)
        stream = next(iter(app.streams))
        while stream.lag_bytes < SMALL_BUFFER:
            peer.send(chunk(FRAME) * 20)
            await asyncio.sleep(0)
        await peer.lost()
        assert app.streams.outcomes == {Outcome.CLIENT_TOO_SLOW: 1}


@FORMATS
@on_uvloop
async def test_an_evicted_client_sees_a_broken_connection(format_name: str) -> None:
    limits = Limits(buffer_bytes=SMALL_BUFFER, on_slow_client="evict")
    async with serving() as server, before(server.address, route={"limits": limits}) as app, client_of(app) as client:
        await client.send(ask(headers=[("X-Stream-Format", format_name)]))
        peer = await server.peer()
        await peer.request()
        peer.send(SSE_HEAD)
        await client.head()
        stop_reading(client)
        peer.send(FLOOD)
        await peer.lost()
        assert app.streams.outcomes == {Outcome.CLIENT_TOO_SLOW: 1}
        read_on(client)
        try:
            got = await client.rest()
        except ConnectionResetError:
            got = b""
        assert b"event: done" not in got
        assert b"\r\n0\r\n" not in got


@FORMATS
@on_uvloop
async def test_an_upstream_that_has_ended_does_not_end_a_client_that_is_behind(format_name: str) -> None:
    frames = openai_frames(*["x" * 1000] * 2000)
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(ask(headers=[("X-Stream-Format", format_name)]))
        peer = await server.peer()
        await peer.request()
        stop_reading(client)
        peer.send(SSE_HEAD + b"".join(map(chunk, frames)) + b"0\r\n\r\n")
        await until(lambda: any(stream.lag_bytes for stream in app.streams))
        peer.end()
        read_on(client)
        reply = await client.reply()
        assert reply.is_whole
        if format_name == "native":
            assert reply.body == b"".join(frames)
        else:
            assert [name for name, _ in reply.events()].count("token") == 2000
        await until(lambda: app.streams.outcomes == {Outcome.COMPLETED: 1})


@on_uvloop
async def test_over_max_buffered_new_streams_are_refused_and_running_ones_live() -> None:
    upstream = await serve(ANY_PORT, Behaviour(repeat_mib=8))
    async with before(upstream.address, max_buffered_bytes=50_000) as app:
        async with client_of(app) as client:
            await client.send(ask())
            reading = asyncio.create_task(digest_of(client))
            stop_reading(client)
            await until(lambda: app.streams.buffered_bytes > 50_000)
            refused = await asked(app, ask())
            assert (refused.status, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.header("Retry-After") == "1"
            read_on(client)
            assert (await reading)[1] > 8 * MIB
        await until(lambda: app.streams.buffered_bytes == 0)
        assert (await asked(app, ask(stream=False))).status == 200
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}
    await upstream.close()
