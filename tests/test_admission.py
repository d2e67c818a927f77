"""Limits, permits and the line before them, by plain calls under a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.admission import RANKS, RECHECK_INTERVAL_S, Admission, Permit, Terms, terms_of
from sidecar.errors import Failure
from sidecar.local_counts import LocalCounts
from sidecar.ports import Scope
from sidecar.settings import Address, Callers, Limits, Route, Settings, Upstream
from sidecar.waiting_line import Waiting
from tests.core_support import Clock

PROCESS = Scope("process", "", 2)
CHAT = Scope("route", "chat", 2)
FIRST, SECOND = Scope("upstream", "first", 1), Scope("upstream", "second", 1)


class Applicant:
    """Who holds a permit, waits for one, or was told that it gets none."""

    def __init__(self, place: Permit | Waiting, *, has_token: bool = False) -> None:
        self.place = place
        self.failure: Failure | None = None
        self.has_token = has_token
        self.is_over = False
        if isinstance(place, Permit):
            place.holder = self
        else:
            place.applicant = self

    @property
    def is_running(self) -> bool:
        return isinstance(self.place, Permit) and not self.place.is_released

    @property
    def is_preemptible(self) -> bool:
        return not self.has_token

    def admitted(self, permit: Permit) -> None:
        assert isinstance(self.place, Waiting)
        assert self.failure is None
        assert all(self.place.number < number for number in self.place.party.members), "somebody has waited longer"
        self.place = permit
        permit.holder = self

    def refused(self, failure: Failure, now: float) -> None:
        del now
        assert isinstance(self.place, Waiting)
        assert self.failure is None
        self.failure = failure

    def preempt(self, failure: Failure) -> None:
        self.failure = failure

    def end(self) -> None:
        self.place.release()
        self.is_over = True


class Desk:
    """An admission and those who come to it."""

    def __init__(self, *, is_shared: bool = False) -> None:
        self.clock = Clock()
        self.counts = Others() if is_shared else LocalCounts()
        self.admission = Admission(self.counts, self.clock)

    def ask(self, terms: Terms, caller: str = "", **options: Any) -> Applicant:
        return Applicant(self.admission.admit(terms, terms.callers(caller)), **options)

    def refusal(self, terms: Terms, caller: str = "") -> Failure:
        with pytest.raises(Failure) as caught:
            self.ask(terms, caller)
        return caught.value

    def is_empty(self) -> bool:
        return not len(self.counts) and not self.admission.waiting


class Others(LocalCounts):
    """Counts that others take from and give to as well."""

    is_shared = True  # type: ignore[misc]  # what tells the two apart
    __slots__ = ()


def terms(*scopes: Scope, **options: Any) -> Terms:
    return Terms(options.pop("route", "chat"), scopes, **options)


def test_as_many_run_as_every_limit_allows() -> None:
    desk = Desk()
    ones = [desk.ask(terms(PROCESS, CHAT)) for _ in range(2)]
    refused = desk.refusal(terms(PROCESS, route="other"))
    assert (refused.code, refused.http_status, refused.policy) == ("overloaded", 503, ("process", 2))
    ones[0].end()
    assert desk.ask(terms(PROCESS, CHAT)).is_running
    assert desk.counts.used(PROCESS) == 2


def test_a_refusal_takes_nothing() -> None:
    desk = Desk()
    desk.ask(terms(CHAT))
    desk.ask(terms(CHAT))
    refused = desk.refusal(terms(PROCESS, CHAT))
    assert refused.policy == ("route", 2)
    assert desk.counts.used(PROCESS) == 0


def test_the_callers_own_limit_is_its_own_fault() -> None:
    desk = Desk()
    chat = terms(PROCESS, caller_streams=1)
    desk.ask(chat, "ann")
    refused = desk.refusal(chat, "ann")
    assert (refused.code, refused.http_status, refused.policy) == ("caller_limit", 429, ("caller", 1))
    assert desk.ask(chat, "bob").is_running


def test_a_callers_limit_within_a_route_is_that_routes() -> None:
    desk = Desk()
    chat, other = terms(route_caller_streams=1), terms(route_caller_streams=1, route="other")
    desk.ask(chat, "ann")
    assert desk.ask(other, "ann").is_running
    assert desk.refusal(chat, "ann").code == "caller_limit"


def test_one_upstream_with_room_is_enough() -> None:
    desk = Desk()
    both = terms(upstreams=(FIRST, SECOND))
    places = [desk.ask(both).place for _ in range(2)]
    assert [place.upstream for place in places if isinstance(place, Permit)] == [FIRST, SECOND]
    assert desk.refusal(both).policy == ("upstream", 1)


def test_an_upstream_without_a_limit_is_never_full() -> None:
    desk = Desk()
    both = terms(upstreams=(FIRST, Scope("upstream", "free", 0)))
    ones = [desk.ask(both) for _ in range(5)]
    assert all(one.is_running for one in ones)
    for one in ones:
        one.end()
    assert desk.is_empty()


def test_a_permit_moves_between_upstreams() -> None:
    desk = Desk()
    both = terms(upstreams=(FIRST, SECOND))
    permit = desk.ask(both).place
    assert isinstance(permit, Permit)
    assert permit.enter(FIRST)
    assert permit.enter(SECOND)
    assert (desk.counts.used(FIRST), desk.counts.used(SECOND)) == (0, 1)
    other = desk.ask(both).place
    assert not permit.enter(FIRST)
    assert permit.upstream == SECOND
    other.release()
    permit.release()
    assert desk.is_empty()


def test_leaving_an_upstream_lets_somebody_else_in() -> None:
    desk = Desk()
    permit = desk.ask(terms(upstreams=(FIRST, SECOND))).place
    waits = desk.ask(terms(upstreams=(FIRST,), queue=1, route="other"))
    assert isinstance(permit, Permit)
    assert permit.enter(SECOND)
    assert waits.is_running


def test_a_hedge_has_a_place_of_its_own() -> None:
    desk = Desk()
    permit = desk.ask(terms(PROCESS, upstreams=(FIRST, SECOND))).place
    assert isinstance(permit, Permit)
    assert permit.also(SECOND)
    assert not permit.also(Scope("upstream", "third", 0))
    assert desk.counts.used(SECOND) == 1
    permit.leave(FIRST)
    assert (permit.upstream, desk.counts.used(FIRST), desk.counts.used(SECOND)) == (SECOND, 0, 1)
    assert permit.also(FIRST)
    permit.leave(FIRST)
    permit.leave(SECOND)
    assert (permit.upstream, desk.counts.used(FIRST), desk.counts.used(SECOND)) == (SECOND, 0, 1)
    assert permit.also(FIRST)
    permit.release()
    assert not permit.also(FIRST)
    assert desk.is_empty()


def test_a_released_permit_enters_nothing_and_is_given_back_once() -> None:
    desk = Desk()
    permit = desk.ask(terms(PROCESS, upstreams=(FIRST, SECOND))).place
    assert isinstance(permit, Permit)
    permit.release()
    permit.release()
    assert not permit.enter(SECOND)
    assert desk.is_empty()


def test_who_waits_gets_a_place_in_order() -> None:
    desk = Desk()
    chat = terms(CHAT, queue=3)
    ones = [desk.ask(chat) for _ in range(5)]
    assert desk.refusal(chat).code == "overloaded"
    for done in range(5):
        assert [one.is_running for one in ones] == [done <= place < done + 2 for place in range(5)]
        ones[done].end()
    assert desk.is_empty()


def test_a_higher_class_goes_first() -> None:
    desk = Desk()
    low, high = terms(PROCESS, rank=0, queue=9), terms(PROCESS, rank=2, queue=9, route="vip")
    first, second = desk.ask(low), desk.ask(low)
    waits = [desk.ask(low), desk.ask(high), desk.ask(low), desk.ask(high)]
    first.end()
    second.end()
    assert [one.is_running for one in waits] == [False, True, False, True]


def test_nobody_waits_behind_one_who_lacks_another_place() -> None:
    desk = Desk()
    chat, other = terms(PROCESS, upstreams=(FIRST,), queue=9), terms(PROCESS, queue=9, route="other")
    holder, filler = desk.ask(chat), desk.ask(other)
    stuck, free = desk.ask(chat), desk.ask(other)
    filler.end()
    assert (stuck.is_running, free.is_running) == (False, True)
    holder.end()
    assert stuck.is_running


def test_who_had_to_wait_elsewhere_keeps_its_turn() -> None:
    desk = Desk()
    chat, other = terms(PROCESS, upstreams=(FIRST,), queue=9), terms(PROCESS, queue=9, route="other")
    holder, filler = desk.ask(chat), desk.ask(other)
    early = desk.ask(chat)
    between = desk.ask(other)
    filler.end()  # `early` waits for the upstream from now on, `between` runs
    late = desk.ask(other)
    holder.end()
    assert (early.is_running, late.is_running) == (True, False)
    between.end()
    assert late.is_running


def test_a_place_at_either_upstream_will_do() -> None:
    desk = Desk()
    both = terms(upstreams=(FIRST, SECOND), queue=9)
    ones = [desk.ask(both) for _ in range(4)]
    ones[1].end()
    assert [one.is_running for one in ones] == [True, False, True, False]
    ones[0].end()
    assert ones[3].is_running
    for one in ones[2:]:
        one.end()
    assert desk.is_empty()


def test_who_leaves_the_line_is_passed_over() -> None:
    desk = Desk()
    chat = terms(CHAT, queue=3)
    ones = [desk.ask(chat) for _ in range(5)]
    ones[2].end()
    ones[2].end()
    assert desk.admission.waiting == 2
    ones[0].end()
    assert [one.is_running for one in ones] == [False, True, False, True, False]


def test_nobody_waits_longer_than_it_may() -> None:
    desk = Desk()
    quick, slow = terms(PROCESS, queue=9, queue_timeout_s=1.0), terms(PROCESS, queue=9, queue_timeout_s=3.0, route="b")
    ones = [desk.ask(quick), desk.ask(quick)]
    waits = [desk.ask(quick), desk.ask(slow), desk.ask(quick)]
    desk.clock.now += 0.5
    waits.append(desk.ask(quick))
    assert desk.admission.look()
    assert all(each.failure is None for each in waits)
    desk.clock.now += 0.5
    assert desk.admission.look()
    assert [each.failure is not None for each in waits] == [True, False, True, False]
    desk.clock.now += 2.0
    assert not desk.admission.look()
    codes = {each.failure.code for each in waits if each.failure is not None}
    assert (codes, desk.admission.waiting) == ({"overloaded"}, 0)
    for one in ones:
        one.end()
    assert desk.is_empty()


def test_places_that_others_free_are_found() -> None:
    desk = Desk(is_shared=True)
    chat = terms(CHAT, queue=9)
    desk.counts.take((CHAT,))
    desk.counts.take((CHAT,))
    waits = desk.ask(chat)
    desk.counts.give((CHAT,))
    late = desk.ask(chat)
    assert (waits.is_running, late.is_running) == (True, False)
    desk.counts.give((CHAT,))
    assert not desk.admission.look()
    assert late.is_running


def test_places_that_another_configuration_makes_are_found() -> None:
    desk = Desk()
    chat = terms(Scope("route", "chat", 1), queue=9)
    running = desk.ask(chat)
    waits = desk.ask(chat)
    desk.admission.look()
    desk.counts.give((CHAT,))  # as if somebody had left unheard
    desk.clock.now += RECHECK_INTERVAL_S
    desk.admission.look()
    assert running.is_running
    assert waits.is_running


def test_a_higher_class_takes_the_queued_place_of_the_youngest_of_the_lowest() -> None:
    desk = Desk()
    low, normal = terms(PROCESS, rank=0, queue=2, route="l"), terms(PROCESS, rank=1, queue=1, route="n")
    high = terms(PROCESS, rank=2, queue=1, route="h")
    for _ in range(2):
        desk.ask(high)
    waits = [desk.ask(low), desk.ask(low), desk.ask(normal), desk.ask(high)]
    assert desk.refusal(low).code == "overloaded"
    for expected in ([1], [0, 1], [0, 1, 2]):
        last = desk.ask(high)
        out = [number for number, one in enumerate(waits) if one.failure is not None]
        assert out == expected
        assert last.failure is None
        assert desk.admission.waiting == 4
    assert desk.refusal(high).code == "overloaded"


def test_a_taken_place_is_counted_for_the_queue_it_came_from() -> None:
    desk = Desk()
    low, high = terms(PROCESS, rank=0, queue=1, route="l"), terms(PROCESS, rank=2, queue=1, route="h")
    ones = [desk.ask(high), desk.ask(high)]
    desk.ask(low)
    first, second = desk.ask(high), desk.ask(high)
    assert desk.refusal(low).code == "overloaded"
    ones[0].end()
    ones[1].end()
    assert first.is_running
    assert second.is_running
    for one in (first, second):
        one.end()
    assert desk.is_empty()


def test_a_caller_has_no_more_waiting_than_running() -> None:
    desk = Desk()
    chat = terms(route_caller_streams=1, queue=9)
    desk.ask(chat, "ann")
    assert not desk.ask(chat, "ann").is_running
    assert desk.refusal(chat, "ann").code == "caller_limit"
    desk.ask(chat, "bob")
    assert not desk.ask(chat, "bob").is_running


def test_preempting_ends_the_youngest_of_the_lowest_class_without_a_token() -> None:
    desk = Desk()
    three = Scope("process", "", 3)
    low, normal = terms(three, rank=0, route="l"), terms(three, rank=1, route="n")
    vip = terms(three, rank=2, preempts=True, route="h")
    old, middle, young = desk.ask(low), desk.ask(low, has_token=True), desk.ask(normal)
    first = desk.ask(vip)
    assert (old.failure is not None, middle.failure, young.failure) == (True, None, None)
    assert first.is_running
    second = desk.ask(vip)
    assert young.failure is not None
    assert young.failure.code == "preempted"
    assert second.is_running
    assert desk.refusal(vip).code == "overloaded"
    assert desk.counts.used(three) == 3


def test_only_one_who_holds_every_missing_place_is_preempted() -> None:
    desk = Desk()
    full = Scope("process", "", 2)
    low, other = terms(full, rank=0, upstreams=(FIRST,), route="l"), terms(full, rank=0, upstreams=(SECOND,), route="o")
    vip = terms(full, rank=2, preempts=True, upstreams=(FIRST,), route="h")
    held, beside = desk.ask(low), desk.ask(other)
    assert desk.ask(vip).is_running
    assert held.failure is not None
    assert beside.failure is None
    assert desk.refusal(vip).policy == ("process", 2)
    beside.end()
    assert desk.refusal(vip).policy == ("upstream", 1)


def test_a_preempted_place_goes_to_who_waited_first() -> None:
    desk = Desk()
    one_place = Scope("process", "", 1)
    low = terms(one_place, rank=0, queue=9, route="l")
    patient = terms(one_place, rank=2, queue=9, route="p")
    vip = terms(one_place, rank=2, queue=9, preempts=True, route="h")
    held, waits, lower = desk.ask(low), desk.ask(patient), desk.ask(low)
    late = desk.ask(vip)
    assert held.failure is not None
    assert (waits.is_running, late.is_running, lower.is_running) == (True, False, False)
    waits.end()
    assert late.is_running


def test_what_is_refused_in_any_case_is_refused_early() -> None:
    desk = Desk()
    chat = terms(CHAT)
    desk.admission.check(chat)
    for _ in range(2):
        desk.ask(chat)
    with pytest.raises(Failure, match="as many streams as it may"):
        desk.admission.check(chat)
    desk.admission.check(replace(chat, queue=1))
    desk.admission.check(replace(chat, preempts=True))


def test_retry_after_is_how_long_a_place_takes() -> None:
    desk = Desk()
    chat = terms(CHAT, queue=2)
    ones = [desk.ask(chat) for _ in range(2)]
    desk.clock.now += 7.0
    for one in ones:
        one.end()
    ones = [desk.ask(chat) for _ in range(4)]
    assert desk.refusal(chat).retry_after == "11"  # 7 s held, two at once, two wait before it: 7 / 2 * 3
    desk.clock.now += 1000.0
    for one in ones:
        one.end()
    for _ in range(4):
        desk.ask(chat)
    assert desk.refusal(chat).retry_after == "30"


def test_terms_are_what_is_configured() -> None:
    upstream = Upstream("llm", "http", Address("127.0.0.1", 1), "llm")
    route = Route("chat", ("llm",))
    plain = Settings({"llm": upstream}, (route,))
    assert terms_of(route, plain) is None
    assert terms_of(replace(route, limits=Limits(queue=5)), plain) is None
    limited = Settings(
        {"llm": replace(upstream, max_streams=4)}, (route,), max_streams=9, callers=Callers(header="X-User", streams=3)
    )
    found = terms_of(replace(route, limits=Limits(streams=7, caller_streams=2), priority="high", preempt=True), limited)
    assert found is not None
    assert found.scopes == (Scope("process", "", 9), Scope("route", "chat", 7))
    assert found.upstreams == (Scope("upstream", "llm", 4),)
    assert found.callers("ann") == (Scope("caller", "ann", 3), Scope("caller", "chat/ann", 2))
    assert (found.rank, found.preempts) == (RANKS["high"], True)


def looks_at(waiting: int, callers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often places are asked for while ``waiting`` requests of ``callers`` go through two limits in turn."""
    desk = Desk()
    taken = 0
    take = LocalCounts.take

    def counted(self: LocalCounts, scopes: Any) -> Scope | None:
        nonlocal taken
        taken += 1
        return take(self, scopes)

    chat = terms(PROCESS, upstreams=(FIRST,), queue=waiting, caller_streams=waiting)
    other = terms(PROCESS, queue=waiting, route="other")
    running = [desk.ask(chat, "first"), desk.ask(other)]
    waits = [desk.ask((chat, other)[number % 2], f"c{number % callers}") for number in range(waiting)]
    monkeypatch.setattr(LocalCounts, "take", counted)
    while running:
        running.pop(0).end()
        running += [one for one in waits if one.is_running and one not in running]
    monkeypatch.undo()
    assert desk.is_empty()
    return taken


