"""A name that leads to several addresses: looked up, balanced, counted, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.settings import Address
from sidecar.upstream import BalancedPool, Connection, UpstreamPool, pool_for
from tests.upstream_support import (
    CHUNKED,
    OK,
    Peer,
    Recorder,
    Run,
    Server,
    each_loop,
    open_files,
    raises,
    send,
    turns,
    upstream_at,
)

pytestmark = each_loop
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


class Names:
    """What llm.test leads to: hosts, or the exception that its look-up ends in. ``asked`` counts look-ups."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, port: int, hosts: Sequence[str]) -> None:
        self.hosts: Sequence[str] | Exception = hosts
        self.port = port
        self.asked = 0
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.look_up, raising=False)

    async def look_up(self, host: str, port: int, **_options: object) -> Any:
        if host != "llm.test":
            return [row(host, port)]  # uvloop's sock_connect passes the address through here once more
        self.asked += 1
        if isinstance(self.hosts, Exception):
            raise self.hosts
        return [row(each, self.port) for each in self.hosts]


def row(host: str, port: int) -> tuple[Any, ...]:
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


class Site:
    """Servers at several addresses of one port."""

    def __init__(self) -> None:
        self.port = 0
        self.servers: dict[str, Server] = {}
        self.listeners: dict[str, asyncio.Server] = {}

    async def listen(self, host: str) -> None:
        server, loop = Server(), asyncio.get_running_loop()
        self.listeners[host] = listener = await loop.create_server(lambda: Peer(server), host, self.port)
        self.port = listener.sockets[0].getsockname()[1]
        self.servers[host] = server

    def peers(self, host: str) -> list[Peer]:
        return self.servers[host].peers

    async def refuse(self, host: str) -> None:
        """Nobody listens there any more."""
        listener = self.listeners.pop(host)
        listener.close()
        await turns(3)


@asynccontextmanager
async def site(hosts: Sequence[str] = HOSTS) -> AsyncIterator[Site]:
    there = Site()
    for host in hosts:
        await there.listen(host)
    try:
        yield there
    finally:
        for listener in there.listeners.values():
            listener.close()
        for server in there.servers.values():
            for peer in server.peers:
                peer.transport.abort()
        await turns(3)


@asynccontextmanager
async def balanced(port: int, **options: Any) -> AsyncIterator[BalancedPool]:
    """A pool of llm.test that leaves nothing behind."""
    pool = pool_for(upstream_at(Address("llm.test", port), **options), environ={})
    assert isinstance(pool, BalancedPool)
    try:
        yield pool
    finally:
        pool.close()
        await turns(3)
        assert (pool.active, pool.idle, pool._at) == (0, 0, {})
        assert all(one["active"] == one["idle"] == 0 for one in pool.addresses)


def load(pool: BalancedPool) -> dict[str, int]:
    """Host → connections in use there."""
    return {one["address"].partition(":")[0]: one["active"] for one in pool.addresses}


async def finished(there: Site, pool: BalancedPool, connection: Connection, sink: Recorder) -> None:
    """Every peer that was asked answers, so that the connection is idle again."""
    before = pool.idle
    asked: list[Peer] = []

    def answered() -> bool:
        for server in there.servers.values():
            for peer in server.peers:
                if b"\r\n\r\n" in peer.data and peer not in asked:
                    asked.append(peer)
                    peer.data.clear()
                    peer.send(OK)
        return bool(sink.words) and sink.words[-1] == "end"

    while not answered():
        await asyncio.sleep(0)
    assert pool.idle == before + 1


def test_the_pool_that_fits(run: Run) -> None:
    async def script() -> None:
        kinds = {
            BalancedPool: [Address("llm.test", 80), Address("localhost", 80)],
            UpstreamPool: [Address("127.0.0.1", 80), Address("::1", 80), Address(path="/run/s")],
        }
        for kind, addresses in kinds.items():
            assert [type(pool_for(upstream_at(each), environ={})) for each in addresses] == [kind] * len(addresses)
        proxied = upstream_at(Address("llm.test", 80))
        assert type(pool_for(proxied, environ={"http_proxy": "http://127.0.0.1:1"})) is UpstreamPool

    run(script())


