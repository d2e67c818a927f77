"""From a client's leaving to the upstream's connection closing: by proxy, phase and way of leaving.

Owns the schedule of departures and what is made of their latencies. Must not know sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import ssl
import statistics
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final, get_args

import uvloop

from benchmarks.departures import Client, Departure, Phase, Upstream, Way
from benchmarks.machine import BenchmarkError, load_core, proxy_core
from benchmarks.processes import free_port, running, wait_until_it_answers
from benchmarks.proxies import BEARER, OURS, Ports, sidecar_launch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.proxies import Certificate, Launch, Proxy

PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
WAYS: Final[tuple[Way, ...]] = get_args(Way)
STREAMS: Final = 200
"""Streams open at once in each phase."""

_BETWEEN_DEPARTURES_S: Final = 0.007
_REACH_PHASE_S: Final = 15.0
_SETTLE_S: Final = 0.3
_NEVER_AFTER_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Cell:
    """Departures of one phase and way. Milliseconds; None where not one was noticed."""

    median_ms: float | None
    worst_ms: float | None
    noticed: int
    left: int

    @classmethod
    def of(cls, departures: Sequence[Departure]) -> Cell:
        """What the departures say that have happened."""
        latencies = [each.latency_ms for each in departures if each.latency_ms is not None]
        left = sum(1 for each in departures if each.left_at)
        if not latencies:
            return cls(None, None, 0, left)
        return cls(statistics.median(latencies), max(latencies), len(latencies), left)


Row = dict[tuple[Phase, Way], Cell]


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is left: ``launch`` gives the command, None is no proxy at all; ``tls`` is spoken on both sides."""

    name: str
    launch: Callable[[Ports, Path], Launch] | None
    headers: tuple[str, ...] = ()
    tls: Certificate | None = None


def subjects(proxies: Sequence[Proxy], certificate: Certificate | None) -> list[Subject]:
    """Each proxy over plain TCP; ours, and no proxy, over TLS too."""
    found = []
    for proxy in proxies:
        if proxy.program is None:
            found += [Subject(name, None, tls=tls) for name, tls in _plain_and_tls(proxy, certificate)]
        elif proxy.name in OURS:
            found += [
                Subject(name, _sidecar(tls), proxy.headers, tls) for name, tls in _plain_and_tls(proxy, certificate)
            ]
        else:
            found.append(Subject(proxy.name, _launch(proxy), proxy.headers))
    return found


def _plain_and_tls(proxy: Proxy, certificate: Certificate | None) -> list[tuple[str, Certificate | None]]:
    return [(proxy.name, None), *([(f"{proxy.name}, TLS", certificate)] if certificate else [])]


def _sidecar(tls: Certificate | None) -> Callable[[Ports, Path], Launch]:
    return lambda ports, folder: sidecar_launch(ports, folder, tls)


def _launch(proxy: Proxy) -> Callable[[Ports, Path], Launch]:
    return lambda ports, folder: proxy.launch(proxy.find() or "", ports, folder)


def measure_cancel(subject: Subject, streams: int, folder: Path, told: Callable[[str], None]) -> Row:
    """All phases and ways for one subject. Raises BenchmarkError when it cannot be started."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {load_core()})
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(subject, streams, folder, told))
    finally:
        os.sched_setaffinity(0, allowed)


async def _measure(subject: Subject, streams: int, folder: Path, told: Callable[[str], None]) -> Row:
    # Connections that fail under us are the point here; the loop need not tell of each.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    async with Upstream(_server_tls(subject.tls)) as upstream:
        if subject.launch is None:
            return await _all_phases(subject, upstream, upstream.port, streams, told)
        ports = Ports(free_port(), upstream.port, free_port())
        log = folder / f"cancel-{subject.name.split(',')[0]}.log"
        launch = subject.launch(ports, folder)
        with running(proxy_core(), launch.command, log, launch.environ) as child:
            await asyncio.to_thread(
                wait_until_it_answers, child, ports.listen, log, BEARER, tls=subject.tls is not None
            )
            return await _all_phases(subject, upstream, ports.listen, streams, told)


async def _all_phases(
    subject: Subject, upstream: Upstream, port: int, streams: int, told: Callable[[str], None]
) -> Row:
    row: Row = {}
    await _leave_all(subject, upstream, port, "prefill", "fin", min(streams, 20))  # warm-up: first calls cost more
    for phase, way in product(PHASES, WAYS):
        cell = row[phase, way] = Cell.of(await _leave_all(subject, upstream, port, phase, way, streams))
        told(f"{subject.name}, {phase}, {way}: {render_cell(cell)}")
    return row


async def _leave_all(
    subject: Subject, upstream: Upstream, port: int, phase: Phase, way: Way, streams: int
) -> list[Departure]:
    """Open all streams, wait until each is in its phase, and let them leave one after the other."""
    departures = [Departure(phase) for _ in range(streams)]
    upstream.departures = dict(enumerate(departures))
    tls = _client_tls(subject.tls)
    clients = [Client(departure, tls) for departure in departures]
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REACH_PHASE_S):
                for number, client in enumerate(clients):
                    with contextlib.suppress(OSError):
                        await client.ask(port, number, subject.headers)
                for departure in departures:
                    await (departure.blocked if phase == "stalled" else departure.arrived).wait()
                await upstream.wait_until_stalled()
        await asyncio.sleep(_SETTLE_S)
        await _depart(departures, clients, way)
    finally:
        for client in clients:
            client.close()
    await asyncio.sleep(_SETTLE_S)
    return departures


async def _depart(departures: Sequence[Departure], clients: Sequence[Client], way: Way) -> None:
    loop = asyncio.get_running_loop()
    gc.collect()
    gc.disable()
    try:
        for departure, client in zip(departures, clients, strict=True):
            if departure.arrived.is_set() and not departure.noticed_at:
                client.leave(way)
                await asyncio.sleep(_BETWEEN_DEPARTURES_S)
        end = loop.time() + _NEVER_AFTER_S
        while loop.time() < end and any(each.left_at and not each.noticed_at for each in departures):
            await asyncio.sleep(0.01)
    finally:
        gc.enable()


def _server_tls(certificate: Certificate | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def _client_tls(certificate: Certificate | None) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=certificate.certificate) if certificate else None


def render_cell(cell: Cell) -> str:
    """``median / worst`` in milliseconds, and how many were never noticed."""
    if not cell.left:
        return "phase not reached"
    if cell.median_ms is None or cell.worst_ms is None:
        return "never"
    missed = cell.left - cell.noticed
    return f"{cell.median_ms:.2f} / {cell.worst_ms:.1f}" + (f", {missed} of {cell.left} never" if missed else "")


def slowest(rows: Sequence[Row]) -> tuple[float, float] | None:
    """The highest median and the highest worst of all cells, in ms; infinite where a departure was never noticed."""
    cells = [cell for row in rows for cell in row.values()]
    if not cells:
        return None
    never = float("inf")
    if any(cell.noticed < cell.left or not cell.left for cell in cells):
        return max((cell.median_ms or never) for cell in cells), never
    return max(cell.median_ms or 0.0 for cell in cells), max(cell.worst_ms or 0.0 for cell in cells)


def measure_or_reason(subject: Subject, streams: int, folder: Path, told: Callable[[str], None]) -> tuple[Row, str]:
    """A row and "", or an empty row and why there is none."""
    try:
        return measure_cancel(subject, streams, folder, told), ""
    except (BenchmarkError, OSError) as error:
        told(f"{subject.name}: {error}")
        return {}, str(error)