def test_a_place_costs_by_the_parties_not_by_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks_at(400, 1, monkeypatch) < 10 * 400


class Comings(RuleBasedStateMachine):
    """Requests of every kind come, leave, end and change their upstreams, in any order."""

    @initialize(is_shared=st.booleans())
    def begin(self, is_shared: bool) -> None:
        self.desk = Desk(is_shared=is_shared)
        self.everybody: list[tuple[Terms, Applicant]] = []
        small = Scope("process", "", 3)
        self.kinds = [
            terms(small, Scope("route", "a", 2), rank=0, queue=2, queue_timeout_s=4.0, route="a"),
            terms(small, rank=1, queue=2, upstreams=(FIRST, SECOND), caller_streams=2, route="b"),
            terms(small, rank=2, queue=1, upstreams=(FIRST,), preempts=True, route="c"),
            terms(rank=1, route_caller_streams=1, queue=3, route="d"),
            terms(small, rank=2, upstreams=(SECOND, Scope("upstream", "free", 0)), route="e"),
        ]

    def alive(self, is_wanted: Callable[[Applicant], bool]) -> list[Applicant]:
        return [one for _, one in self.everybody if not one.is_over and one.failure is None and is_wanted(one)]

    @rule(kind=st.integers(0, 4), caller=st.sampled_from("xy"), has_token=st.booleans())
    def come(self, kind: int, caller: str, has_token: bool) -> None:
        asked = self.kinds[kind]
        try:
            one = self.desk.ask(asked, caller, has_token=has_token)
        except Failure as failure:
            refusal = failure
        else:
            self.everybody.append((asked, one))
            return
        assert refusal.policy is not None
        assert (refusal.code == "caller_limit") == (refusal.policy[0] == "caller")

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if running := self.alive(lambda one: one.is_running):
            data.draw(st.sampled_from(running)).end()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if waiting := self.alive(lambda one: isinstance(one.place, Waiting)):
            data.draw(st.sampled_from(waiting)).end()

    @rule(data=st.data(), upstream=st.sampled_from([FIRST, SECOND]))
    def move(self, data: st.DataObject, upstream: Scope) -> None:
        movable = self.alive(lambda one: isinstance(one.place, Permit) and one.place.upstream is not None)
        if movable:
            place = data.draw(st.sampled_from(movable)).place
            assert isinstance(place, Permit)
            place.enter(upstream)

    @rule(seconds=st.sampled_from([0.02, 1.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.desk.clock.now += seconds
        self.desk.admission.look()

    @invariant()
    def no_limit_is_passed(self) -> None:
        held: dict[Scope, int] = {}
        for _, one in self.everybody:
            if one.is_running:
                assert isinstance(one.place, Permit)
                upstream = (one.place.upstream,) if one.place.upstream is not None else ()
                for scope in (*one.place._scopes, *upstream):
                    held[scope] = held.get(scope, 0) + 1
        assert all(not scope.limit or count <= scope.limit for scope, count in held.items())
        counted = {scope for scope in held if scope.limit}
        assert {scope: self.desk.counts.used(scope) for scope in counted} == {s: held[s] for s in counted}
        assert len(self.desk.counts) == len(counted)

    @invariant()
    def whoever_waits_is_in_the_line_and_lacks_a_place(self) -> None:
        waiting = [(asked, one) for asked, one in self.everybody if isinstance(one.place, Waiting)]
        waiting = [(asked, one) for asked, one in waiting if not one.is_over and one.failure is None]
        assert self.desk.admission.waiting == len(waiting)
        used = self.desk.counts.used
        for asked, one in waiting:
            assert isinstance(one.place, Waiting)
            full = [scope for scope in one.place.party.scopes if used(scope) >= scope.limit]
            upstreams_full = bool(asked.upstreams) and all(s.limit and used(s) >= s.limit for s in asked.upstreams)
            assert full or upstreams_full

    @precondition(lambda self: len(self.everybody) > 6)
    @rule()
    def all_leave(self) -> None:
        while left := self.alive(lambda _: True):
            left[-1].end()
        for _, one in self.everybody:
            one.place.release()
        assert self.desk.is_empty()
        self.everybody.clear()


TestComings = Comings.TestCase
TestComings.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
