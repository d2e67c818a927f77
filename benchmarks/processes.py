"""Child processes: started on one core, measured as whole trees, always ended.

Owns starting, waiting and killing, and the reading of CPU time and memory. Must not know what the children do.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.machine import ROOT, BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_START_S: Final = 90.0
_STOP_S: Final = 8.0
_TOLD_OF_LOG: Final = 300
_ENVIRON: Final = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
"""What the machine's own tools are told of telemetry is not to be measured."""


def free_port() -> int:
    """A loopback TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Whatever is started within the block runs on ``core``, its first instruction included."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _start(core: int, command: Sequence[str], log: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with pinned(core), log.open("wb") as output:
        return subprocess.Popen(
            list(command),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**_ENVIRON, **environ},
            cwd=ROOT,
            start_new_session=True,
        )


@contextlib.contextmanager
def running(
    core: int, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process group of its own that lives as long as the block, whatever ends that; its output goes to ``log``."""
    child = _start(core, command, log, environ or {})
    try:
        yield child
    finally:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a child's process group: asked first, then killed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def wait_until_it_answers(
    child: subprocess.Popen[bytes], port: int, log: Path, bearer: str, *, tls: bool = False
) -> None:
    """Return once GET /v1/models is answered 200 through the port, or with ``tls`` once the port is open.

    Raises BenchmarkError where that never happens.
    """
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if child.poll() is not None:
            raise BenchmarkError(f"ended at start with {child.returncode}: {tail(log)}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _answers(port, bearer, tls=tls):
                return
        time.sleep(0.1)
    raise BenchmarkError(f"did not answer within {_START_S:.0f} s: {tail(log)}")


def _answers(port: int, bearer: str, *, tls: bool) -> bool:
    if tls:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {bearer}"})
        return connection.getresponse().status == 200
    finally:
        connection.close()


def tail(log: Path) -> str:
    """The end of a child's output, on one line."""
    try:
        return " ".join(log.read_text(errors="replace").split())[-_TOLD_OF_LOG:] or "no output"
    except OSError:
        return "no output"


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its descendants, every thread, as the scheduler counted it."""
    total_ns = 0
    for member in _tree(pid):
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{member}/task").iterdir():
                total_ns += int((thread / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants."""
    total = 0
    for member in _tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    total += int(line.split()[1]) * 1024
    return total


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(name))
    members = [pid]
    for member in members:
        members += children.get(member, [])
    return members
