"""`App.close` in every phase of a stream: whoever can be told is told, and nothing is left or logged as broken."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from sidecar.app import App
from sidecar.errors import Outcome
from sidecar.settings import Limits
from tests.app_support import SSE_HEAD, Client, Reply, ask, before, chunk, client_of, on_uvloop, openai_frames, request
from tests.departures import blackhole, until
from tests.upstream_support import open_files, serving

FORMATS = pytest.mark.parametrize("format_name", ["typed", "native"])
FRAME = openai_frames("a")[0]
PATHS = ["/v1/chat/completions", "/v1/messages", "/api/chat", "/anything"]


async def shut_down(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """Close the app; it must let go of everything, and complain of nothing."""
    with caplog.at_level(logging.WARNING):
        await app.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info] == []
    assert (len(app.streams), app.streams.tasks, app.streams.body_bytes) == (0, 0, 0)
    assert (app.pool("llm").active, app.pool("llm").idle) == (0, 0)


def check_refused(reply: Reply) -> None:
    assert (reply.status, reply.is_whole) == (503, True)
    assert b"shutting" in reply.body
    assert reply.header("Retry-After") is not None


@pytest.mark.parametrize("path", PATHS)
@FORMATS
@on_uvloop
async def test_waiting_for_headers(format_name: str, path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(ask(path, [("X-Stream-Format", format_name)]))
        peer = await server.peer()
        await peer.request()
        await shut_down(app, caplog)
        check_refused(await client.reply())
        assert await client.rest() == b""
        await peer.lost()
        assert app.streams.outcomes == {Outcome.SHUT_DOWN: 1}


@on_uvloop
async def test_connecting(caplog: pytest.LogCaptureFixture) -> None:
    with blackhole() as nowhere:
        async with before(nowhere) as app, client_of(app) as client:
            await client.send(ask())
            await until(lambda: app.pool("llm").active)
            await shut_down(app, caplog)
            check_refused(await client.reply())
            assert app.streams.outcomes == {Outcome.SHUT_DOWN: 1}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are still sending are not waited for as long as usual."""
    monkeypatch.setattr("sidecar.app.app.CLOSE_TIMEOUT_S", 0.1)


@pytest.mark.usefixtures("impatient")
@on_uvloop
async def test_within_an_upload(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(request("POST", "/upload", None, [("Content-Length", "1000000")]) + b"x" * 1000)
        peer = await server.peer()
        await peer.request()
        await shut_down(app, caplog)
        check_refused(await client.reply())
        await peer.lost()
        assert app.streams.outcomes == {Outcome.SHUT_DOWN: 1}


@pytest.mark.parametrize(
    "body", [b"", chunk(FRAME), chunk(FRAME) + chunk(FRAME[:20])], ids=["none", "frame", "partial"]
)
@FORMATS
@on_uvloop
async def test_after_headers(format_name: str, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(ask(headers=[("X-Stream-Format", format_name)]))
        peer = await server.peer()
        await peer.request()
        peer.send(SSE_HEAD + body)
        reading = asyncio.create_task(client.reply())
        await until(lambda: any(stream.session.has_sent for stream in app.streams))
        if body:
            await until(lambda: any(stream.session.content_events for stream in app.streams))
        await shut_down(app, caplog)
        reply = await reading
        if format_name == "typed":
            names = [name for name, _ in reply.events()]
            assert (names[0], names[-2:], names.count("done")) == ("start", ["error", "done"], 1)
            assert reply.events()[-2][1]["code"] == "shutting_down"
            assert reply.events()[-1][1]["status"] == "interrupted"
        else:
            whole = FRAME if body else b""
            assert reply.body.startswith(whole)
            assert (
                json.loads(reply.body.removeprefix(whole).removeprefix(b"data: "))["error"]["code"] == "shutting_down"
            )
            assert not reply.is_whole
        await peer.lost()
        assert app.streams.outcomes == {Outcome.SHUT_DOWN: 1}


@on_uvloop
async def test_within_a_plain_body(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(ask(stream=False))
        peer = await server.peer()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        assert (await client.head()).status == 200
        await shut_down(app, caplog)
        assert await client.rest() == b"{"
        assert app.streams.outcomes == {Outcome.SHUT_DOWN: 1}


async def stop_reading(client: Client, app: App) -> None:
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half
    await until(lambda: any(stream.lag_bytes > 16_000 for stream in app.streams))


@FORMATS
@on_uvloop
async def test_a_client_that_is_behind_is_cut_off(format_name: str, caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(buffer_bytes=64 * 1024)
    async with serving() as server, before(server.address, route={"limits": limits}) as app, client_of(app) as client:
        await client.send(ask(headers=[("X-Stream-Format", format_name)]))
        peer = await server.peer()
        await peer.request()
        peer.send(SSE_HEAD + chunk(FRAME) * 100_000)
        await client.head()
        await stop_reading(client, app)
        await shut_down(app, caplog)
        await peer.lost()
        assert app.streams.outcomes == {Outcome.SHUT_DOWN: 1}


@on_uvloop
async def test_many_streams_and_an_idle_connection_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with serving():
        pass  # the loop's first listener opens a spare file for good
    files = open_files()
    async with serving() as server, before(server.address) as app, client_of(app) as idle:
        replies = []
        for number in range(20):
            connection = await asyncio.open_connection("127.0.0.1", app.address.port)
            client = Client(*connection)
            await client.send(ask(headers=[("X-Stream-Format", "typed")]))
            peer = await server.peer(number)
            await peer.request()
            if number % 2:
                peer.send(SSE_HEAD + chunk(FRAME))
                await client.head()
            replies.append(client)
        await shut_down(app, caplog)
        for number, client in enumerate(replies):
            rest = await client.rest()
            assert (b"event: done" if number % 2 else b"503") in rest
            client.writer.close()
        assert await idle.rest() == b""
        assert app.streams.outcomes == {Outcome.SHUT_DOWN: 20}
        await until(lambda: all(peer.is_lost for peer in server.peers))
    await until(lambda: open_files() <= files)


@pytest.mark.usefixtures("impatient")
@on_uvloop
async def test_a_client_still_sending_its_request(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(ask(text="x" * 200_000)[:-1000])
        await until(lambda: app.streams.body_bytes > 100_000)
        await shut_down(app, caplog)
        await client.rest()
        assert server.peers == []
