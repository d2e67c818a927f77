"""A kubelet as far as a Pod's end goes, a real `sidecar run`, and an upstream that remembers every byte it sent.

Owns the order in which a Pod's containers are stopped. Must not know what a sidecar does about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from sidecar.settings import Address
from tests.app_support import LAST_CHUNK, SSE_HEAD, Client, Reply, chunk, openai_frames, request

TEST_TIMEOUT_S = 60.0
FLOOR_S = 2.0
"""What a container has between SIGTERM and SIGKILL, however much of the grace period is left."""

FRAME_INTERVAL_S = 0.01
ON_FREE_PORTS = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n"


def in_a_pod(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test that starts processes."""

    @functools.wraps(test)
    def sync(*args: Any, **fixtures: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TEST_TIMEOUT_S):
                await test(*args, **fixtures)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    return sync


@dataclass
class Container:
    """What the kubelet knows of one: how it is told to stop and killed, when it has ended, and its preStop hook."""

    stop: Callable[[], None]
    kill: Callable[[], None]
    ended: Callable[[], Awaitable[object]]
    hook: Callable[[], Awaitable[object]] | None = None
    was_killed: bool = False


async def end_pod(mains: list[Container], sidecars: list[Container], grace_s: float) -> None:
    """Every preStop at once; SIGTERM for the main containers; for sidecars when those have ended, last one first;
    SIGKILL for what is left at the end of the grace period, or of its floor."""
    deadline = asyncio.get_running_loop().time() + grace_s
    mains_are_gone = asyncio.Event()

    async def main() -> None:
        await asyncio.gather(*(_end(each, deadline, None) for each in mains))
        mains_are_gone.set()

    async def rest() -> None:
        after: asyncio.Event = mains_are_gone
        endings = []
        for each in reversed(sidecars):
            gone = asyncio.Event()
            endings.append(_end(each, deadline, after, gone))
            after = gone
        await asyncio.gather(*endings)

    await asyncio.gather(main(), rest())


async def _end(
    each: Container, deadline: float, after: asyncio.Event | None, gone: asyncio.Event | None = None
) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            if each.hook is not None:
                await each.hook()
            if after is not None:
                await after.wait()
    each.stop()
    try:
        async with asyncio.timeout(max(FLOOR_S, deadline - loop.time())):
            await each.ended()
    except TimeoutError:
        each.was_killed = True
        each.kill()
        await each.ended()
    if gone is not None:
        gone.set()


class Sidecar:
    """A `sidecar run` of its own process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""
        self.address = self.admin = Address()
        self._more = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.log += line.decode()
            self._more.set()
        self._more.set()

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait until its log has this."""
        while (found := re.search(pattern, self.log)) is None:
            assert not self._reading.done(), self.log
            self._more.clear()
            await self._more.wait()
        return found

    async def listening(self) -> None:
        """Wait until it listens, and learn where."""
        found = await self.says(r"listening on [\d.]+:(\d+), admin on [\d.]+:(\d+)")
        self.address, self.admin = (Address("127.0.0.1", int(port)) for port in found.groups())

    async def ended(self) -> int:
        code = await self.process.wait()
        await self._reading
        return code

    def container(self, *, hooked: bool = True) -> Container:
        return Container(self.process.terminate, self.process.kill, self.ended, self.drain if hooked else None)

    async def drain(self) -> Reply:
        """What the kubelet asks for a preStop of ``httpGet: {path: /drain, port: 9090}``."""
        return await self.ask_admin("/drain")

    async def ask_admin(self, path: str) -> Reply:
        return await asked_at(self.admin, request("GET", path, headers=[("Connection", "close")]))


@asynccontextmanager
async def client_at(address: Address) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def asked_at(address: Address, data: bytes) -> Reply:
    async with client_at(address) as client:
        return await client.ask(data)


@asynccontextmanager
async def sidecar_run(*arguments: str) -> AsyncIterator[Sidecar]:
    """`sidecar run` with these arguments, once it listens."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "run", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Sidecar(process)
    try:
        await running.listening()
        yield running
        assert "Traceback" not in running.log
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await running.ended()


@asynccontextmanager
async def sidecar(config: Path, text: str) -> AsyncIterator[Sidecar]:
    """`sidecar run` with this configuration, in which ports are free ones."""
    config.write_text(f"{ON_FREE_PORTS}{text}")
    async with sidecar_run("--config", str(config)) as running:
        yield running


@dataclass
class Model:
    """A model server: a stream of so many frames for each request, told apart by their number. ``sent`` are the bodies
    of its streams as it has sent them."""

    frames: int
    name: str = ""
    address: Address = field(default_factory=Address)
    sent: list[bytes] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await self._stream(writer)
        self._writers.discard(writer)
        writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        number = len(self.sent)
        self.sent.append(b"")
        writer.write(SSE_HEAD)
        texts = [f"{self.name} stream {number} frame {count};" for count in range(self.frames)]
        for frame in openai_frames(*texts):
            if writer.transport.is_closing():
                return
            writer.write(chunk(frame))
            self.sent[number] += frame
            await asyncio.sleep(FRAME_INTERVAL_S)
        writer.write(LAST_CHUNK)

    def stop(self) -> None:
        """SIGTERM, as vLLM takes it: every stream is broken off."""
        for writer in self._writers:
            writer.transport.abort()
        self._gone.set()

    def container(self, hook: Callable[[], Awaitable[object]] | None) -> Container:
        return Container(self.stop, self.stop, self._gone.wait, hook)


class ConfigMap:
    """A mounted ConfigMap, changed as the kubelet does: a new folder, and a rename of the symlink in the middle."""

    def __init__(self, folder: Path, text: str) -> None:
        self._folder = folder
        self._version = 0
        folder.mkdir()
        self.update(text)
        self.file = folder / "sidecar.yaml"
        self.file.symlink_to("..data/sidecar.yaml")

    def update(self, text: str) -> None:
        """Another content."""
        self._version += 1
        version = self._folder / f"..2026_11_24_20_00_{self._version:02}.123456789"
        version.mkdir()
        (version / "sidecar.yaml").write_text(text)
        fresh = self._folder / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.rename(self._folder / "..data")
        for old in self._folder.glob("..2026*"):
            if old != version:
                (old / "sidecar.yaml").unlink()
                old.rmdir()


@asynccontextmanager
async def model(frames: int, name: str = "") -> AsyncIterator[Model]:
    serving = Model(frames, name)
    server = await asyncio.start_server(serving.serve, "127.0.0.1", 0)
    serving.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield serving
    finally:
        server.close()
        serving.stop()
