"""A real `sidecar run --workers N` and its simulator, for the tests that end, kill and question workers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.app_support import ask
from tests.processes import until

DEADLINE_S = 30.0
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
READY = re.compile(r"worker (\d+) is ready, process (\d+)")


class Sidecar:
    """A running command, its log in a file, so that nobody has to read it for it to go on."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.address = self.admin = ""

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def says(self, pattern: str, times: int = 1) -> list[Any]:
        """What was printed and fits, once it is there so often."""
        until(
            lambda: len(re.findall(pattern, self.printed)) >= times or self.process.poll() is not None,
            f"{pattern!r} of {self.printed}",
            DEADLINE_S,
        )
        found = re.findall(pattern, self.printed)
        assert len(found) >= times, self.printed
        return found

    def workers(self, generations: int) -> dict[int, int]:
        """The process of each worker, once so many in all have become ready."""
        self.says(READY.pattern, generations)
        return {int(number): int(pid) for number, pid in READY.findall(self.printed)}

    def get(self, path: str, accept: str = "") -> tuple[int, str]:
        """Status and body of the admin port's answer."""
        request = urllib.request.Request(f"http://{self.admin}{path}", headers={"Accept": accept} if accept else {})
        try:
            with NO_PROXY.open(request, timeout=DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def streams(self) -> Any:
        return json.loads(self.get("/streams")[1])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def connect(self) -> socket.socket:
        if self.address.startswith("unix://"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(DEADLINE_S)
            connection.connect(self.address.removeprefix("unix://"))
            return connection
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), DEADLINE_S)


@contextmanager
def running(
    log: Path, *arguments: str, environ: Mapping[str, str] | None = None, listening: bool = True
) -> Iterator[Sidecar]:
    """A command of its own process group, of which nothing is left at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    sidecar = Sidecar(process, log)
    try:
        if listening:
            ((address, admin),) = sidecar.says(r"listening on (?:http://)?([^\s,]+)(?:, admin on (\S+))?")
            sidecar.address, sidecar.admin = address, admin
        yield sidecar
    finally:
        process.kill()
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)  # who was stopped has to go, too
        left = group(process.pid)
        until(lambda: not group(process.pid), f"the end of {left}", DEADLINE_S)


def group(leader: int) -> list[int]:
    """The processes of a group that are not dead."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == leader and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


@contextmanager
def crew(
    folder: Path, *arguments: str, workers: int = 2, tokens: int = 100_000, interval_ms: int = 5
) -> Iterator[Sidecar]:
    """``workers`` before a simulator whose streams hardly end."""
    pace = ["--tokens", str(tokens), "--interval-ms", str(interval_ms)]
    with running(folder / "simulator.log", "simulate", "--listen", "127.0.0.1:0", *pace) as simulator:
        ports = (
            ["--admin", "127.0.0.1:0"]
            if "--listen" in arguments
            else ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        )
        source = [] if "--config" in arguments else ["--upstream", f"http://{simulator.address}"]
        number = ["--workers", str(workers)]
        with running(folder / "sidecar.log", "run", *source, *number, *ports, *arguments) as sidecar:
            sidecar.workers(workers)
            yield sidecar


class Stream:
    """A client's end of one stream, or of one that it could not get."""

    def __init__(self, sidecar: Sidecar, headers: list[tuple[str, str]] | None = None) -> None:
        self.connection = sidecar.connect()
        self.got = b""
        self.connection.sendall(ask(headers=headers or []))

    def until(self, mark: bytes) -> None:
        while mark not in self.got:
            piece = self.connection.recv(65536)
            assert piece, self.got
            self.got += piece

    def rest(self) -> bytes:
        """Everything until the other side ends it, however it does."""
        try:
            while piece := self.connection.recv(65536):
                self.got += piece
        except ConnectionResetError:
            pass
        self.connection.close()
        return self.got
