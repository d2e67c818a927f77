"""A hundred clients that stop reading a 50 MB stream: what a sidecar in a process of its own really holds."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.settings import Address
from sidecar.simulator import Behaviour, SimulatorServer, serve
from tests.app_support import ANY_PORT, ask, on_uvloop
from tests.departures import until

CLIENTS = 100
BUFFER = 256 * 1024
ONE_FRAME = 1024
"""More than any frame of these streams takes, in either format."""

RSS_PER_CLIENT = 512 * 1024
SENT_PER_CLIENT = 5 * 1024 * 1024
"""What the upstream can be rid of: our buffer, and both kernels' (the sender's grows to some 4 MiB by itself)."""

RECEIVE_BUFFER = 16 * 1024


@dataclass
class Sidecar:
    """The running command."""

    address: tuple[str, int]
    admin: tuple[str, int]
    pid: int

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    async def streams(self) -> list[dict[str, Any]]:
        """What the admin port says is running."""

        def ask_admin() -> Any:
            host, port = self.admin
            with urllib.request.urlopen(f"http://{host}:{port}/streams", timeout=5) as answer:
                return json.load(answer)["streams"]

        found: list[dict[str, Any]] = await asyncio.to_thread(ask_admin)
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def sidecar_before(upstream: Address, policy: str, folder: Path) -> AsyncIterator[Sidecar]:
    """`sidecar run`, ended as a service manager would end it."""
    traffic, admin = free_port(), free_port()
    configuration = folder / "sidecar.yaml"
    configuration.write_text(
        f"listen: 127.0.0.1:{traffic}\nadmin: 127.0.0.1:{admin}\n"
        f"upstreams:\n  llm:\n    url: http://{upstream}\n"
        f"routes:\n  - name: all\n    upstreams: [llm]\n"
        f"    limits: {{buffer: {BUFFER // 1024}KiB, on_slow_client: {policy}, stall_timeout: 60s}}\n"
    )
    # Not the loop's own subprocess: uvloop now and then fails to close a loop that had one.
    command = [sys.executable, "-m", "sidecar", "run", "--config", str(configuration)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            while b"listening on" not in (line := await asyncio.to_thread(process.stderr.readline)):
                assert line, "it ended instead of listening"
            yield Sidecar(("127.0.0.1", traffic), ("127.0.0.1", admin), process.pid)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 8)
    assert process.returncode == 0


@contextmanager
def unread_clients(sidecar: Sidecar, count: int) -> Iterator[list[socket.socket]]:
    """Clients that have asked, and never read."""
    with ExitStack() as open_sockets:
        clients = []
        for _ in range(count):
            client = open_sockets.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            client.settimeout(5)
            client.connect(sidecar.address)
            client.sendall(ask())
            clients.append(client)
        yield clients


async def settled_total(upstream: SimulatorServer) -> int:
    """What the upstream has sent once it sends no more."""
    last, same = -1, 0
    while same < 10:
        await asyncio.sleep(0.05)
        same = same + 1 if upstream.bytes_sent == last else 0
        last = upstream.bytes_sent
    return last


def read_to_end(client: socket.socket) -> bytes:
    """Whatever still comes; a reset is an end too."""
    parts = []
    try:
        while part := client.recv(1 << 20):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


async def warmed_up(sidecar: Sidecar) -> int:
    """Its memory once it has served a few streams and knows its way."""
    with unread_clients(sidecar, 3) as clients:
        for client in clients:
            await asyncio.to_thread(client.recv, 1)
    while await sidecar.streams():
        await asyncio.sleep(0)
    return sidecar.rss_bytes()


@on_uvloop
async def test_pause_bounds_everything(tmp_path: Path) -> None:
    upstream = await serve(ANY_PORT, Behaviour(repeat_mib=50))
    async with sidecar_before(upstream.address, "pause", tmp_path) as sidecar:
        rss_before, sent_before = await warmed_up(sidecar), upstream.bytes_sent
        with unread_clients(sidecar, CLIENTS):
            await until(lambda: upstream.open_exchanges == CLIENTS)
            sent = await settled_total(upstream) - sent_before
            streams = await sidecar.streams()
            grown = sidecar.rss_bytes() - rss_before
            assert len(streams) == CLIENTS
            assert max(stream["bytes_buffered"] for stream in streams) <= BUFFER + ONE_FRAME
            assert max(stream["lag_bytes"] for stream in streams) <= BUFFER + ONE_FRAME
            assert min(stream["lag_bytes"] for stream in streams) > 0
            assert grown / CLIENTS < RSS_PER_CLIENT
            assert sent / CLIENTS < SENT_PER_CLIENT
        await until(lambda: upstream.open_connections == 0)
    await upstream.close()


@on_uvloop
async def test_evict_lets_them_all_go(tmp_path: Path) -> None:
    upstream = await serve(ANY_PORT, Behaviour(repeat_mib=50))
    async with sidecar_before(upstream.address, "evict", tmp_path) as sidecar:
        rss_before = await warmed_up(sidecar)
        cancelled_before = upstream.cancelled
        with unread_clients(sidecar, CLIENTS) as clients:
            seen = []
            while upstream.cancelled < cancelled_before + CLIENTS:
                seen += [stream["bytes_buffered"] for stream in await sidecar.streams()]
            assert max(seen, default=0) <= BUFFER + ONE_FRAME
            assert (sidecar.rss_bytes() - rss_before) / CLIENTS < RSS_PER_CLIENT
            assert await sidecar.streams() == []
            assert upstream.open_connections == 0
            for client in clients:
                got = await asyncio.to_thread(read_to_end, client)
                assert not got.endswith(b"0\r\n\r\n")
                assert b"[DONE]" not in got
    await upstream.close()
