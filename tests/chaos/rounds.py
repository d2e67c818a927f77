"""One round of chaos: a configuration, upstreams and clients made of one seed, and what was found at its end.

Owns the order of a round. Must not know any rule: those are the oracle's.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from sidecar.app import App
from sidecar.settings import Address
from tests.app_support import running
from tests.chaos.arrangements import arrange
from tests.chaos.clients import Visitor
from tests.chaos.ledger import Ledger
from tests.chaos.oracle import Witness, faults_of, left_over
from tests.chaos.upstreams import ChaosUpstream, chaotic
from tests.departures import blackhole
from tests.upstream_support import open_files

AT_ONCE = 60
ROUND_TIMEOUT_S = 120.0
SETTLE_S = 10.0
"""How long after the last client's departure everything may still be held: above ``total`` of the arrangements."""


@dataclass
class Round:
    """What happened in a round; ``broken`` is every rule that was."""

    seed: int
    broken: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    """Answers that a client had whole, by kind."""


def play(seed: int, visits: int) -> Round:
    """One round of so many client connections, on a loop of its own."""
    played = Round(seed)
    on_a_loop_of_its_own(lambda: _play(played, visits), played)
    return played


def on_a_loop_of_its_own(work: Callable[[], Coroutine[Any, Any, None]], played: Round) -> None:
    """Do the work of a round; what it leaves of files and what reaches the loop's handler is noted."""
    unhandled: list[dict[str, Any]] = []
    uvloop.run(asyncio.sleep(0))  # the first loop of a process opens what no later one does
    files = open_files()

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        async with asyncio.timeout(ROUND_TIMEOUT_S):
            await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
    if open_files() > files:
        played.broken.append(f"{open_files() - files} open files more than before")
    played.broken += [f"reached the loop's handler: {context}" for context in unhandled]


async def _play(played: Round, visits: int) -> None:
    chance = random.Random(played.seed)
    ledger, witness = Ledger(), Witness()
    tasks = len(asyncio.all_tasks())
    async with AsyncExitStack() as stack:
        upstreams = [
            await stack.enter_async_context(chaotic(name, played.seed, ledger)) for name in ("one", "two", "three")
        ]
        addresses = {upstream.name: upstream.address for upstream in upstreams}
        addresses["dead"] = stack.enter_context(refusing())
        addresses["deaf"] = stack.enter_context(blackhole())
        app = await stack.enter_async_context(running(arrange(addresses, chance), observer=witness))
        always = left_over(app)
        await let_visit([Visitor(number, played.seed, app.address, ledger) for number in range(visits)], played)
        await settle(app, always, upstreams, played)
    await _until_nothing_is_left(lambda: {"tasks": len(asyncio.all_tasks()) - tasks}, played)
    played.broken += faults_of(ledger, witness)
    played.faults = ledger.faults
    played.outcomes = Counter(record.outcome.value for record in witness.records.values())
    for got in ledger.got:
        if got.is_whole and got.status == 200:
            language = got.language.name if got.language else ""
            played.completed[f"{got.kind} {language} {got.format}"] += 1


async def let_visit(visitors: list[Visitor], played: Round) -> None:
    """All of them come, so many at once."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, visitor: Visitor) -> None:
        async with places:
            try:
                await visitor.visit()
            except TimeoutError:
                played.broken.append(f"visit {number} ({visitor.manner}) was forgotten")

    await _all(one(number, visitor) for number, visitor in enumerate(visitors))


async def _all(work: Iterator[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


async def settle(app: App, always: dict[str, int], upstreams: list[ChaosUpstream], played: Round) -> None:
    """Nobody is there any more: whatever was held for somebody goes, and what there is ``always`` remains."""
    await _until_nothing_is_left(
        lambda: {what: count - always.get(what, 0) for what, count in left_over(app).items()}, played
    )

    def open_connections() -> dict[str, int]:
        for name in app._settings.upstreams:
            app.pool(name).sweep(float("inf"))  # each time: every health check leaves another idle one behind
        return {f"connections at {upstream.name}": upstream.open_connections for upstream in upstreams}

    await _until_nothing_is_left(open_connections, played)


async def _until_nothing_is_left(look: Callable[[], dict[str, int]], played: Round) -> None:
    """Until each figure has been zero once: a health check, say, takes a connection again and again."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLE_S
    left = look()
    while left := {what: count for what, count in look().items() if count > 0 and what in left}:
        if loop.time() > until:
            played.broken.append(f"still held {SETTLE_S:g} s after the last client has gone: {left}")
            return
        await asyncio.sleep(0.01)


@contextmanager
def refusing() -> Iterator[Address]:
    """An address at which nobody listens, and nobody else will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield Address("127.0.0.1", taken.getsockname()[1])
