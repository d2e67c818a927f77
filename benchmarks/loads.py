"""One load on one proxy: start upstream and proxy, warm up, load, and read what it cost.

Owns the loads and the sequence of a measurement. Must not know how samples are compared.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from benchmarks.machine import BenchmarkError, load_core, proxy_core
from benchmarks.processes import (
    cpu_seconds,
    free_port,
    pinned,
    resident_bytes,
    running,
    tail,
    wait_until_it_answers,
)
from benchmarks.proxies import BEARER, Ports
from benchmarks.telemetry import check_delivered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.proxies import Proxy

_MEMORY_READ_AT: Final = 0.8
_GRACE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """Streams of ``tokens``, one each ``interval_us`` (0: as fast as they go) after ``first_token_us``, over
    ``connections``, for ``seconds`` or until ``streams`` have ended (0: no such end). The first requests are spread
    over ``spread_s``, or as `stagger_ms` says."""

    name: str
    title: str
    tokens: int
    interval_us: int
    first_token_us: int
    connections: int
    seconds: float
    streams: int = 0
    spread_s: float = 0.0

    @property
    def stagger_ms(self) -> float:
        """How long the first requests are spread, where it is not set: one stream's length, at most half the time."""
        if self.spread_s:
            return self.spread_s * 1e3
        one_stream_ms = (self.first_token_us + self.tokens * self.interval_us) / 1e3
        return 0.0 if self.connections == 1 else min(one_stream_ms, self.seconds * 500)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run gave. Microseconds and kilobytes; ``added_us`` is the time to the first token beyond the upstream's
    own delay. CPU and memory are those of the proxy's whole process tree."""

    cpu_us_per_token: float
    tokens_per_s: float
    streams_per_s: float
    token_p50_us: float
    token_p99_us: float
    token_p999_us: float
    added_p50_us: float
    added_p99_us: float
    rss_kb_per_stream: float
    failed: int

    @classmethod
    def of(cls, load: Load, told: dict[str, Any], cpu_s: float, grown_bytes: int) -> Sample:
        """From what the load program told. Raises BenchmarkError where nothing came through."""
        if not told["tokens"]:
            raise BenchmarkError(f"not one token came through ({told['failed']} requests failed)")
        return cls(
            cpu_us_per_token=cpu_s * 1e6 / told["tokens"],
            tokens_per_s=told["tokens"] / told["seconds"],
            streams_per_s=told["streams"] / told["seconds"],
            token_p50_us=told["token_us"]["p50"],
            token_p99_us=told["token_us"]["p99"],
            token_p999_us=told["token_us"]["p999"],
            added_p50_us=told["first_token_us"]["p50"] - load.first_token_us,
            added_p99_us=told["first_token_us"]["p99"] - load.first_token_us,
            rss_kb_per_stream=grown_bytes / load.connections / 1e3,
            failed=told["failed"],
        )


PACED: Final = Load("paced", "200 streams at 50 tokens/s", 100, 20_000, 50_000, 200, 10.0)
SHORT: Final = Load("short", "8-token streams as fast as they go, 32 connections", 8, 0, 0, 32, 6.0)
IDLE: Final = Load("idle", "3,000 streams at 1 token/s", 60, 1_000_000, 0, 3000, 20.0)
LONG: Final = Load("long", "one stream of 100,000 tokens", 100_000, 100, 0, 1, 120.0, 1)
LONG_PARTS: Final = Load("parts", "100 streams of 1,000 tokens", 1_000, 100, 0, 1, 120.0, 100)

CONNECTIONS: Final = Load("connections", "5,000 streams at 1 token/s", 60, 1_000_000, 0, 5000, 75.0, spread_s=10.0)
"""All of them are open for a minute and more; each ends whole within it, and is followed by another."""

TELEMETRY: Final = replace(PACED, name="telemetry", title=f"Telemetry on and off, {PACED.title}")
SPANS: Final = Load("spans", "Telemetry on and off, 250 streams a second: 500 spans/s", 20, 20_000, 50_000, 118, 10.0)
"""A stream takes 50 ms to its first token and 380 ms more to its last; the run's beginning and end have fewer."""

