"""The table of a process's leave, driven by plain calls."""

from __future__ import annotations

import itertools

import pytest

from sidecar import settings
from sidecar.drain import DOINGS, MOVES, Drain, State, Word

TIMES = settings.Drain(delay_s=5.0, timeout_s=60.0)
MODES: tuple[settings.Mode, ...] = ("ingress", "egress")
CASES = [(mode, state, word) for mode in MODES for state in MOVES[mode] for word in Word]


def told(mode: settings.Mode, *words: Word, at: float = 100.0) -> Drain:
    drain = Drain()
    for word in words:
        assert drain.tell(word, at, mode, TIMES), word
    return drain


@pytest.mark.parametrize(("mode", "state", "word"), CASES)
def test_each_word_follows_the_table_or_changes_nothing(mode: settings.Mode, state: State, word: Word) -> None:
    drain = Drain()
    if state is not State.SERVING:
        drain.tell(Word.STOP, 0.0, mode, TIMES)
        drain.state = state
    after = MOVES[mode][state].get(word)
    assert drain.tell(word, 1.0, mode, TIMES) is (after is not None)
    assert drain.state is (after or state)
    assert drain.doing is DOINGS[drain.state]


@pytest.mark.parametrize("mode", MODES)
def test_every_state_of_a_mode_is_reached_and_ends(mode: settings.Mode) -> None:
    reached = {State.SERVING}
    while (more := reached | {after for state in reached for after in MOVES[mode][state].values()}) != reached:
        reached = more
    assert reached == set(MOVES[mode])
    for state in set(MOVES[mode]) - {State.CLOSING, State.SERVING}:
        assert {MOVES[mode][state][word] for word in (Word.STOP, Word.INTERRUPT)} == {State.CLOSING}
    assert MOVES[mode][State.CLOSING] == {}


def test_the_tables_know_every_state_and_word() -> None:
    assert set(DOINGS) == set(State) == set(itertools.chain(*MOVES.values()))
    assert {word for moves in MOVES.values() for row in moves.values() for word in row} == set(Word)


def test_nothing_is_refused_beside_an_application_before_the_end() -> None:
    for state in set(MOVES["egress"]) - {State.CLOSING}:
        assert DOINGS[state].is_ready
        assert not DOINGS[state].refuses
        assert not DOINGS[state].ends_streams


def test_a_hook_refuses_after_the_delay_and_is_answered_with_the_last_stream() -> None:
    drain = told("ingress", Word.HOOK)
    assert not drain.doing.is_ready
    assert not drain.doing.refuses
    assert (drain.asked_at, drain.deadline_at) == (100.0, 165.0)
    assert drain.due(104.9, is_idle=True) is None, "endpoints have yet to hear of it"
    assert drain.due(105.0, is_idle=True) is Word.DELAY_OVER
    drain.tell(Word.DELAY_OVER, 105.0, "ingress", TIMES)
    assert drain.doing.refuses
    assert not drain.doing.answers_hook
    assert drain.due(164.9, is_idle=False) is None
    assert drain.due(105.0, is_idle=True) is Word.IDLE
    assert drain.due(165.0, is_idle=False) is Word.DEADLINE
    drain.tell(Word.IDLE, 110.0, "ingress", TIMES)
    assert (drain.state, drain.is_waiting) == (State.DRAINED, False)
    assert drain.due(1e9, is_idle=True) is None
    assert drain.tell(Word.STOP, 111.0, "ingress", TIMES)
    assert drain.state is State.CLOSING


def test_a_hook_beside_an_application_changes_nothing_but_the_stop() -> None:
    drain = told("egress", Word.HOOK)
    assert (drain.asked_at, drain.is_waiting, drain.doing.answers_hook) == (100.0, False, True)
    assert drain.doing.is_ready
    assert told("egress", Word.HOOK, Word.STOP).state is State.CLOSING


@pytest.mark.parametrize("word", [Word.STOP, Word.INTERRUPT])
def test_a_signal_beside_an_application_waits_for_what_runs(word: Word) -> None:
    drain = told("egress", word)
    assert drain.due(100.0, is_idle=True) is Word.IDLE
    assert drain.due(159.9, is_idle=False) is None
    assert drain.due(160.0, is_idle=False) is Word.DEADLINE, "there is no delay in this mode"


def test_a_person_at_a_terminal_waits_for_no_endpoints() -> None:
    assert told("ingress", Word.STOP).due(100.0, is_idle=True) is None
    assert told("ingress", Word.INTERRUPT).due(100.0, is_idle=True) is Word.IDLE


def test_the_first_word_settles_mode_and_times() -> None:
    drain = told("ingress", Word.HOOK)
    assert not drain.tell(Word.HOOK, 200.0, "egress", settings.Drain(1.0, 1.0))
    assert (drain.mode, drain.asked_at, drain.deadline_at) == ("ingress", 100.0, 165.0)
    idle = Drain()
    assert not idle.tell(Word.IDLE, 0.0, "ingress", TIMES)
    assert idle.asked_at is None
