"""The circuit of one upstream: its table, its times, and that a half-open one lets exactly one stream try."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import CODES, Failure
from sidecar.health import COUNTED_STATUSES, MAX_RETRY_AFTER_S, MOVES, TRIAL_S, Health, Signal, State, counts
from sidecar.settings import Circuit, HealthCheck

RESET = Failure("upstream_reset", "")


def status(number: int) -> Failure:
    return Failure("upstream_status", "", upstream_status=number)


def opened(circuit: Circuit = Circuit(failures=3, backoff_s=1, max_backoff_s=10)) -> Health:  # noqa: B008 - frozen
    """A circuit that has just opened, at time 0."""
    health = Health("llm", circuit)
    for _ in range(circuit.failures):
        assert health.admits(0)
        health.failed(RESET, 0)
    assert health.state is State.OPEN
    return health


def refusal(health: Health, now: float) -> tuple[str, str]:
    failure = health.refusal(now)
    assert failure is not None
    return failure.code, failure.retry_after


def test_it_opens_after_failures_in_a_row_only() -> None:
    health = Health("llm", Circuit(failures=3))
    for failure in (RESET, RESET, None, RESET, RESET, None, RESET, RESET):
        assert health.admits(0)
        if failure is None:
            health.succeeded(0)
        else:
            health.failed(failure, 0)
    assert (health.state, health.is_up(0)) == (State.CLOSED, True)
    assert health.admits(0)
    health.failed(RESET, 0)
    assert (health.state, health.is_up(0), health.admits(0)) == (State.OPEN, False, False)


def test_one_stream_tries_after_the_backoff_and_its_answer_closes_the_circuit() -> None:
    health = opened()
    assert refusal(health, 0.25) == ("upstream_unavailable", "1")
    assert not health.admits(0.99)
    assert health.is_up(1.0)  # or nobody would send the one who finds out
    assert health.refusal(1.0) is None
    assert health.admits(1.0)
    assert [health.admits(1.0) for _ in range(3)] == [False] * 3
    assert refusal(health, 1.0) == ("upstream_unavailable", "1")
    health.succeeded(1.5)
    assert health.state is State.CLOSED
    assert all(health.admits(1.5) for _ in range(3))


def test_the_backoff_doubles_with_every_failed_trial_up_to_its_bound_and_begins_anew() -> None:
    health, now, waits = opened(), 0.0, []
    for _ in range(7):
        begun = now
        while not health.admits(now):
            now += 0.5
        waits.append(now - begun)
        health.failed(RESET, now)
    assert waits == [1, 2, 4, 8, 10, 10, 10]
    while not health.admits(now):
        now += 0.5
    health.succeeded(now)
    for _ in range(3):
        assert health.admits(now)
        health.failed(RESET, now)
    assert not health.admits(now + 0.5)
    assert health.admits(now + 1)


def test_jitter_only_shortens() -> None:
    chances = itertools.cycle([0.0, 0.5, 1.0])
    for expected in (10.0, 9.0, 8.0):
        health = Health("llm", Circuit(1, 10, 10), jitter=lambda: next(chances))
        assert health.admits(0)
        health.failed(RESET, 0)
        assert not health.admits(expected - 0.01)
        assert health.admits(expected)


def test_a_trial_without_a_verdict_gives_its_place_back() -> None:
    health = opened()
    assert health.admits(1)
    health.untold()
    assert health.state is State.HALF_OPEN
    assert health.admits(1)
    assert not health.admits(1)


def test_a_stream_from_before_gives_no_second_trial() -> None:
    health = Health("llm", Circuit(failures=1, backoff_s=1))
    assert all(health.admits(0) for _ in range(2))
    health.failed(RESET, 0)
    assert health.admits(1)
    health.untold()  # one of the two has gone, and nobody knows which
    assert not health.admits(1)
    health.untold()
    assert health.admits(1)


def test_an_answer_to_a_stream_from_before_is_as_good_as_a_trial() -> None:
    health = Health("llm", Circuit(failures=1))
    assert all(health.admits(0) for _ in range(2))
    health.failed(RESET, 0)
    health.succeeded(0.1)
    assert health.admits(0.1)


def test_a_trial_that_never_tells_is_not_waited_for_forever() -> None:
    health = opened()
    assert health.admits(1)
    assert not health.admits(1 + TRIAL_S - 1)
    assert health.admits(1 + TRIAL_S)


def test_no_failures_at_all_open_a_circuit_that_is_switched_off() -> None:
    health = Health("llm", Circuit(failures=0))
    for _ in range(100):
        assert health.admits(0)
        health.failed(RESET, 0)


def test_which_failures_count() -> None:
    counted = {code for code in CODES if code != "upstream_status" and counts(Failure(code, ""))}
    assert counted == {
        "upstream_dns",
        "upstream_refused",
        "upstream_tls",
        "upstream_connect_timeout",
        "upstream_reset",
        "upstream_truncated",
        "upstream_not_http",
        "first_token_timeout",
    }
    assert {number for number in range(400, 600) if counts(status(number))} == COUNTED_STATUSES
    assert counts(status(529))
    assert not counts(status(429))


@pytest.mark.parametrize(
    "failure", [status(400), status(429), Failure("shutting_down", ""), Failure("idle_timeout", "")]
)
def test_what_says_nothing_of_its_health_neither_counts_nor_mends(failure: Failure) -> None:
    health = Health("llm", Circuit(failures=2))
    for each in (RESET, failure, failure, RESET):
        assert health.admits(0)
        health.failed(each, 0)
    assert health.state is State.OPEN


def test_an_answer_about_the_request_ends_a_trial_well() -> None:
    health = opened()
    assert health.admits(1)
    health.failed(status(429), 1)
    assert health.state is State.CLOSED
    health = opened()
    assert health.admits(1)
    health.failed(Failure("shutting_down", ""), 1)
    assert health.state is State.HALF_OPEN


def test_what_is_checked_is_starting_until_a_check_is_answered() -> None:
    health = Health("llm", check=HealthCheck())
    assert (health.admits(0), health.is_up(0)) == (False, False)
    health.next_check_at = 3.2
    failure = health.refusal(0)
    assert failure is not None
    assert failure.message == "upstream starting: llm has not answered its health check yet"
    assert (failure.http_status, failure.code, failure.retry_after) == (503, "upstream_starting", "4")
    for _ in range(5):
        health.check_down(0)
    assert health.state is State.STARTING
    health.check_up(1)
    assert (health.admits(1), health.is_up(1), health.refusal(1)) == (True, True, None)


def test_checks_in_a_row_decide_and_streams_from_before_do_not() -> None:
    health = Health("llm", check=HealthCheck(healthy_after=2, unhealthy_after=3))
    health.check_up(0)
    health.check_down(0)
    health.check_up(0)
    assert not health.admits(0)
    health.check_up(0)
    assert health.admits(0)
    for is_up in (False, False, True, False, False):
        (health.check_up if is_up else health.check_down)(0)
    assert health.admits(0)
    health.check_down(0)
    assert (health.state, health.admits(0)) == (State.DOWN, False)
    health.next_check_at = 100
    assert refusal(health, 0) == ("upstream_unavailable", str(MAX_RETRY_AFTER_S))
    health.succeeded(0)
    assert not health.admits(0)
    health.check_up(0)
    assert not health.admits(0)
    health.check_up(0)
    assert health.admits(0)


def test_checks_that_are_answered_close_no_circuit_but_one_that_was_down_begins_anew() -> None:
    health = Health("llm", Circuit(failures=1, backoff_s=5), HealthCheck(unhealthy_after=1))
    health.check_up(0)
    assert health.admits(0)
    health.failed(status(500), 0)
    health.check_up(1)
    assert not health.admits(1)
    health.check_down(1)
    assert health.state is State.DOWN
    health.check_up(2)
    assert health.admits(2)


def test_it_rests_as_long_as_it_asked_within_bounds() -> None:
    health = Health("llm", Circuit(max_backoff_s=60))
    health.rest(12.5)
    health.rest(5)
    assert (health.admits(0), health.is_up(0)) == (False, True)
    assert refusal(health, 0) == ("upstream_unavailable", "13")
    assert health.admits(12.5)
    health.rest(1e9)
    assert not health.admits(13)
    assert refusal(health, 13) == ("upstream_unavailable", "30")
    assert health.admits(73)


def test_every_move_is_told() -> None:
    moves: list[tuple[State, State]] = []
    health = Health("llm", Circuit(failures=1), moved=lambda before, after: moves.append((before, after)))
    assert health.admits(0)
    health.failed(RESET, 0)
    assert health.admits(1)
    health.succeeded(1)
    assert moves == list(itertools.pairwise([State.CLOSED, State.OPEN, State.HALF_OPEN, State.TRIAL, State.CLOSED]))


def test_every_state_is_left_again() -> None:
    assert {state for state, _ in MOVES} == set(State)
    assert {signal for _, signal in MOVES} == set(Signal)
    reached = set(MOVES.values())
    assert reached == set(State) - {State.STARTING}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.just(0)),
        st.tuples(st.sampled_from(["good", "bad", "neutral", "left"]), st.integers(0, 7)),
        st.tuples(st.just("wait"), st.sampled_from([1, 3, 10])),
        st.tuples(st.sampled_from(["up", "down"]), st.just(0)),
    ),
    max_size=120,
)


@settings(max_examples=200)
@given(STEPS, st.booleans(), st.floats(0, 1))
def test_half_open_lets_one_try_and_backoffs_keep_their_bounds(
    steps: list[tuple[str, int]], is_checked: bool, chance: float
) -> None:
    """Whatever is told in whatever order: while a trial runs nobody else is admitted, a refusal says why and when,
    and no circuit stays open for longer than it may."""
    circuit = Circuit(failures=2, backoff_s=2, max_backoff_s=16)
    check = HealthCheck(unhealthy_after=2) if is_checked else None
    now, running, opened_at = 0.0, 0, None
    opens: list[float] = []
    health = Health(
        "llm", circuit, check, lambda: chance, lambda _, after: opens.append(now) if after is State.OPEN else None
    )
    for step, number in steps:
        if step == "wait":
            now += number
        elif step == "up":
            health.check_up(now)
        elif step == "down":
            health.check_down(now)
        elif step == "ask":
            before = health.state
            why = health.refusal(now)
            if health.admits(now):
                assert why is None
                assert before is State.CLOSED or health.state is State.TRIAL
                running += 1
            else:
                assert why is not None
                assert 1 <= int(why.retry_after) <= MAX_RETRY_AFTER_S
                assert why.code == ("upstream_starting" if health.state is State.STARTING else "upstream_unavailable")
        elif running:
            running -= 1
            if step == "good":
                health.succeeded(now)
            elif step == "left":
                health.untold()
            else:
                health.failed(RESET if step == "bad" else status(400), now)
        if health.state is State.TRIAL:
            assert running  # somebody is left who will tell
            assert not health.admits(now)
        opened_at = opens[-1] if opens else None
        if health.state is State.OPEN and opened_at is not None:
            assert health.is_up(opened_at + circuit.max_backoff_s)
            assert not health.is_up(opened_at + circuit.backoff_s * 0.8 - 0.01)