def test_streams_that_begin_at_once_are_spread_exactly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            names = Names(monkeypatch, there.port, HOSTS)
            (await pool.dial()).close()
            connections = await asyncio.gather(*(pool.dial() for _ in range(30)))
            assert load(pool) == dict.fromkeys(HOSTS, 10)
            for server in there.servers.values():
                await server.peer(9)
            leaving = [each for each in connections if pool._at[each].places[0][0] == HOSTS[1]]
            for each in leaving[:7]:
                each.close()
            assert load(pool) == {HOSTS[0]: 10, HOSTS[1]: 3, HOSTS[2]: 10}
            await asyncio.gather(*(pool.dial() for _ in range(7)))
            assert load(pool) == dict.fromkeys(HOSTS, 10)
            assert names.asked == 1

    run(script())


def test_the_first_burst_is_spread_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            Names(monkeypatch, there.port, HOSTS)
            await asyncio.gather(*(pool.dial() for _ in range(9)))
            assert load(pool) == dict.fromkeys(HOSTS, 3)

    run(script())


def test_an_idle_connection_is_used_where_the_stream_is_to_go(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site(HOSTS[:2]) as there, balanced(there.port) as pool:
            Names(monkeypatch, there.port, HOSTS[:2])
            sink = Recorder()
            first = await pool.dial()
            send(first, sink)
            await finished(there, pool, first, sink)
            assert load(pool) == {HOSTS[0]: 0, HOSTS[1]: 0}
            # The other one's turn, where nothing is idle; then this one's.
            assert pool.take() is None
            second = await pool.dial()
            assert pool.take() is first
            assert first.is_reused
            assert load(pool) == {HOSTS[0]: 1, HOSTS[1]: 1}
            for connection in (first, second):
                connection.close()
            assert (load(pool), pool.idle) == ({HOSTS[0]: 0, HOSTS[1]: 0}, 0)

    run(script())


def test_an_address_that_refuses_is_passed_over_and_asked_again_later(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            Names(monkeypatch, there.port, HOSTS)
            await there.refuse(HOSTS[1])
            await asyncio.gather(*(pool.dial() for _ in range(6)))
            assert load(pool)[HOSTS[1]] == 0
            await asyncio.gather(*(pool.dial() for _ in range(6)))
            assert sorted(load(pool).values()) == [0, 6, 6]
            behind = pool._endpoints.at((HOSTS[1], there.port))
            assert behind is not None
            assert behind.is_behind(asyncio.get_running_loop().time())
            await there.listen(HOSTS[1])
            behind._behind_until = 0.0
            await asyncio.gather(*(pool.dial() for _ in range(6)))
            assert load(pool) == dict.fromkeys(HOSTS, 6)

    run(script())


def test_an_address_that_is_silent_costs_a_moment_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site(HOSTS[:1]) as there, balanced(there.port, connect_s=5) as pool:
            with socket.socket() as silent:
                silent.bind((HOSTS[1], there.port))
                silent.listen(0)
                fillers = [socket.socket() for _ in range(4)]
                for filler in fillers:  # the kernel drops what comes once its queue is full
                    filler.setblocking(False)
                    filler.connect_ex((HOSTS[1], there.port))
                await turns(3)
                Names(monkeypatch, there.port, (HOSTS[1], HOSTS[0]))
                await pool.dial()
                assert load(pool) == {HOSTS[0]: 1, HOSTS[1]: 0}
                await asyncio.gather(*(pool.dial() for _ in range(3)))
                assert load(pool) == {HOSTS[0]: 4, HOSTS[1]: 0}
                for filler in fillers:
                    filler.close()

    run(script())


def test_where_all_refuse_the_name_is_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            names = Names(monkeypatch, there.port, HOSTS[:2])
            (await pool.dial()).close()
            await there.refuse(HOSTS[0])
            await there.refuse(HOSTS[1])
            failure = await raises("upstream_refused", pool.dial())
            assert failure.message == f"upstream llm: cannot connect to llm.test:{there.port}: Connection refused"
            assert (pool.active, names.asked) == (0, 1)
            names.hosts = HOSTS
            await pool.dial()
            assert (load(pool)[HOSTS[2]], names.asked) == (1, 2)

    run(script())


def test_look_ups_add_and_remove(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            names = Names(monkeypatch, there.port, HOSTS[:2])
            idle, idle_sink = await pool.dial(), Recorder()
            send(idle, idle_sink)
            await finished(there, pool, idle, idle_sink)
            others = [await pool.dial(), await pool.dial()]
            running = next(each for each in others if pool._at[each].places[0][0] == HOSTS[0])
            sink = Recorder()
            send(running, sink)
            peer = next(each for each in there.peers(HOSTS[0]) if not each.is_lost)
            names.hosts = HOSTS[1:]
            await pool.look_up()
            await asyncio.gather(*(pool.dial() for _ in range(5)))
            assert load(pool) == {HOSTS[0]: 1, HOSTS[1]: 3, HOSTS[2]: 3}
            peers = there.peers(HOSTS[0])
            asked = await asked_of(peers)
            asked.send(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
            await sink.over()
            assert (sink.body, peer in peers) == (b"ok", True)
            assert pool.idle == 0
            assert load(pool) == {HOSTS[1]: 3, HOSTS[2]: 3}

    run(script())


async def asked_of(peers: list[Peer]) -> Peer:
    while True:
        for peer in peers:
            if b"\r\n\r\n" in peer.data and not peer.is_lost:
                return peer
        await asyncio.sleep(0)


def test_idle_connections_to_an_address_that_is_gone_are_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            names = Names(monkeypatch, there.port, HOSTS[:2])
            sink = Recorder()
            connection = await pool.dial()
            send(connection, sink)
            await finished(there, pool, connection, sink)
            names.hosts = HOSTS[1:]
            await pool.look_up()
            assert (pool.idle, connection.is_closing) == (0, True)
            await there.peers(HOSTS[0])[0].lost()

    run(script())


@pytest.mark.parametrize("answer", [OSError("down"), socket.gaierror(socket.EAI_AGAIN, "again"), ()])
def test_a_look_up_that_fails_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            names = Names(monkeypatch, there.port, HOSTS)
            names.hosts = answer if not isinstance(answer, OSError) else socket.gaierror(socket.EAI_FAIL, "no")
            await raises("upstream_dns", pool.dial())
            names.hosts = HOSTS
            (await pool.dial()).close()
            names.hosts = socket.gaierror(socket.EAI_AGAIN, "again") if answer else ()
            await pool.look_up()
            pool._endpoints.learned_at = float("-inf")  # as after a long pause
            await asyncio.gather(*(pool.dial() for _ in range(3)))
            assert load(pool) == dict.fromkeys(HOSTS, 1)

    run(script())


def test_a_name_in_use_is_looked_up_again_and_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        monkeypatch.setattr("sidecar.upstream.balanced.LOOK_UP_INTERVAL_S", 0.01)
        async with site() as there, balanced(there.port) as pool:
            names = Names(monkeypatch, there.port, HOSTS[:1])
            watching = asyncio.create_task(pool.keep_looked_up())
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert names.asked == 0  # nobody uses it
            (await pool.dial()).close()
            names.hosts = HOSTS
            while len(load(pool)) < 3:
                pool.take()
                await asyncio.sleep(0.001)
            watching.cancel()
            await asyncio.wait([watching])

    run(script())


def test_a_dial_may_be_cancelled_at_any_turn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            Names(monkeypatch, there.port, HOSTS)
            (await pool.dial()).close()
            for count in range(25):
                dialling = asyncio.create_task(pool.dial())
                await turns(count)
                dialling.cancel()
                await asyncio.wait([dialling])
                if not dialling.cancelled():
                    dialling.result().close()
                assert (pool.active, set(load(pool).values())) == (0, {0})

    before = open_files()
    run(script())
    assert open_files() <= before + 1


def test_even_under_come_and_go(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with site() as there, balanced(there.port) as pool:
            Names(monkeypatch, there.port, HOSTS)
            (await pool.dial()).close()
            running: list[Connection] = []
            for _ in range(15):
                running += await asyncio.gather(*(pool.dial() for _ in range(5)))
                counts = Counter(pool._at[each].places[0][0] for each in running)
                assert load(pool) == {host: counts[host] for host in HOSTS}
                assert max(counts.values()) - min(counts[host] for host in HOSTS) <= 1
                for connection in running[:3]:
                    connection.close()
                running = running[3:]
                # Those that left may have left one address ahead; what comes next fills the others first.
                while max(load(pool).values()) - min(load(pool).values()) > 1:
                    running.append(await pool.dial())

    run(script())
