"""Many more requests at once than there may be streams: exactly the limit is served, the rest refused at once."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Iterator
from typing import cast

import pytest
import uvloop

from sidecar.errors import Outcome
from sidecar.gateway import ClientConnection
from sidecar.record import Record
from tests.app_support import LAST_CHUNK, SSE_HEAD, ask, before, chunk, openai_frames
from tests.departures import until
from tests.observing import Counting
from tests.upstream_support import serving

REQUESTS = 2000
LIMIT = 1000
REFUSED_WITHIN_S = 0.05
"""From the request's head to its refusal; the issue's own bound."""
OPEN_FILES = 2 * REQUESTS + 2 * LIMIT + 200
DEADLINE_S = 60.0


class Refusals(Counting):
    """Remembers how long each refused request took, from its head having been read."""

    def __init__(self) -> None:
        super().__init__()
        self.took_s: list[float] = []
        self.outcomes: Counter[Outcome] = Counter()

    def ended(self, record: Record) -> None:
        super().ended(record)
        self.outcomes[record.outcome] += 1
        if record.outcome is Outcome.REFUSED:
            self.took_s.append(record.ended_at - record.received_at)


@pytest.fixture(autouse=True)
def many_open_files() -> Iterator[None]:
    """Both ends of everything are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(OPEN_FILES, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Asking(asyncio.Protocol):
    """A client that asks as soon as it is connected, and keeps what it is told."""

    def __init__(self) -> None:
        self.told = bytearray()
        self.has_left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(ask())

    def data_received(self, data: bytes) -> None:
        self.told += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.has_left = True

    @property
    def status(self) -> int:
        return int(self.told[9:12] or 0) if b"\r\n\r\n" in self.told else 0


async def burst(patch: pytest.MonkeyPatch) -> None:
    refusals = Refusals()
    late_s = watch_heads(patch)
    async with serving() as upstream, before(upstream.address, observer=refusals, max_streams=LIMIT) as app:
        loop = asyncio.get_running_loop()
        place = (app.address.host, app.address.port)
        made = await asyncio.gather(*(loop.create_connection(Asking, *place) for _ in range(REQUESTS)))
        clients = [client for _, client in made]
        await until(lambda: refusals.outcomes[Outcome.REFUSED] + len(upstream.peers) >= REQUESTS)
        frames = b"".join(map(chunk, openai_frames("Hello")))
        for number in range(LIMIT):
            peer = await upstream.peer(number)
            await peer.request()
            peer.send(SSE_HEAD + frames + LAST_CHUNK)
        await until(lambda: all(client.status for client in clients))
        assert Counter(client.status for client in clients) == {200: LIMIT, 503: REQUESTS - LIMIT}
        await until(lambda: refusals.ended_count == REQUESTS)
        assert all(client.told.endswith(LAST_CHUNK) for client in clients if client.status == 200)
        assert refusals.outcomes == {Outcome.COMPLETED: LIMIT, Outcome.REFUSED: REQUESTS - LIMIT}
        assert max(late_s) + max(refusals.took_s) < REFUSED_WITHIN_S
        assert not any(client.has_left for client in clients)
        for client in clients:
            client.transport.abort()
        await until(lambda: not app._protocols.connections)


def watch_heads(patch: pytest.MonkeyPatch) -> list[float]:
    """How long each head lay parsed before anybody looked at it, in seconds."""
    waited: list[float] = []
    parsed_at: dict[int, float] = {}
    receive, make_room = ClientConnection.data_received, ClientConnection._make_room

    def received(connection: ClientConnection, data: bytes) -> None:
        receive(connection, data)
        parsed_at[id(connection)] = time.monotonic()

    def looked_at(connection: ClientConnection) -> None:
        waited.append(time.monotonic() - parsed_at[id(connection)])
        make_room(connection)

    patch.setattr(ClientConnection, "data_received", received)
    patch.setattr(ClientConnection, "_make_room", looked_at)
    return waited


def test_a_burst_is_served_up_to_the_limit_and_refused_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await burst(monkeypatch)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
