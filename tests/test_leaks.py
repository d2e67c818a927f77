"""After a thousand cancelled streams nothing is left: no task, socket, stream, byte or object."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from typing import Any

import pytest

from sidecar.errors import Outcome
from sidecar.settings import Limits
from sidecar.simulator import Behaviour, serve
from sidecar.stream import Stream
from sidecar.streams import Streams
from tests.app_support import ANY_PORT, Client, ask, before, on_uvloop, request
from tests.departures import DEPARTURES, connected, leave, until
from tests.upstream_support import open_files

STREAMS = 1000
AT_ONCE = 50
FOREVER = ("X-Simulate-Tokens", "1000000")


async def wait_for_headers(client: Client) -> None:
    await client.send(ask(headers=[("X-Simulate-Slow-Headers-Ms", "60000")]))


async def compute(client: Client) -> None:
    await client.send(ask(stream=False, headers=[("X-Simulate-First-Token-Delay-Ms", "60000")]))


async def wait_for_content(client: Client) -> None:
    await client.send(ask(headers=[("X-Simulate-First-Token-Delay-Ms", "60000")]))
    await client.head()


async def read_some(client: Client) -> None:
    await client.send(ask(headers=[FOREVER, ("X-Simulate-Interval-Ms", "1"), ("X-Stream-Format", "typed")]))
    await client.head()
    for _ in range(3):
        assert await client.chunk()


async def stop_reading(client: Client) -> None:
    await client.send(ask(headers=[("X-Simulate-Repeat-Mib", "4")]))
    await client.head()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half


async def upload(client: Client) -> None:
    await client.send(request("POST", "/upload", None, [("Content-Length", "1000000")]) + b"x" * 1000)


PHASES = (wait_for_headers, compute, wait_for_content, read_some, stop_reading, upload)


def remember_streams(patch: pytest.MonkeyPatch) -> weakref.WeakSet[Stream]:
    """Every stream that is opened from now on, for as long as somebody else holds it."""
    alive: weakref.WeakSet[Stream] = weakref.WeakSet()
    open_stream = Streams.open

    def opened(*args: Any) -> Stream:
        stream = open_stream(*args)
        alive.add(stream)
        return stream

    patch.setattr(Streams, "open", opened)
    return alive


@pytest.fixture
def no_collector() -> Any:
    """Whatever dies in the test dies by its references alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@on_uvloop
async def test_a_thousand_cancelled_streams_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = remember_streams(monkeypatch)
    chance = random.Random(11)
    upstream = await serve(ANY_PORT, Behaviour())
    async with before(upstream.address, route={"limits": Limits(buffer_bytes=64 * 1024)}) as app:
        async with connected(app) as client:
            await client.ask(ask(stream=False))
        await until(lambda: not app._protocols.connections)
        app.pool("llm").sweep(float("inf"))
        await until(lambda: upstream.open_connections == 0)
        tasks, files, completed = len(asyncio.all_tasks()), open_files(), app.streams.outcomes[Outcome.COMPLETED]
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with places, connected(app) as client:
                await PHASES[number % len(PHASES)](client)
                await asyncio.sleep(chance.random() / 100)  # so that departures fall anywhere within their phase
                leave(client, DEPARTURES[number % len(DEPARTURES)])
                if number % len(DEPARTURES) == 2:
                    client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
                    await client.rest()

        await asyncio.gather(*(one(number) for number in range(STREAMS)))
        await until(lambda: not app._protocols.connections)
        await until(lambda: upstream.open_connections == 0)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        await until(lambda: open_files() <= files)
        assert (len(app.streams), app.streams.tasks, app.streams.body_bytes) == (0, 0, 0)
        assert (app.pool("llm").active, app.pool("llm").idle) == (0, 0)
        assert set(app.streams.outcomes) == {Outcome.COMPLETED, Outcome.CLIENT_CANCELLED}
        assert app.streams.outcomes[Outcome.COMPLETED] == completed
        assert STREAMS * 0.8 < app.streams.outcomes[Outcome.CLIENT_CANCELLED] <= STREAMS
        assert list(alive) == []
    await upstream.close()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("headers", [[], [("X-Stream-Format", "typed")], [("X-Simulate-Cut-After-Bytes", "300")]])
@on_uvloop
async def test_a_finished_stream_dies_by_its_references_alone(
    headers: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = remember_streams(monkeypatch)
    upstream = await serve(ANY_PORT, Behaviour())
    async with before(upstream.address) as app, connected(app) as client:
        assert (await client.ask(ask(headers=headers))).status == 200
        await until(lambda: list(alive) == [])
        assert sum(app.streams.outcomes.values()) == 1
    await upstream.close()
