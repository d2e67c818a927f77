"""Upstreams fail and clients go in every way at once: each stream has one outcome, nothing is left, nobody is deceived.

Four rounds in `make test`; in `make chaos` as many as fit into CHAOS_SECONDS. A round is its seed's, which a failure
names and CHAOS_SEED plays again.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.chaos.rounds import Round, play

SECONDS = float(os.environ.get("CHAOS_SECONDS") or 0)
"""For how long rounds follow each other; 0 for one of each seed."""
SEED = int(os.environ.get("CHAOS_SEED") or 0)
VISITS = 250


def seeds() -> tuple[int, ...]:
    """Where the runs begin: at the seed asked for, at others each time in a long run, else at the same."""
    if SEED:
        return (SEED,)
    now = time.time_ns() // 10**9
    return (now, now + 10**6) if SECONDS else (1, 2, 3, 4)


def check(played: Round) -> None:
    if played.broken:
        told = "\n".join(played.broken[:20])
        pytest.fail(f"CHAOS_SEED={played.seed}: {len(played.broken)} rules broken\n{told}", pytrace=False)
    assert played.outcomes["completed"] > 0, played


@pytest.mark.parametrize("seed", seeds(), ids=lambda seed: "run")
def test_rounds_of_chaos(seed: int) -> None:
    until = time.monotonic() + SECONDS
    while True:
        try:
            played = play(seed, VISITS)
        except BaseException as error:
            error.add_note(f"CHAOS_SEED={seed}")
            raise
        check(played)
        seed += 1
        if time.monotonic() >= until:
            return
