"""Counts in shared memory: against a plain model, and by processes that really share them and are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.ports import Scope
from sidecar.shared_counts import WINDOW, SharedCounts, create

ROOT = Path(__file__).resolve().parent.parent
PROCESS = Scope("process", "", 5)


@contextmanager
def counting(columns: int, *, rows: int = 256) -> Iterator[list[SharedCounts]]:
    """One `SharedCounts` for each column. They share a process and so its lock, which one thread needs not."""
    memory = create(columns, rows=rows)
    counts = [SharedCounts(memory, column) for column in range(columns)]
    try:
        yield counts
    finally:
        for each in counts:
            each.close()
        os.close(memory)


def test_all_or_nothing() -> None:
    with counting(2) as (one, other):
        wide, narrow = Scope("route", "chat", 3), Scope("upstream", "llm", 1)
        assert one.take((wide, narrow)) is None
        assert other.take((wide, narrow)) == narrow
        assert [one.used(scope) for scope in (wide, narrow)] == [1, 1]
        assert other.take((wide,)) is None
        assert other.used(wide) == one.used(wide) == 2
        one.give((wide, narrow))
        assert other.take((narrow, wide)) is None
        assert (other.used(wide), other.used(narrow)) == (2, 1)
        other.give((wide, narrow, wide))
        assert one.is_empty


def test_scopes_of_one_name_are_counted_together_whatever_their_limit() -> None:
    with counting(1) as (counts,):
        assert counts.take((Scope("caller", "a", 1), Scope("caller", "a", 2))) is None
        assert counts.used(Scope("caller", "a", 9)) == 2
        assert counts.used(Scope("route", "a", 9)) == 0
        assert counts.take((Scope("caller", "a", 0),)) is None
        assert counts.take((Scope("caller", "a", 3),)) == Scope("caller", "a", 3)
        assert counts.take(()) is None


def test_what_was_not_taken_cannot_be_given() -> None:
    with counting(2) as (one, other):
        assert one.take((PROCESS,)) is None
        with pytest.raises(KeyError):
            other.give((PROCESS,))
        assert one.used(PROCESS) == 1


def test_rows_are_used_again_and_a_full_table_refuses() -> None:
    with counting(2, rows=8) as (one, other):
        taken: list[Scope] = []
        for number in range(8 + WINDOW + 1):
            scope = Scope("caller", str(number), 1)
            if one.take((scope,)) is None:
                taken.append(scope)
        assert WINDOW <= len(taken) < 8 + WINDOW + 1
        newcomer = Scope("caller", "newcomer", 1)
        assert other.take((taken[0], newcomer)) == taken[0]
        for scope in taken:
            one.give((scope,))
        assert one.is_empty
        for number in range(1000):  # keys of old stay in the rows, and are in nobody's way
            scope = Scope("caller", f"late {number}", 1)
            assert other.take((scope, newcomer)) is None
            assert one.take((newcomer,)) == newcomer
            other.give((newcomer, scope))
        assert other.is_empty


def test_a_dead_process_is_cleared() -> None:
    with counting(3) as (one, other, third):
        for _ in range(2):
            assert one.take((PROCESS, Scope("caller", "a", 0))) is None
        assert other.take((PROCESS,)) is None
        assert (third.held(0), third.held(1), third.held(2)) == (2, 1, 0)
        third.clear(0)
        assert (third.held(0), other.used(PROCESS)) == (0, 1)
        other.give((PROCESS,))
        assert third.is_empty


def test_only_memory_made_for_it_is_taken() -> None:
    with open(os.memfd_create("other"), "r+b") as other:
        other.truncate(4096)
        with pytest.raises(ValueError, match="no memory"):
            SharedCounts(other.fileno(), 0)
    memory = create(2)
    with pytest.raises(ValueError, match="no memory"):
        SharedCounts(memory, 2)
    os.close(memory)


SCOPES = [Scope(kind, name, limit) for kind, name, limit in [("process", "", 4), ("route", "a", 2), ("caller", "x", 0)]]
SCOPES += [Scope("caller", f"c{number}", 1 + number % 2) for number in range(6)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 2), st.lists(st.sampled_from(SCOPES), max_size=4)),
        st.tuples(st.just("give"), st.integers(0, 2), st.integers(0, 100)),
        st.tuples(st.just("die"), st.integers(0, 2), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_it_counts_as_a_dictionary_does(steps: list[tuple[str, int, object]]) -> None:
    held: list[list[list[Scope]]] = [[], [], []]
    model: Counter[tuple[str, str]] = Counter()
    memory = create(3, rows=4)
    counts = [SharedCounts(memory, column) for column in range(3)]
    for what, column, with_what in steps:
        if what == "take":
            assert isinstance(with_what, list)
            expected, after = taken_by_model(model, with_what)
            assert counts[column].take(with_what) == expected
            if expected is None:
                model = after
                held[column].append(with_what)
        elif what == "give" and held[column]:
            assert isinstance(with_what, int)
            given_back = held[column].pop(with_what % len(held[column]))
            counts[column].give(given_back)
            model.subtract((scope.kind, scope.name) for scope in given_back)
        elif what == "die":
            counts[column].close()
            counts[0 if column else 1].clear(column)
            counts[column] = SharedCounts(memory, column)
            for lost in held[column]:
                model.subtract((scope.kind, scope.name) for scope in lost)
            held[column] = []
        for scope in SCOPES:
            assert [each.used(scope) for each in counts] == [model[scope.kind, scope.name]] * 3
    for each in counts:
        each.close()
    os.close(memory)


def taken_by_model(
    model: Counter[tuple[str, str]], scopes: list[Scope]
) -> tuple[Scope | None, Counter[tuple[str, str]]]:
    after = model.copy()
    for scope in scopes:
        if scope.limit and after[scope.kind, scope.name] >= scope.limit:
            return scope, model
        after[scope.kind, scope.name] += 1
    return None, after


# Real processes.

LIMIT = 7
HAMMER = """
import random, sys
from sidecar.ports import Scope
from sidecar.shared_counts import SharedCounts
counts, chance = SharedCounts(int(sys.argv[1]), int(sys.argv[2])), random.Random(int(sys.argv[2]))
scopes = [Scope("process", "", int(sys.argv[4])), *(Scope("caller", str(number), 2) for number in range(40))]
held, taken, looks = [], 0, 0
print("begun", flush=True)
for turn in range(int(sys.argv[3])):
    if held and chance.random() < 0.5:
        counts.give(held.pop(chance.randrange(len(held))))
    else:
        wanted = (scopes[0], chance.choice(scopes[1:]))
        if counts.take(wanted) is None:
            held.append(wanted)
            taken += 1
    if turn % 16 == 0:
        try:
            with counts.locked():
                assert all(counts.used(scope) <= scope.limit for scope in scopes)
                looks += 1
        except TimeoutError:
            pass  # its holder has no core: take() has to bear that, too
