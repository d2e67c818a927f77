"""The parent's rules, without processes: who is replaced when, who is asked, and when all is over."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest

from sidecar.ports import Scope
from sidecar.shared_counts import SharedCounts, create
from sidecar.workers.crew import STOP_TIMEOUT_S, STUCK_AFTER_S, Crew, Launch, WorkersFailedError
from sidecar.workers.messages import About, Answer, Ask, Failed, Leave, Pulse, Ready, ToParent, ToWorker
from sidecar.workers.rounds import DEADLINE_S
from sidecar.workers.seat import MOVES, IllegalMoveError, Move, Seat, SeatState

SIGKILL = -9


class Timer:
    def __init__(self, due_at: float, work: Callable[[], None]) -> None:
        self.due_at = due_at
        self.work: Callable[[], None] | None = work

    def cancel(self) -> None:
        self.work = None


class Clockwork:
    """A loop whose time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[Timer] = []
        self._futures = asyncio.new_event_loop()

    def call_later(self, delay_s: float, work: Callable[..., None], *arguments: Any) -> Timer:
        timer = Timer(self.now + delay_s, lambda: work(*arguments))
        self._timers.append(timer)
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        return self._futures.create_future()

    def pass_s(self, seconds: float, every: Callable[[], None] = lambda: None) -> None:
        """Let time pass, timer by timer; ``every`` is called before each."""
        end = self.now + seconds
        while True:
            self._timers = [timer for timer in self._timers if timer.work is not None]
            due = min(
                (timer for timer in self._timers if timer.due_at <= end), key=lambda each: each.due_at, default=None
            )
            if due is None or due.work is None:
                break
            self.now = max(self.now, due.due_at)
            every()
            work, due.work = due.work, None
            if work is not None:
                work()
        self.now = end

    def close(self) -> None:
        self._futures.close()


class Puppet:
    """A worker that does what the test says."""

    pids = itertools.count(100)

    def __init__(self, on_message: Callable[[ToParent], None], on_exit: Callable[[int], None]) -> None:
        self.say = on_message
        self.exit = on_exit
        self.pid = next(self.pids)
        self.told: list[ToWorker] = []
        self.is_killed = False

    def tell(self, message: ToWorker) -> None:
        self.told.append(message)

    def kill(self) -> None:
        self.is_killed = True


class Stage:
    """A crew of puppets."""

    def __init__(self, loop: Clockwork, counts: SharedCounts, number: int) -> None:
        self.loop = loop
        self.all: list[tuple[int, Puppet]] = []
        self.holding: dict[int, Puppet] = {}
        self.first_ready = 0
        self.is_broke = False
        self.crew = Crew(
            cast("asyncio.AbstractEventLoop", loop),
            cast("Launch", self),
            counts,
            number,
            self._ready,
            clock=lambda: loop.now,
        )
        self.crew.start()

    def _ready(self) -> None:
        self.first_ready += 1

    def child(
        self, loop: object, number: int, on_message: Callable[[ToParent], None], on_exit: Callable[[int], None]
    ) -> Puppet:
        if self.is_broke:
            raise OSError(11, "Resource temporarily unavailable")
        self.holding[number] = Puppet(on_message, on_exit)
        self.all.append((number, self.holding[number]))
        return self.holding[number]

    def ready(self, *numbers: int) -> None:
        for number in numbers or tuple(self.holding):
            self.holding[number].say(Ready())

    def pulse(self) -> None:
        for puppet in self.holding.values():
            puppet.say(Pulse())


@pytest.fixture
def loop() -> Iterator[Clockwork]:
    loop = Clockwork()
    yield loop
    loop.close()


@pytest.fixture
def counts() -> Iterator[SharedCounts]:
    memory = create(2)
    counts = SharedCounts(memory, 0)
    yield counts
    counts.close()
    os.close(memory)


@pytest.fixture
def stage(loop: Clockwork, counts: SharedCounts) -> Stage:
    return Stage(loop, counts, 2)


def test_every_move_of_a_seat_is_in_the_table() -> None:
    for state, move in itertools.product(SeatState, Move):
        seat = Seat(1)
        seat.state = state
        if move in MOVES[state]:
            seat.move(move)
            assert seat.state is MOVES[state][move]
        else:
            with pytest.raises(IllegalMoveError):
                seat.move(move)
            assert seat.state is state
    reached = {after for moves in MOVES.values() for after in moves.values()}
    assert reached == set(SeatState) == set(MOVES)


