"""How many requests begin in one turn of the loop, in which order, and that none is forgotten."""

from __future__ import annotations

import asyncio

from sidecar.gateway.pacing import STARTS_A_TURN, Pace
from tests.app_support import on_uvloop
from tests.upstream_support import turns


@on_uvloop
async def test_a_few_begin_at_once_and_the_others_in_their_order() -> None:
    pace = Pace(asyncio.get_running_loop())
    asked = [pace.turn() for _ in range(3 * STARTS_A_TURN)]
    assert asked[:STARTS_A_TURN] == [None] * STARTS_A_TURN
    waiting = [future for future in asked if future is not None]
    assert len(waiting) == 2 * STARTS_A_TURN
    seen = []
    while not all(future.done() for future in waiting):
        await turns(1)
        done = [future.done() for future in waiting]
        assert done == sorted(done, reverse=True)
        seen.append(sum(done))
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) == STARTS_A_TURN


@on_uvloop
async def test_who_comes_later_begins_later() -> None:
    pace = Pace(asyncio.get_running_loop())
    first = [pace.turn() for _ in range(STARTS_A_TURN + 1)][-1]
    assert first is not None
    await first
    others = [pace.turn() for _ in range(STARTS_A_TURN)]
    await asyncio.gather(*(future for future in others if future is not None))
    await turns(3)
    assert pace.turn() is None


@on_uvloop
async def test_who_has_gone_takes_no_turn() -> None:
    pace = Pace(asyncio.get_running_loop())
    waiting = [future for _ in range(2 * STARTS_A_TURN + 1) if (future := pace.turn()) is not None]
    for future in waiting[:-1]:
        future.cancel()
    await waiting[-1]
    assert waiting[-1].done()
