"""The pool: which connection is used again, which is not, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from sidecar.upstream import Connection, UpstreamPool
from tests.upstream_support import (
    CHUNKED,
    OK,
    Peer,
    Recorder,
    Run,
    Server,
    asked,
    each_loop,
    open_files,
    pooled,
    raises,
    send,
    serving,
    turns,
    upstream_at,
)

pytestmark = each_loop


async def served(pool: UpstreamPool, server: Server, number: int = 0) -> Peer:
    """One whole exchange, after which its connection is idle."""
    sink = Recorder()
    peer, _ = await asked(pool, server, sink, number=number)
    peer.send(OK)
    await sink.over()
    return peer


async def two_idle(pool: UpstreamPool, server: Server) -> tuple[Connection, Connection]:
    """Two idle connections, the older first."""
    sinks = Recorder(), Recorder()
    connections = []
    for number, sink in enumerate(sinks):
        connection = await pool.dial()
        send(connection, sink)
        connections.append(connection)
        await (await server.peer(number)).request()
    for peer, sink in zip(server.peers, sinks, strict=True):
        peer.send(OK)
        await sink.over()
    assert (pool.active, pool.idle) == (0, 2)
    return connections[0], connections[1]


def test_the_youngest_idle_connection_is_taken_first(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            older, younger = await two_idle(pool, server)
            assert pool.take() is younger
            assert pool.take() is older
            assert pool.take() is None
            assert younger.is_reused
            assert (pool.active, pool.idle) == (2, 0)

    run(script())


def test_counters_and_is_reused(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            connection = await pool.dial()
            assert not connection.is_reused
            assert (pool.active, pool.idle) == (1, 0)
            connection.close()
            connection.close()
            assert (pool.active, pool.idle) == (0, 0)
            await (await server.peer()).lost()

    run(script())


def test_connections_past_the_idle_limit_are_swept_and_never_taken(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address), idle_limit_s=4.0) as pool:
            older, younger = await two_idle(pool, server)
            older.idle_since -= 5
            pool.sweep(asyncio.get_running_loop().time())
            assert pool.idle == 1
            await server.peers[0].lost()
            younger.idle_since -= 5
            assert pool.take() is None
            await server.peers[1].lost()
            assert (pool.active, pool.idle) == (0, 0)

    run(script())


@pytest.mark.parametrize("sent", [b"x", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b""])
def test_an_idle_connection_that_hears_anything_is_dropped(run: Run, sent: bytes) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            peer = await served(pool, server)
            if sent:
                peer.send(sent)
            else:
                peer.end()
            await peer.lost()
            await turns(3)
            assert pool.idle == 0

    run(script())


@pytest.mark.parametrize("sent", [b"x", b""])
def test_a_connection_with_something_unread_is_not_taken(run: Run, sent: bytes) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            peer = await served(pool, server)
            assert pool.idle == 1
            if sent:
                peer.write_now(sent)
            else:
                peer.end_now()
            assert pool.take() is None
            assert (pool.active, pool.idle) == (0, 0)

    run(script())


@pytest.mark.parametrize("by_reset", [True, False])
@pytest.mark.parametrize(
    ("answer", "may_resend"), [(b"", True), (b"H", False), (b"HTTP/1.1 100 Continue\r\n\r\n", False)]
)
def test_only_a_reused_connection_without_a_byte_may_be_sent_again(
    run: Run, answer: bytes, may_resend: bool, by_reset: bool
) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            peer = await served(pool, server)
            sink = Recorder()
            await asked(pool, server, sink)
            if answer:
                peer.send(answer)
                await turns(10)
            if by_reset:
                peer.reset()
            else:
                peer.end()
            await sink.over()
            assert sink.may_resend is may_resend
            assert len(server.peers) == 1

    run(script())


def test_no_more_than_max_idle_are_kept(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address), max_idle=1) as pool:
            sinks = Recorder(), Recorder()
            for number, sink in enumerate(sinks):
                send(await pool.dial(), sink)
                await (await server.peer(number)).request()
            for peer, sink in zip(server.peers, sinks, strict=True):
                peer.send(OK)
                await sink.over()
            assert (pool.active, pool.idle) == (0, 1)
            await server.peers[1].lost()

    run(script())


def test_a_late_call_on_a_finished_exchange_touches_nothing(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            sink, second = Recorder(), Recorder()
            peer, old = await asked(pool, server, sink)
            peer.send(OK)
            await sink.over()
            await asked(pool, server, second)
            old.pause()
            old.write_body(b"x")
            old.end_body()
            old.drain()
            old.abort()
            old.resume()
            assert old.is_writable
            peer.send(OK)
            await second.over()
            assert (second.body, len(server.peers), bytes(peer.data)) == (b"ok", 1, b"")

    run(script())


def test_closing_the_pool_fails_what_runs_and_refuses_what_comes(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            idle_peer = await served(pool, server)
            busy, sink = await pool.dial(), Recorder()
            send(busy, sink)
            taken = pool.take()
            assert taken is not None
            pool.close()
            assert (sink.code, sink.words) == ("shutting_down", ["fail"])
            await idle_peer.lost()
            await (await server.peer(1)).lost()
            await raises("shutting_down", pool.dial())

    run(script())


def test_an_answer_that_ends_after_the_pool_was_closed_within_it_is_not_kept(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            sink = Recorder(lambda word: pool.close() if word == "body" else None)
            peer, _ = await asked(pool, server, sink)
            peer.send(OK)
            await sink.over()
            assert (sink.words, pool.idle) == (["head", "body", "fail"], 0)

    run(script())


@pytest.mark.parametrize("ending", ["abort", "end", "fail", "idle"])
def test_a_gone_connection_is_freed_without_the_collector(run: Run, ending: str) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            sink = Recorder()
            connection = await pool.dial()
            exchange = send(connection, sink)
            dead = weakref.ref(connection)
            del connection
            peer = await server.peer()
            peer.send(CHUNKED + b"2\r\nok\r\n")
            await sink.until(lambda: bool(sink.pieces))
            if ending == "abort":
                exchange.abort()
            elif ending == "idle":
                peer.send(b"0\r\n\r\n")
                await sink.over()
                pool.sweep(asyncio.get_running_loop().time() + 10)
            else:
                peer.send(b"0\r\n\r\nextra" if ending == "end" else b"zz")
                await sink.over()
            await peer.lost()
            await turns(5)
            assert dead() is None, gc.get_referrers(dead())

    gc.disable()
    try:
        run(script())
    finally:
        gc.enable()


def test_many_aborted_exchanges_leave_no_socket_and_no_task(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            tasks = len(asyncio.all_tasks())
            before = open_files()
            for number in range(100):
                _, exchange = await asked(pool, server, Recorder(), number=number)
                exchange.abort()
            for peer in server.peers:
                await peer.lost()
            await turns(5)
            assert (pool.active, pool.idle) == (0, 0)
            assert len(asyncio.all_tasks()) == tasks
            assert open_files() <= before + 1

    run(script())


def test_a_pool_closed_while_dialling_gives_no_connection(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            dialling = asyncio.create_task(pool.dial())
            await turns(1)
            pool.close()
            await raises("shutting_down", dialling)
            await (await server.peer()).lost()

    run(script())