def test_backoff_doubles_and_is_forgotten_after_a_good_minute() -> None:
    seat, now, waits = Seat(1), 0.0, []
    for _ in range(9):
        seat.started(now)
        now += 1.0
        waits.append(seat.exited(now))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    seat.started(now)
    assert seat.exited(now + 60.0) == 0.1
    seat.started(now + 61.0)
    assert seat.exited(now + 62.0) == 0.2


def test_ready_with_the_first_and_not_without_any(stage: Stage) -> None:
    assert stage.crew.not_ready_because() == "no worker is ready"
    stage.ready(2)
    assert (stage.crew.not_ready_because(), stage.first_ready) == ("", 1)
    stage.ready(1)
    assert stage.first_ready == 1
    stage.holding[1].say(Pulse("draining"))
    assert stage.crew.not_ready_because() == ""
    stage.holding[2].say(Pulse("draining"))
    assert stage.crew.not_ready_because() == "draining"


def test_a_dead_worker_is_counted_out_and_replaced(
    stage: Stage, loop: Clockwork, counts: SharedCounts, caplog: pytest.LogCaptureFixture
) -> None:
    stage.ready()
    scope = Scope("process", "", 9)
    for _ in range(3):
        assert counts.take((scope,)) is None  # as worker 1, in column 0
    lost = stage.holding[1]
    with caplog.at_level(logging.WARNING, "sidecar.workers"):
        lost.exit(SIGKILL)
    assert caplog.messages == ["worker 1 ended by SIGKILL while ready, with 3 streams"]
    assert counts.used(scope) == 0
    assert stage.holding[1] is lost
    loop.pass_s(0.11, stage.pulse)
    assert stage.holding[1] is not lost
    assert stage.crew.states == {1: SeatState.STARTING, 2: SeatState.READY}
    assert not stage.holding[2].is_killed


def test_a_question_is_for_those_who_serve_and_has_a_deadline(stage: Stage, loop: Clockwork) -> None:
    found: list[Mapping[int, str]] = []
    stage.crew.ask(About.STREAMS, "", found.append)
    assert found == [{}]
    stage.ready()
    stage.crew.ask(About.METRICS, "text/plain", found.append)
    question = stage.holding[1].told[-1]
    assert question == stage.holding[2].told[-1]
    assert isinstance(question, Ask)
    stage.holding[1].say(Answer(question.number, "one"))
    stage.holding[1].say(Answer(question.number, "one more"))
    assert len(found) == 1
    stage.holding[2].say(Answer(question.number, "two"))
    assert found[1:] == [{1: "one", 2: "two"}]
    stage.crew.ask(About.STREAMS, "", found.append)
    later = stage.holding[1].told[-1]
    assert isinstance(later, Ask)
    stage.holding[1].say(Answer(later.number, "in time"))
    loop.pass_s(DEADLINE_S + 0.1, stage.pulse)
    assert found[2:] == [{1: "in time"}]
    stage.holding[2].say(Answer(later.number, "too late"))
    stage.crew.ask(About.STREAMS, "", found.append)
    last = stage.holding[1].told[-1]
    assert isinstance(last, Ask)
    stage.holding[2].exit(SIGKILL)
    assert len(found) == 3
    stage.holding[1].say(Answer(last.number, "alone"))
    assert found[3:] == [{1: "alone"}]


def test_a_stuck_worker_is_killed_and_one_that_turns_is_not(stage: Stage, loop: Clockwork) -> None:
    stage.ready()
    loop.pass_s(STUCK_AFTER_S + 2.0, lambda: stage.holding[1].say(Pulse()))
    assert [puppet.is_killed for puppet in stage.holding.values()] == [False, True]
    assert loop.now - stage.crew.turned_at <= 1.0


def test_a_parent_that_stood_still_itself_blames_nobody(stage: Stage, loop: Clockwork) -> None:
    stage.ready()
    loop.now += 600.0  # suspended with all its workers: their pulses are still to be read
    loop.pass_s(0.0)
    assert [puppet.is_killed for puppet in stage.holding.values()] == [False, False]


def test_what_a_worker_says_it_lacks_ends_all_before_any_was_ready(stage: Stage) -> None:
    stage.holding[1].say(Failed("a variable is not set"))
    stage.holding[1].exit(1)
    assert stage.holding[2].is_killed
    assert not stage.crew.over.done()
    stage.holding[2].exit(SIGKILL)
    error = stage.crew.over.exception()
    assert isinstance(error, WorkersFailedError)
    assert str(error) == "a variable is not set"
    assert len(stage.all) == 2


