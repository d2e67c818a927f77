"""At the limit of connections nobody is refused or reset: who comes too late waits until others have left."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import accepting
from sidecar.app.accepting import GATE_MOVES, Gate, backlog_warning, waiting
from sidecar.app.app import App
from sidecar.descriptors import RESERVE
from sidecar.gateway import ClientConnection
from sidecar.settings import Connections, ServerTls
from sidecar.simulator import Behaviour, serve
from tests.app_support import ANY_PORT, Client, answering, ask, before, client_of, on_uvloop, plain
from tests.departures import connected, make_certificates, until
from tests.processes import get_json
from tests.test_cli import ANYWHERE, NO_PROXY, Running
from tests.upstream_support import open_files, serving

CLOSING = [("Connection", "close")]


def gate(app: App) -> Gate:
    assert app._server is not None
    return app._server.gate


async def entered(stack: AsyncExitStack, app: App, count: int) -> list[Client]:
    return [await stack.enter_async_context(client_of(app)) for _ in range(count)]


@asynccontextmanager
async def bounded(most: int, **options: Any) -> AsyncIterator[App]:
    """An app that takes so many connections, before an upstream that answers at once."""
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, connections=Connections(most=most), **options) as app,
    ):
        yield app


def age_idle(app: App) -> None:
    """Let every connection that waits for a request have waited for long."""
    for connection in app._protocols.connections:
        assert isinstance(connection, ClientConnection)
        connection.due_at -= 10


def test_every_gate_can_be_shut_and_only_an_open_one_fills() -> None:
    assert set(GATE_MOVES) == set(Gate)
    assert all(accepting.Signal.STOPPED in moves for moves in GATE_MOVES.values())
    assert [gate for gate, moves in GATE_MOVES.items() if accepting.Signal.FILLED in moves] == [Gate.OPEN]


@on_uvloop
async def test_who_comes_too_late_is_served_when_another_has_left() -> None:
    async with (
        serving() as server,
        before(server.address, connections=Connections(most=3)) as app,
        AsyncExitStack() as stack,
    ):
        clients = await entered(stack, app, 3)
        for client in clients:
            await client.send(ask(stream=False))
        peers = [await server.peer(number) for number in range(3)]
        await until(lambda: gate(app) is Gate.FULL)
        async with client_of(app) as late:
            await late.send(ask(stream=False))
            await until(lambda: gate(app) is Gate.CROWDED)
            assert app._protocols.open_count == 3
            await peers[0].request()
            peers[0].send(plain(b"{}"))
            assert (await clients[0].reply()).status == 200
            clients[0].reset()
            await until(lambda: len(server.peers) == 4 or peers[0].data)
            answered = peers[0] if peers[0].data else server.peers[3]
            await answered.request()
            answered.send(plain(b"{}"))
            assert (await late.reply()).status == 200


@on_uvloop
async def test_whoever_is_answered_while_others_wait_leaves() -> None:
    async with bounded(2) as app, AsyncExitStack() as stack:
        first, _ = await entered(stack, app, 2)
        await until(lambda: gate(app) is Gate.FULL)
        async with client_of(app) as late:
            await late.send(ask(stream=False))
            await until(lambda: gate(app) is Gate.CROWDED)
            reply = await first.ask(ask(stream=False))
            assert (reply.status, reply.header("Connection")) == (200, "close")
            assert await first.rest() == b""
            assert (await late.reply()).status == 200


@on_uvloop
async def test_without_anybody_waiting_connections_are_kept() -> None:
    async with bounded(2) as app, AsyncExitStack() as stack:
        for client in await entered(stack, app, 2):
            await until(lambda: app._protocols.open_count > 0)
            for _ in range(3):
                reply = await client.ask(ask(stream=False))
                assert (reply.status, reply.header("Connection")) == (200, None)


@on_uvloop
async def test_the_longest_idle_connection_makes_room() -> None:
    async with bounded(2) as app, AsyncExitStack() as stack:
        older, younger = await entered(stack, app, 2)
        await older.ask(ask(stream=False))
        await younger.ask(ask(stream=False))
        await until(lambda: gate(app) is Gate.FULL)
        age_idle(app)
        async with client_of(app) as late:
            assert (await late.ask(ask(stream=False))).status == 200
            assert await older.rest() == b""
            assert (await younger.ask(ask(stream=False))).status == 200


@on_uvloop
async def test_a_busy_connection_makes_no_room() -> None:
    async with (
        serving() as server,
        before(server.address, connections=Connections(most=1)) as app,
        client_of(app) as client,
        client_of(app) as late,
    ):
        await client.send(ask(stream=False))
        peer = await server.peer()
        await late.send(ask(stream=False))
        await until(lambda: gate(app) is Gate.CROWDED)
        age_idle(app)
        app._protocols.close_idle(10, float("inf"))
        await peer.request()
        peer.send(plain(b"{}"))
        assert (await client.reply()).status == 200


@on_uvloop
async def test_a_crowd_is_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with bounded(1) as app:
        with caplog.at_level(logging.WARNING):
            await asyncio.gather(*(_served(app) for _ in range(20)))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "1 connections are open" in told[0]


async def _served(app: App) -> None:
    async with client_of(app) as client:
        assert (await client.ask(ask(headers=CLOSING, stream=False))).status == 200


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@on_uvloop
async def test_three_hundred_clients_and_room_for_ten(is_tls: bool, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    tls = ServerTls(certificates.certificate, certificates.key) if is_tls else ServerTls()
    most = 0

    async def one(app: App) -> None:
        nonlocal most
        async with connected(app, certificates.client() if is_tls else None) as client:
            reply = await client.ask(ask())
            most = max(most, app._protocols.open_count)
            assert reply.status == 200
            assert reply.is_whole

    upstream = await serve(ANY_PORT, Behaviour())
    async with before(upstream.address, connections=Connections(most=10), tls=tls) as app:
        files = open_files()
        await asyncio.gather(*(one(app) for _ in range(300 if not is_tls else 60)))
        assert most <= 11
        await until(lambda: app._protocols.open_count == 0)
        app.pool("llm").sweep(float("inf"))
        await until(lambda: gate(app) is Gate.OPEN)
        await until(lambda: open_files() <= files + 1)
    await upstream.close()


@on_uvloop
async def test_a_handshake_that_fails_gives_its_place_back(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    tls = ServerTls(certificates.certificate, certificates.key)
    async with bounded(2, tls=tls) as app:
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00"):
            for _ in range(3):
                reader, writer = await asyncio.open_connection("127.0.0.1", app.address.port)
                await until(lambda: app._protocols.open_count == 1)
                writer.write(data)
                await writer.drain()
                writer.close()
                await reader.read()
                await until(lambda: app._protocols.open_count == 0)
        async with connected(app, certificates.client()) as client:
            assert (await client.ask(ask(stream=False))).status == 200
            assert app._protocols.open_count == 1
        await until(lambda: app._protocols.open_count == 0)


@on_uvloop
async def test_a_handshake_that_never_ends_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "TLS_HANDSHAKE_TIMEOUT_S", 0.05)
    certificates = make_certificates(tmp_path)
    async with bounded(9, tls=ServerTls(certificates.certificate, certificates.key)) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.address.port)
        writer.write(b"\x16\x03\x01\x02\x00\x01")
        assert await reader.read() == b""
        writer.close()
        await until(lambda: app._protocols.open_count == 0)


@on_uvloop
async def test_closing_while_it_is_full() -> None:
    async with bounded(1) as app, client_of(app), client_of(app) as late:
        await until(lambda: gate(app) is Gate.CROWDED)
        await app.close()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await late.head()


@on_uvloop
async def test_without_a_descriptor_to_go_on_it_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with bounded(1) as app:
        assert app._server is not None
        async with client_of(app):
            await until(lambda: gate(app) is Gate.FULL)
            with monkeypatch.context() as patch:
                patch.setattr(app._server, "_listener", _Undupable(app._server._listener))
                app._protocols.close_idle(1, float("inf"))
                await until(lambda: "cannot accept" in caplog.text)
                await until(lambda: gate(app) is Gate.FULL)
        app._server.sweep(0.0)
        async with client_of(app) as client:
            assert (await client.ask(ask(stream=False))).status == 200


class _Undupable:
    """A listening socket of which no copy can be made."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.family = listener.family

    def fileno(self) -> int:
        return self._listener.fileno()

    def dup(self) -> socket.socket:
        raise OSError(24, "Too many open files")


