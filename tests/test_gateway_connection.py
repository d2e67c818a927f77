"""One client connection after another request: what may follow an answer, and what must never."""

from __future__ import annotations

import asyncio
import gc
import gzip
import socket
import weakref

import msgspec
import pytest

from sidecar.gateway.request import ClientRequest
from sidecar.settings import Address, Limits
from tests.app_support import SSE_HEAD, answering, ask, asked, before, chunk, client_of, on_uvloop, plain, request
from tests.departures import until
from tests.upstream_support import serving

UPLOAD = [("Content-Type", "application/octet-stream"), ("Content-Length", "30")]
PIECES = ("one", "two", "three")


def nobody() -> Address:
    """An address that refuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", int(probe.getsockname()[1]))


@on_uvloop
async def test_a_refused_dial_leaves_the_connection_for_the_next_request() -> None:
    async with before(nobody()) as app, client_of(app) as client:
        for _ in range(3):
            reply = await client.ask(ask())
            assert (reply.status, reply.json()["error"]["code"]) == (502, "upstream_refused")


@on_uvloop
async def test_an_upload_to_a_refused_upstream_is_answered_and_taken_to_its_end() -> None:
    async with before(nobody()) as app, client_of(app) as client:
        await client.send(request("POST", "/v1/files", None, UPLOAD) + b"x" * 10)
        assert (await client.reply()).status == 502
        await client.send(b"x" * 20)
        assert await client.rest() == b""


@on_uvloop
async def test_a_fallback_is_not_cancelled_by_the_dial_before_it() -> None:
    """The second upstream's connection comes from the pool, so nothing else has cleared the first one's dial."""
    async with answering(plain(b"{}")) as upstream, before(nobody(), upstream.address) as app:
        async with client_of(app) as client:
            for _ in range(2):
                assert (await client.ask(ask(stream=False))).status == 200
        assert len(app.streams) == 0


@pytest.mark.parametrize("answer", [b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", b""])
@on_uvloop
async def test_nothing_follows_the_answer_to_an_upload_that_was_broken_off(answer: bytes) -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(request("POST", "/v1/files", None, UPLOAD) + b"x" * 10)
        peer = await server.peer()
        await peer.received()
        if answer:
            peer.send(answer)
        else:
            peer.transport.close()
        assert (await client.reply()).status == (413 if answer else 502)
        await client.send(b"x" * 20)
        if answer:  # whole, so that the connection lives on
            assert (await client.ask(request("GET", "/../x"))).status == 400
        else:
            assert await client.rest() == b""


@on_uvloop
async def test_events_of_a_compressed_stream_keep_their_order() -> None:
    """Several members of one read: some are plain content, some are not."""
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    deltas = [{"content": "one"}, {"tool_calls": [call]}, {"content": "two"}, {"content": "three"}]
    frames = [
        b"data: " + msgspec.json.encode({"id": "a", "choices": [{"index": 0, "delta": delta}]}) + b"\n\n"
        for delta in deltas
    ]
    packed = b"".join([gzip.compress(frame) for frame in [*frames, b"data: [DONE]\n\n"]])
    head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    async with answering([head + chunk(packed) + b"0\r\n\r\n"]) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask(headers=[("X-Stream-Format", "typed")]))
    names = [name for name, _ in reply.events()]
    assert names == ["start", "token", "tool_call", "token", "token", "done"]
    assert [data["text"] for name, data in reply.events() if name == "token"] == list(PIECES)


@pytest.mark.parametrize("buffer_kib", [16, 64])
@on_uvloop
async def test_a_small_buffer_stalls_nobody(buffer_kib: int) -> None:
    """The kernel drops what a receive buffer made smaller after the handshake cannot take."""
    body = b"x" * 200_000
    limits = Limits(buffer_bytes=buffer_kib * 1024)
    async with answering(plain(body)) as upstream, before(upstream.address, route={"limits": limits}) as app:
        for _ in range(3):
            async with client_of(app) as client:
                reply = await asyncio.wait_for(client.ask(ask(stream=False)), 5)
            assert reply.body == body
            app.pool("llm").sweep(float("inf"))


@on_uvloop
async def test_requests_in_a_row_give_others_their_turn() -> None:
    async with before(nobody()) as app, client_of(app) as client:
        await client.send(request("GET", "/../x") * 300)
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        for _ in range(300):
            assert (await client.reply()).status == 400
        turning.cancel()
        assert turns > 300


@on_uvloop
async def test_a_declined_upgrade_says_that_it_closes() -> None:
    upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "a"),
        ("Sec-WebSocket-Version", "13"),
    ]
    async with before(nobody()) as app, client_of(app) as client:
        reply = await client.ask(request("GET", "/v1/realtime", headers=upgrade))
        assert (reply.status, reply.header("Connection")) == (501, "close")
        assert await client.rest() == b""


@on_uvloop
async def test_the_sweep_of_idle_connections_spares_a_request_that_has_just_come() -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app, client_of(app) as client:
        await client.ask(ask(stream=False))
        connection = next(iter(app._protocols.connections))
        connection.data_received(ask(stream=False))
        app._protocols.sweep(float("inf"))
        assert (await client.reply()).status == 200
        app._protocols.sweep(float("inf"))
        assert await client.rest() == b""


@on_uvloop
async def test_a_request_that_came_in_two_packets_is_let_go_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[weakref.ref[ClientRequest]] = []

    class Remembered(ClientRequest):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]  # whatever it takes
            requests.append(weakref.ref(self))

    monkeypatch.setattr("sidecar.gateway.connection.ClientRequest", Remembered)
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        head, _, body = ask().partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        await until(lambda: requests)
        await client.send(body)
        peer = await server.peer()
        await peer.request()
        peer.send(SSE_HEAD)
        assert (await client.head()).status == 200
        gc.collect()
        assert [request() for request in requests] == [None]


@on_uvloop
async def test_a_withheld_answer_dies_by_its_references_alone() -> None:
    gc.collect()
    gc.disable()
    try:
        async with serving() as server, before(server.address) as app, client_of(app) as client:
            await client.send(ask(headers=[("X-Stream-Format", "typed")]))
            peer = await server.peer()
            await peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            stream = weakref.ref(next(iter(app.streams)))
            await until(lambda: (found := stream()) is not None and found.buffered_bytes > 0)
            client.writer.transport.abort()
            await until(lambda: stream() is None)
            assert len(app.streams) == 0
    finally:
        gc.enable()
