"""Requests that all arrive at once: how many of them are served, and how soon the others are told that they are not.

Owns the order of bursts and what is counted of each. Must not know how a burst is made, nor how tables are written.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

from benchmarks.loads import native
from benchmarks.machine import BenchmarkError, load_core, proxy_core
from benchmarks.processes import free_port, pinned, running, wait_until_it_answers
from benchmarks.proxies import BEARER, Launch, Ports, sidecar_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OURS: Final = "native"
BARE: Final = "bare aiohttp"
MOST_TIMES_BARE: Final = 1.5
MOST_MS_FROM_HEAD: Final = 50.0
_UPSTREAM: Final = ("60", "1000000", "1000000")
"""One token a second, so that whoever is served stays for as long as the burst lasts."""

_HOLD_S: Final = 1.5
_RUN_S: Final = 30.0
_EMPTY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Size:
    """``requests`` at once against a limit of ``limit`` streams."""

    requests: int = 2000
    limit: int = 1000


FULL: Final = Size()
QUICK: Final = Size(400, 200)


@dataclass(frozen=True, slots=True)
class Burst:
    """What came of one burst. ``over_ms`` is when the last refusal reached its client, from the burst's beginning;
    ``from_head_ms`` the longest from a refused request's head to the answer, None for a server that does not tell."""

    served: int
    refused: int
    lost: int
    over_ms: float
    from_head_ms: float | None = None

    @classmethod
    def of(cls, told: dict[str, Any], from_head_ms: float | None = None) -> Burst:
        """From what the burst program told."""
        served, refused = told["served"], told["refused"]
        lost = told["lost"] + told["broken_off"] + told["answered"] - served["count"] - refused["count"]
        return cls(served["count"], refused["count"], lost, refused["over_ms"], from_head_ms)


@dataclass(slots=True)
class Bursts:
    """All bursts of a run, by server, in rounds."""

    size: Size = FULL
    taken: dict[str, list[Burst]] = field(default_factory=lambda: {OURS: [], BARE: []})
    reason: str = ""
    """Why there are none, or no more."""

    @property
    def ratios(self) -> list[float]:
        """The last refusal's time, ours over the bare server's, round by round."""
        return [ours.over_ms / bare.over_ms for ours, bare in zip(*self.taken.values(), strict=False) if bare.over_ms]


def burst_settings(ports: Ports, limit: int) -> dict[str, object]:
    """The sidecar with a limit, and lines that tell how long each request took."""
    return {**sidecar_settings(ports, None), "max_streams": limit, "logs": {"format": "json"}}


def measure_bursts(size: Size, rounds: int, programs: Path, folder: Path, told: Callable[[str], None]) -> Bursts:
    """Both servers alive on the proxy's core, a burst on each in turn, after one that is not counted."""
    bursts = Bursts(size)
    try:
        with _sidecar(size, programs, folder) as ours, _bare(folder) as bare_port:
            ours.burst(size, programs)
            _run(bare_port, size, programs)
            for number in range(rounds):
                bursts.taken[OURS].append(ours.burst(size, programs))
                bursts.taken[BARE].append(Burst.of(_run(bare_port, size, programs)))
                told(f"round {number + 1}: {bursts.taken[OURS][-1]} beside {bursts.taken[BARE][-1].over_ms:.0f} ms")
    except (BenchmarkError, OSError) as error:
        bursts.reason = str(error)
        told(f"bursts: {error}")
    return bursts


@dataclass(frozen=True, slots=True)
class _Sidecar:
    """One that runs: its ports, and the log in which it tells of every request."""

    ports: Ports
    log: Path

    def burst(self, size: Size, programs: Path) -> Burst:
        """One burst, and then nothing may be left of it. Raises BenchmarkError where something is."""
        start = self.log.stat().st_size
        told = _run(self.ports.listen, size, programs)
        self._wait_until_empty()
        slowest_s = max(
            (line["duration_s"] for line in self._lines(start) if line["outcome"] == "refused"), default=0.0
        )
        return Burst.of(told, slowest_s * 1e3)

    def _wait_until_empty(self) -> None:
        end = time.monotonic() + _EMPTY_S
        while True:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.spare}/streams", timeout=5) as answer:
                left = len(json.load(answer)["streams"])
            if not left:
                return
            if time.monotonic() > end:
                raise BenchmarkError(f"{left} streams are left of a burst whose clients have all gone")
            time.sleep(0.05)

    def _lines(self, start: int) -> Iterator[dict[str, Any]]:
        with self.log.open() as lines:
            lines.seek(start)
            for line in lines:
                with contextlib.suppress(ValueError):
                    if "duration_s" in (said := json.loads(line)):
                        yield said


@contextlib.contextmanager
def _sidecar(size: Size, programs: Path, folder: Path) -> Iterator[_Sidecar]:
    with native("upstream", _UPSTREAM, programs, folder) as upstream_port:
        ports = Ports(free_port(), upstream_port, free_port())
        config, log = folder / "burst.yaml", folder / "burst.log"
        config.write_text(yaml.safe_dump(burst_settings(ports, size.limit)))
        launch = Launch((sys.executable, "-m", "sidecar", "run", "--config", str(config)))
        with running(proxy_core(), launch.command, log) as child:
            wait_until_it_answers(child, ports.listen, log, BEARER)
            yield _Sidecar(ports, log)


@contextlib.contextmanager
def _bare(folder: Path) -> Iterator[int]:
    port, log = free_port(), folder / "bare.log"
    with running(proxy_core(), (sys.executable, "-m", "benchmarks.bare", str(port)), log) as child:
        wait_until_it_answers(child, port, log, BEARER)
        yield port


def _run(port: int, size: Size, programs: Path) -> dict[str, Any]:
    options = (port, size.requests, _HOLD_S, f"Authorization: Bearer {BEARER}")
    with pinned(load_core()):
        made = subprocess.run(
            [str(programs / "burst"), *map(str, options)], capture_output=True, text=True, timeout=_RUN_S, check=False
        )
    if made.returncode:
        raise BenchmarkError(made.stderr.strip()[-200:] or f"the burst ended with {made.returncode}")
    told: dict[str, Any] = json.loads(made.stdout)
    return told
