"""A client that leaves, in every phase, by FIN, RST and half-close: the upstream is aborted inside the callback."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sidecar.app import App
from sidecar.errors import Failure, Outcome
from sidecar.settings import Limits, ServerTls, UpstreamTls
from sidecar.upstream import UpstreamPool
from tests.app_support import CHAT, SSE_HEAD, Client, answering, ask, before, chunk, on_uvloop, plain, request
from tests.departures import (
    DEPARTURES,
    Certificates,
    Departures,
    blackhole,
    connected,
    leave,
    make_certificates,
    until,
)
from tests.upstream_support import Peer, Server, serving

FRAME = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
Phase = Callable[[App, Server, Client, int], Awaitable[Peer]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def departures(monkeypatch: pytest.MonkeyPatch) -> Departures:
    watching = Departures()
    watching.watch(monkeypatch)
    return watching


async def waiting(app: App, server: Server, client: Client, number: int) -> Peer:
    await client.send(ask())
    peer = await server.peer(number)
    await peer.request()
    return peer


async def computing(app: App, server: Server, client: Client, number: int) -> Peer:
    await client.send(ask(stream=False))
    peer = await server.peer(number)
    await peer.request()
    return peer


async def headers_sent(app: App, server: Server, client: Client, number: int) -> Peer:
    peer = await waiting(app, server, client, number)
    peer.send(SSE_HEAD)
    assert (await client.head()).status == 200
    return peer


async def streaming(app: App, server: Server, client: Client, number: int) -> Peer:
    peer = await headers_sent(app, server, client, number)
    peer.send(chunk(FRAME))
    assert await client.chunk() == FRAME
    return peer


async def plain_body(app: App, server: Server, client: Client, number: int) -> Peer:
    peer = await computing(app, server, client, number)
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    assert (await client.head()).status == 200
    return peer


async def writer_blocked(app: App, server: Server, client: Client, number: int) -> Peer:
    peer = await headers_sent(app, server, client, number)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half
    peer.send(chunk(FRAME) * 100_000)
    await until(lambda: any(stream.lag_bytes > 65_000 for stream in app.streams))
    return peer


async def upload_blocked(app: App, server: Server, client: Client, number: int) -> Peer:
    await client.send(request("POST", "/upload", None, [("Content-Length", str(100_000_000))]))
    peer = await server.peer(number)
    await peer.request()
    peer.transport.pause_reading()
    client.writer.write(b"x" * 20_000_000)
    await until(lambda: app.streams._watched)
    return peer


PHASES: list[Phase] = [waiting, computing, headers_sent, streaming, plain_body, writer_blocked, upload_blocked]


@pytest.mark.parametrize("client_tls", [False, True], ids=["client-plain", "client-tls"])
@pytest.mark.parametrize("upstream_tls", [False, True], ids=["upstream-plain", "upstream-tls"])
@pytest.mark.parametrize("phase", PHASES)
@on_uvloop
async def test_leaving_aborts_the_upstream_inside_the_callback(
    phase: Phase, upstream_tls: bool, client_tls: bool, certificates: Certificates, departures: Departures
) -> None:
    options: dict[str, Any] = {"tls": ServerTls(certificates.certificate, certificates.key)} if client_tls else {}
    if upstream_tls:
        options["upstream"] = {"scheme": "https", "tls": UpstreamTls(ca_file=certificates.ca_file)}
    async with (
        serving(tls=certificates.server() if upstream_tls else None) as server,
        before(server.address, route={"limits": Limits(max_body_bytes=1 << 30)}, **options) as app,
    ):
        departures.app = app
        for number, how in enumerate(DEPARTURES):
            async with connected(app, certificates.client() if client_tls else None) as client:
                peer = await phase(app, server, client, number)
                assert not peer.is_lost
                leave(client, how)
                peer.transport.resume_reading()
                await peer.lost()
                await until(lambda: len(app.streams) == 0)
        await until(lambda: app.streams.tasks == 0)
        assert [active for _, active in departures.seen] == [0, 0, 0]
        assert app.streams.outcomes == {Outcome.CLIENT_CANCELLED: 3}
        assert app.streams.body_bytes == 0


@pytest.mark.parametrize("how", DEPARTURES)
@on_uvloop
async def test_leaving_while_connecting(how: str, departures: Departures) -> None:
    with blackhole() as nowhere:
        async with before(nowhere) as app, connected(app) as client:
            departures.app = app
            await client.send(ask())
            await until(lambda: app.pool("llm").active)
            leave(client, how)
            await until(lambda: departures.seen)
            await until(lambda: app.pool("llm").active == 0)
            assert app.streams.outcomes == {Outcome.CLIENT_CANCELLED: 1}


@pytest.mark.parametrize("how", DEPARTURES)
@on_uvloop
async def test_leaving_within_the_upstreams_tls_handshake(how: str, departures: Departures) -> None:
    async with (
        serving() as server,  # takes the connection and never answers the handshake
        before(server.address, upstream={"scheme": "https"}) as app,
        connected(app) as client,
    ):
        departures.app = app
        await client.send(ask())
        peer = await server.peer()
        await peer.received()
        leave(client, how)
        await peer.lost()
        assert app.streams.outcomes == {Outcome.CLIENT_CANCELLED: 1}
        await until(lambda: app.streams.tasks == 0)


@pytest.mark.parametrize("how", DEPARTURES)
@on_uvloop
async def test_leaving_within_a_json_body_never_calls_the_upstream(how: str) -> None:
    async with serving() as server, before(server.address) as app, connected(app) as client:
        await client.send(ask(text="x" * 200_000)[:-1000])
        await until(lambda: app.streams.body_bytes > 100_000)
        leave(client, how)
        await until(lambda: app.streams.body_bytes == 0)
        await until(lambda: not app._protocols.connections)
        assert (server.peers, len(app.streams), app.streams.outcomes) == ([], 0, {})


@on_uvloop
async def test_leaving_right_behind_a_request_leaves_nothing() -> None:
    """The request and the FIN wait together, and an idle connection stands ready: it is used once and dropped."""
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        async with connected(app) as first:
            await first.ask(ask(stream=False))
        assert (len(upstream.received), app.pool("llm").idle) == (1, 1)
        async with connected(app) as client:
            # Both wait in the kernel before the sidecar is given a turn to read.
            with _raw(client) as sock:
                sock.sendall(ask())
                sock.shutdown(socket.SHUT_WR)
            await until(lambda: app.streams.outcomes[Outcome.CLIENT_CANCELLED] == 1)
            await until(lambda: len(app._protocols.connections) == 0)
        assert (app.pool("llm").active, app.pool("llm").idle, len(app.streams), app.streams.tasks) == (0, 0, 0, 0)


def _raw(client: Client) -> socket.socket:
    return socket.socket(fileno=os.dup(client.writer.transport.get_extra_info("socket").fileno()))


@on_uvloop
async def test_leaving_as_the_dial_fails_is_still_one_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is refused in the very turn in which the client goes."""
    dialling: list[asyncio.Future[Any]] = []

    async def refused(self: UpstreamPool) -> Any:
        dialling.append(asyncio.get_running_loop().create_future())
        return await dialling[0]

    monkeypatch.setattr(UpstreamPool, "dial", refused)
    async with serving() as server, before(server.address) as app, connected(app) as client:
        await client.send(ask(CHAT))
        await until(lambda: dialling)
        dialling[0].set_exception(Failure("upstream_refused", "refused"))
        # The client's departure, as its connection's callback would tell it, before the door learns of the refusal.
        next(iter(app.streams)).client_gone()
        assert await client.rest() == b""
        assert app.streams.outcomes == {Outcome.CLIENT_CANCELLED: 1}
