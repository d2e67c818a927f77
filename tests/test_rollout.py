"""A Pod's end as the kubelet has it: not one byte of a live stream is lost within the grace period."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.app_support import Client, Reply, request
from tests.kubelet import Container, Model, Sidecar, asked_at, client_at, end_pod, in_a_pod, model, sidecar

STREAMS = 12
GRACE_S = 30.0
GET = request("GET", "/v1/chat/completions", headers=[("Accept", "text/event-stream")])
INGRESS = "mode: ingress\ndrain: {delay: 500ms, timeout: 20s}\n"
EGRESS = "mode: egress\ndrain: {timeout: 20s}\n"


def before(upstream: Model) -> str:
    return f"upstreams: {{llm: {{url: 'http://{upstream.address}', proxy: none, health: none}}}}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.yaml"


@dataclass
class Watch:
    """What probes and new clients are told while the Pod ends."""

    live: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)

    async def look(self, running: Sidecar) -> None:
        """Until nobody answers any more: the process has ended, or is about to."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                live = (await running.ask_admin("/livez")).status
                ready = (await running.ask_admin("/readyz")).status
                self.live.append(live)
                self.ready.append(ready)
                await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(running: Sidecar) -> AsyncIterator[Watch]:
    watch = Watch()
    looking = asyncio.create_task(watch.look(running))
    try:
        yield watch
    finally:
        await looking


async def begin(stack: AsyncExitStack, running: Sidecar, count: int = STREAMS) -> list[Client]:
    """Clients whose streams have all begun."""
    clients = [await stack.enter_async_context(client_at(running.address)) for _ in range(count)]
    for client in clients:
        await client.send(GET)
    for client in clients:
        assert (await client.head()).status == 200
    return clients


async def body_of(client: Client) -> bytes:
    parts = []
    while part := await client.chunk():
        parts.append(part)
    assert part == b"", "a broken answer"
    return b"".join(parts)


async def until_refused(running: Sidecar, watch: Watch) -> Reply:
    """Ask again and again; every answer before the refusal has to be whole."""
    while True:
        reply = await asked_at(running.address, GET)
        if reply.status != 200:
            return reply
        assert reply.is_whole
        watch.replies.append(reply)


@in_a_pod
async def test_a_model_servers_sidecar_drains_by_its_hook(config: Path) -> None:
    async with (
        model(120) as upstream,
        sidecar(config, INGRESS + before(upstream)) as running,
        AsyncExitStack() as stack,
        watching(running) as watch,
    ):
        clients = await begin(stack, running)
        bodies = asyncio.gather(*map(body_of, clients))
        main = upstream.container(hook=running.drain)
        beside = running.container()
        ending = asyncio.create_task(end_pod([main], [beside], GRACE_S))
        refusal = await until_refused(running, watch)
        assert (refusal.status, refusal.header("Connection")) == (503, "close")
        assert refusal.header("Retry-After") is not None
        assert b"shutting_down" in refusal.body
        await ending
        received = await bodies
        taken = [reply.body for reply in watch.replies]
        assert sorted([*received, *taken]) == sorted(upstream.sent), "not one byte more or less than was sent"
        assert all(body.endswith(b"data: [DONE]\n\n") for body in received)
        assert await running.ended() == 0
        assert (main.was_killed, beside.was_killed) == (False, False)
    assert set(watch.live) == {200}
    assert watch.ready[0] == 200
    assert watch.ready[-1] == 503
    assert "every request finished" in running.log


@in_a_pod
async def test_an_applications_sidecar_serves_it_to_its_end(config: Path) -> None:
    async with (
        model(50) as upstream,
        sidecar(config, EGRESS + before(upstream)) as running,
        AsyncExitStack() as stack,
        watching(running) as watch,
    ):
        clients = await begin(stack, running)
        told, gone = asyncio.Event(), asyncio.Event()
        application = Container(told.set, gone.set, gone.wait)
        beside = running.container()
        ending = asyncio.create_task(end_pod([application], [beside], GRACE_S))
        await told.wait()
        await running.says("asked to leave: /drain, egress mode")
        received = list(await asyncio.gather(*map(body_of, clients)))
        for _ in range(3):  # it finishes its own work, for which it asks more
            reply = await asked_at(running.address, GET)
            assert (reply.status, reply.is_whole, reply.header("Connection")) == (200, True, None)
            received.append(reply.body)
        told_ready = set(watch.ready)
        gone.set()
        await ending
        assert sorted(received) == sorted(upstream.sent)
        assert await running.ended() == 0
        assert not beside.was_killed
    assert set(watch.live) == told_ready == {200}


@in_a_pod
async def test_a_plain_container_gets_its_signal_with_the_application(config: Path) -> None:
    async with (
        model(100) as upstream,
        sidecar(config, EGRESS + before(upstream)) as running,
        AsyncExitStack() as stack,
        watching(running) as watch,
    ):
        clients = await begin(stack, running)
        beside = running.container(hooked=False)
        ending = asyncio.create_task(end_pod([beside], [], GRACE_S))
        await running.says("asked to leave: SIGTERM")
        clients += await begin(stack, running, 1)  # nothing is refused while streams live
        received = await asyncio.gather(*map(body_of, clients))
        await ending
        assert sorted(received) == sorted(upstream.sent)
        assert await running.ended() == 0
        assert not beside.was_killed
    assert set(watch.live) == {200}


@pytest.mark.parametrize("text", [INGRESS, EGRESS], ids=["ingress", "egress"])
@in_a_pod
async def test_a_stream_longer_than_the_grace_period_is_told_within_the_floor(text: str, config: Path) -> None:
    async with (
        model(4000) as upstream,
        sidecar(config, text + before(upstream)) as running,
        AsyncExitStack() as stack,
    ):
        clients = await begin(stack, running)
        rests = asyncio.gather(*(client.rest() for client in clients))
        beside = running.container()
        await end_pod([], [beside], 1.0)
        for rest in await rests:
            assert b"shutting_down" in rest
            assert b"[DONE]" not in rest
            assert not rest.endswith(b"0\r\n\r\n")
        assert await running.ended() == 0
        assert not beside.was_killed
        assert f"{STREAMS} requests cut off" in running.log


@in_a_pod
async def test_a_collector_that_never_answers_does_not_outlast_the_floor(config: Path) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as collector, model(5) as upstream:
        port = collector.sockets[0].getsockname()[1]
        telemetry = f"telemetry: {{otlp: 'http://127.0.0.1:{port}', metrics: true}}\n"
        async with sidecar(config, EGRESS + telemetry + before(upstream)) as running, AsyncExitStack() as stack:
            await asyncio.gather(*map(body_of, await begin(stack, running)))
            beside = running.container()
            await end_pod([], [beside], 0.5)
            assert await running.ended() == 0
            assert not beside.was_killed


@in_a_pod
async def test_the_grace_periods_end_is_sigkills(config: Path) -> None:
    """The fake is one that kills, or the tests above would say nothing."""
    async with model(1) as upstream, sidecar(config, EGRESS + before(upstream)) as running:
        beside = running.container(hooked=False)
        running.process.send_signal(signal.SIGSTOP)
        await end_pod([beside], [], 0.0)
        assert beside.was_killed
        assert await running.ended() == -signal.SIGKILL