def test_the_backlog_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert waiting(listener) == 0
        with socket.create_connection(listener.getsockname()), socket.create_connection(listener.getsockname()):
            assert waiting(listener) == 2
            listener.accept()[0].close()
            assert waiting(listener) == 1


def test_a_short_backlog_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "somaxconn"
    monkeypatch.setattr(accepting, "_BACKLOG_LIMIT", told)
    assert backlog_warning() == ""
    told.write_text("4096\n")
    assert backlog_warning() == ""
    told.write_text("128\n")
    assert "128 clients" in backlog_warning()
    assert "net.core.somaxconn" in backlog_warning()


# With a real limit of descriptors, in a process of its own.


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    command = [sys.executable, "-u", "-m", "sidecar", "simulate", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield Running(process).address
        process.kill()


def limited(files: int, *arguments: str) -> subprocess.Popen[str]:
    """The command, allowed to open so many files."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "sidecar", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, 64), files)),
    )


def test_at_the_descriptor_limit_every_client_is_served_in_the_end(simulator: str) -> None:
    room = 100
    with limited(RESERVE + 2 * room, "run", "--upstream", f"http://{simulator}", *ANYWHERE) as process:
        try:
            proxy = Running(process)
            assert f"up to {room} connections" in proxy.printed
            host, _, port = proxy.address.rpartition(":")
            clients = [socket.create_connection((host, int(port)), 20) for _ in range(300)]
            for client in clients:
                client.sendall(ask(headers=[*CLOSING, ("X-Simulate-First-Token-Delay-Ms", "100")]))
            assert get_json(f"http://{proxy.admin}/streams")["active"] <= room
            with NO_PROXY.open(f"http://{proxy.admin}/metrics", timeout=20) as metrics:
                assert metrics.status == 200
            for client in clients:
                with client:
                    answer = b"".join(iter(lambda client=client: client.recv(65536), b""))  # type: ignore[misc]
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
                assert answer.endswith(b"0\r\n\r\n")
            printed = proxy.stop()
            assert printed.count("others wait") == 1
            assert "Too many open files" not in printed
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("files", "line", "names"),
    [
        (RESERVE + 1, "", ["RLIMIT_NOFILE", "ulimit -n"]),
        (RESERVE + 20, "connections: {most: 11}", ["connections.most", "11", "RLIMIT_NOFILE", "ulimit -n"]),
    ],
)
def test_what_does_not_fit_does_not_start(files: int, line: str, names: list[str], tmp_path: Path) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(f"{line}\nupstreams: {{up: {{url: 'http://127.0.0.1:9'}}}}\nlisten: 127.0.0.1:0\n")
    with limited(files, "run", "--config", str(config), "--admin", "127.0.0.1:0") as process:
        printed, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert all(name in printed for name in names), printed
    assert "Traceback" not in printed