def test_once_one_was_ready_the_others_are_tried_again(stage: Stage, loop: Clockwork) -> None:
    stage.ready(1)
    stage.holding[2].say(Failed("no descriptors left"))
    stage.holding[2].exit(1)
    loop.pass_s(0.2, stage.pulse)
    assert [number for number, _ in stage.all] == [1, 2, 2]
    assert not stage.crew.over.done()


def test_workers_that_die_without_a_word_are_given_up_in_the_end(stage: Stage, loop: Clockwork) -> None:
    def die() -> None:
        for number, state in stage.crew.states.items():
            if state is SeatState.STARTING:
                stage.holding[number].exit(1)

    loop.pass_s(200.0, die)
    error = stage.crew.over.exception()
    assert str(error) == "no worker became ready within 60 s"
    assert 10 < len(stage.all) < 40
    assert loop.now - stage.crew.turned_at > 100.0


def test_a_worker_that_never_becomes_ready_is_replaced(stage: Stage, loop: Clockwork) -> None:
    stage.ready(1)
    loop.pass_s(61.0, lambda: stage.holding[1].say(Pulse()))
    assert stage.holding[2].is_killed
    assert not stage.holding[1].is_killed


def test_no_process_to_be_had_is_tried_again(stage: Stage, loop: Clockwork) -> None:
    stage.ready()
    stage.is_broke = True
    stage.holding[2].exit(SIGKILL)
    loop.pass_s(1.0, lambda: stage.holding[1].say(Pulse()))
    states = [stage.crew.states[2]]
    stage.is_broke = False
    loop.pass_s(2.0, lambda: stage.holding[1].say(Pulse()))
    states.append(stage.crew.states[2])
    assert states == [SeatState.DEAD, SeatState.STARTING]


def test_leaving_is_told_to_all_and_over_when_all_have(stage: Stage, loop: Clockwork) -> None:
    stage.ready(1)
    stage.crew.leave("SIGTERM")
    assert stage.crew.not_ready_because() == "shutting down"
    assert [puppet.told[-1] for puppet in stage.holding.values()] == [Leave("SIGTERM")] * 2
    stage.ready(2)  # which had not heard of it yet
    stage.holding[1].exit(0)
    assert not stage.crew.over.done()
    stage.holding[2].exit(0)
    assert (stage.crew.over.result(), stage.crew.were_all_clean) == (None, True)
    loop.pass_s(100.0)
    assert len(stage.all) == 2


def test_leaving_has_a_deadline_and_a_shorter_one_when_told_twice(stage: Stage, loop: Clockwork) -> None:
    stage.ready()
    stage.crew.leave("SIGTERM", 30.0)
    stage.holding[1].exit(0)
    loop.pass_s(STOP_TIMEOUT_S + 29.0)
    assert not stage.holding[2].is_killed
    stage.crew.leave("SIGTERM", 30.0)
    assert stage.holding[2].told[-2:] == [Leave("SIGTERM")] * 2
    loop.pass_s(4.0)
    stage.crew.leave("SIGTERM", 30.0)  # which gives it no more time
    loop.pass_s(1.1)
    assert stage.holding[2].is_killed
    stage.holding[2].exit(SIGKILL)
    assert (stage.crew.over.done(), stage.crew.were_all_clean) == (True, False)


def test_who_is_leaving_is_asked_too(stage: Stage) -> None:
    stage.ready()
    stage.crew.leave("SIGTERM", 30.0)
    answers: list[Mapping[int, str]] = []
    stage.crew.ask(About.STREAMS, "", answers.append)
    (question,) = {each.number for puppet in stage.holding.values() for each in puppet.told if isinstance(each, Ask)}
    stage.holding[1].say(Answer(question, "[]"))
    assert answers == []
    stage.holding[2].exit(0)
    assert answers == [{1: "[]"}]


def test_a_successor_in_a_drain_is_not_taken_for_ready(stage: Stage, loop: Clockwork) -> None:
    stage.ready()
    stage.crew.drain(lambda answers: None, 60.0, hides=True)
    stage.holding[1].exit(SIGKILL)
    loop.pass_s(1.0)
    stage.ready(1)
    stage.pulse()
    assert isinstance(stage.holding[1].told[-1], Ask)
    assert stage.crew.not_ready_because() == "draining"


def test_leaving_while_a_successor_waits_for_its_turn(stage: Stage, loop: Clockwork) -> None:
    stage.ready()
    stage.holding[1].exit(SIGKILL)
    stage.crew.leave("SIGINT")
    stage.holding[2].exit(0)
    assert stage.crew.over.done()
    loop.pass_s(100.0)
    assert len(stage.all) == 2
