"""Twenty thousand streams while the collector refuses connections: what a sidecar in a process of its own holds."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sidecar.simulator import Behaviour, serve
from tests.app_support import ANY_PORT, ask, on_uvloop
from tests.processes import free_port, until

HALF = 10_000
CONNECTIONS = 16
GROWN_BYTES = 5 * 1024 * 1024
ANSWER_S = 30
MAX_BATCH = 128
"""How many are on their way, neither waiting nor given up."""
LAST_CHUNK = b"\r\n0\r\n\r\n"

DROPPED = r'^llm_sidecar_telemetry_dropped_total\{.*signal="traces".*\} (\S+)$'
QUEUED = r'^llm_sidecar_telemetry_queue\{.*signal="traces".*\} (\S+)$'
ENDED = r'^llm_sidecar_streams_ended_total\{.*outcome="completed".*\} (\S+)$'


@dataclass
class Sidecar:
    """The running command, and what its admin port shows."""

    port: int
    admin_port: int
    pid: int
    log: Path

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def metric(self, pattern: str) -> float:
        """The sum of all series that fit."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=ANSWER_S) as answer:
            return sum(map(float, re.findall(pattern, answer.read().decode(), re.MULTILINE)))


@contextmanager
def sidecar_before(upstream: str, collector_port: int, folder: Path) -> Iterator[Sidecar]:
    """`sidecar run` with everything of telemetry on, ended as a service manager would end it."""
    port, admin_port = free_port(), free_port()
    configuration, log = folder / "sidecar.yaml", folder / "lines.log"
    configuration.write_text(
        f"listen: 127.0.0.1:{port}\nadmin: 127.0.0.1:{admin_port}\n"
        f"upstreams:\n  llm:\n    url: http://{upstream}\n"
        f"routes:\n  - name: all\n    upstreams: [llm]\n"
        f"telemetry: {{otlp: 'http://127.0.0.1:{collector_port}', sample: 1.0}}\nlogs: {{format: json}}\n"
    )
    command = [sys.executable, "-m", "sidecar", "run", "--config", str(configuration)]
    with log.open("wb") as output, subprocess.Popen(command, stderr=output, env=_environ()) as process:
        try:
            until(lambda: process.poll() is not None or "listening on" in log.read_text(), "listening")
            yield Sidecar(port, admin_port, process.pid, log)
        finally:
            process.terminate()
            process.wait(ANSWER_S)
    assert process.returncode == 0, log.read_text()[-2000:]


def _environ() -> Mapping[str, str]:
    """Nothing of the tests' own telemetry; metrics every second, or they would not be sent once."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**own, "OTEL_METRIC_EXPORT_INTERVAL": "1000"}


async def run_streams(sidecar: Sidecar, count: int) -> None:
    """So many whole streams, one after the other on each connection."""
    question = ask()

    async def share() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        for _ in range(count // CONNECTIONS):
            writer.write(question)
            answer = await reader.readuntil(LAST_CHUNK)
            assert answer.startswith(b"HTTP/1.1 200 ")
        writer.close()

    async with asyncio.timeout(60):
        await asyncio.gather(*(share() for _ in range(CONNECTIONS)))


@on_uvloop
async def test_a_collector_that_refuses_costs_no_memory(tmp_path: Path) -> None:
    upstream = await serve(ANY_PORT, Behaviour(tokens=2))
    try:
        with sidecar_before(str(upstream.address), free_port(), tmp_path) as sidecar:
            await run_streams(sidecar, HALF)
            after_first = await asyncio.to_thread(sidecar.rss_bytes)
            await run_streams(sidecar, HALF)
            grown = await asyncio.to_thread(sidecar.rss_bytes) - after_first
            ended, dropped, queued = [
                await asyncio.to_thread(sidecar.metric, pattern) for pattern in (ENDED, DROPPED, QUEUED)
            ]
    finally:
        await upstream.close()  # with it open, a loop of uvloop's does not close, and no failure would be told
    assert ended == 2 * HALF
    assert grown < GROWN_BYTES, f"{grown} bytes on top of {after_first}"
    assert dropped > 0
    assert 2 * HALF - MAX_BATCH <= dropped + queued <= 2 * HALF