while held:
    counts.give(held.pop())
print(min(taken, looks), flush=True)
"""


def hammer(memory: int, column: int, turns: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HAMMER, str(memory), str(column), str(turns), str(LIMIT)]
    return subprocess.Popen(command, pass_fds=[memory], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_share_limits_exactly_though_some_are_killed() -> None:
    """Column 0 and 1 run to their end; column 2 is killed and succeeded again and again. Each looks, under the lock,
    whether a limit is passed, and none may be."""
    chance = random.Random(5)
    memory = create(3)
    parent = SharedCounts(memory, None)
    steady = [hammer(memory, column, 100_000) for column in (0, 1)]
    assert [said(process) for process in steady] == ["begun", "begun"]
    kills = 0
    while any(process.poll() is None for process in steady) or not kills:
        victim = hammer(memory, 2, 10**9)
        assert said(victim) == "begun"
        until_held(parent, 2, 1 + chance.randrange(LIMIT), steady)
        victim.kill()
        assert victim.wait() == -signal.SIGKILL
        victim.communicate()
        parent.clear(2)
        kills += 1
    for process in steady:
        rest, _ = process.communicate()
        assert process.returncode == 0
        assert int(rest) > 100
    assert parent.is_empty
    parent.close()
    os.close(memory)


def until_held(counts: SharedCounts, column: int, number: int, others: list[subprocess.Popen[str]]) -> None:
    """Until the process has so many at once, or nobody competes with it any more."""
    while counts.held(column) < number and any(process.poll() is None for process in others):
        pass


HOLDER = """
import os, signal, sys
from sidecar.shared_counts import SharedCounts
with SharedCounts(int(sys.argv[1]), 0).locked():
    print("holds", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_stopped_holder_of_the_lock_means_refusal_and_a_dead_one_does_not() -> None:
    memory = create(2)
    counts = SharedCounts(memory, 1)
    held, limited = Scope("process", "", 0), Scope("route", "a", 9)
    assert counts.take((held,)) is None
    command = [sys.executable, "-c", HOLDER, str(memory)]
    with subprocess.Popen(command, pass_fds=[memory], stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert said(holder) == "holds"
        assert counts.take((held, limited)) == limited
        assert counts.take((held,)) == held
        with pytest.raises(TimeoutError), counts.locked():
            pass
        counts.give((held,))  # which waits for nobody
        assert counts.used(held) == 0
        holder.kill()
    assert counts.take((held, limited)) is None
    counts.close()
    os.close(memory)