LOADS: Final = (PACED, SHORT, IDLE)
TELEMETRY_LOADS: Final = (TELEMETRY, SPANS)


def quick(load: Load) -> Load:
    """A load of the same kind that only shows that everything works."""
    smaller = {
        "paced": (100, 50, 3.0),
        "telemetry": (100, 50, 3.0),
        "spans": (20, 20, 3.0),
        "short": (8, 32, 1.5),
        "idle": (60, 300, 4.0),
        "connections": (3, 500, 5.0),
        "long": (10_000, 1, 30.0),
    }
    tokens, connections, seconds = smaller.get(load.name, (load.tokens, load.connections, 30.0))
    spread_s = min(load.spread_s, 1.0)
    few = min(load.streams, 10)
    return replace(load, tokens=tokens, connections=connections, seconds=seconds, streams=few, spread_s=spread_s)


def measure(proxy: Proxy, load: Load, programs: Path, folder: Path) -> Sample:
    """One run of ``load`` through ``proxy``, everything started fresh. Raises BenchmarkError when it cannot be had."""
    options = (str(load.tokens), str(load.interval_us), str(load.first_token_us))
    with contextlib.ExitStack() as others:
        upstream_port = others.enter_context(native("upstream", options, programs, folder))
        if proxy.program is None:
            return _loaded(load, None, upstream_port, (), programs)
        collector_port = others.enter_context(native("collector", (), programs, folder)) if proxy.exports else 0
        ports = Ports(free_port(), upstream_port, free_port(), collector_port)
        launch = proxy.launch(proxy.find() or proxy.program, ports, folder)
        log = folder / f"{proxy.name}.log"
        with running(proxy_core(), launch.command, log, launch.environ) as child:
            wait_until_it_answers(child, ports.listen, log, BEARER)
            sample = _loaded(load, child.pid, ports.listen, proxy.headers, programs)
            if proxy.exports:
                check_delivered(ports.spare)
            return sample


@contextlib.contextmanager
def native(name: str, options: tuple[str, ...], programs: Path, folder: Path) -> Iterator[int]:
    """One of our own servers, on the load's core; gives its port."""
    log = folder / f"{name}.log"
    with running(load_core(), [str(programs / name), *options], log):
        yield _told_port(name, log)


def _told_port(name: str, log: Path) -> int:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        words = log.read_text().split()
        if words[:1] == ["port"] and len(words) == 2:
            return int(words[1])
        time.sleep(0.01)
    raise BenchmarkError(f"the {name} did not start: {tail(log)}")


def _loaded(load: Load, pid: int | None, port: int, headers: tuple[str, ...], programs: Path) -> Sample:
    warm_up = replace(load, connections=min(load.connections, 32), seconds=min(load.seconds, 2.0), streams=0)
    _run(warm_up, port, headers, programs)
    if pid is None:
        return Sample.of(load, _run(load, port, headers, programs), 0.0, 0)
    cpu_before, rss_before = cpu_seconds(pid), resident_bytes(pid)
    grown: list[int] = []
    told = _run(load, port, headers, programs, lambda: grown.append(resident_bytes(pid) - rss_before))
    return Sample.of(load, told, cpu_seconds(pid) - cpu_before, grown[0])


def _run(
    load: Load,
    port: int,
    headers: tuple[str, ...],
    programs: Path,
    late_in_it: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run the load program to its end and give what it told; ``late_in_it`` is called when most of the time is over."""
    authorization = f"Authorization: Bearer {BEARER}"
    options = (port, load.connections, load.seconds, load.stagger_ms, load.streams, authorization, *headers)
    command = [str(programs / "load"), *map(str, options)]
    with pinned(load_core()):
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(load.seconds * _MEMORY_READ_AT)
        late_in_it()
        out, err = program.communicate(timeout=load.seconds + _GRACE_S)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError("the load did not end") from error
    finally:
        program.kill()
        program.wait()
    if program.returncode:
        raise BenchmarkError(err.strip()[-200:] or f"the load ended with {program.returncode}")
    told: dict[str, Any] = json.loads(out)
    return told
