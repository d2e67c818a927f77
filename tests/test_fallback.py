"""What one request may yet ask, told by plain calls: order, shares, budget, backoff, Retry-After and every word to a
health and a permit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.admission import Permit
from sidecar.errors import CODES, Failure, Outcome
from sidecar.fallback import (
    BUDGET_FLOOR_PER_S,
    BUDGET_WINDOW_S,
    FIRST_BACKOFF_S,
    Attempts,
    Budget,
    Fallback,
    Why,
    retry_after_s,
)
from sidecar.ports import Scope
from sidecar.settings import Address, Credentials, CredentialsPolicy, Retry, Route, Upstream

NAMES = ("a", "b", "c")


class Health:
    """One that counts what it is told."""

    def __init__(self) -> None:
        self.is_well = True
        self.admitted = 0
        self.words: list[str] = []
        self.rests_until = 0.0

    def admits(self, now: float) -> bool:
        admits = self.is_well and now >= self.rests_until
        self.admitted += admits
        return admits

    def refusal(self, now: float) -> Failure | None:
        if self.is_well and now >= self.rests_until:
            return None
        return Failure("upstream_unavailable", "not well", retry_after="9")

    def succeeded(self, now: float) -> None:
        self.words.append("succeeded")

    def failed(self, failure: Failure, now: float) -> None:
        self.words.append(failure.code)

    def untold(self) -> None:
        self.words.append("untold")

    def rest(self, until: float) -> None:
        self.rests_until = until


class Counts:
    """Streams at each upstream, limited."""

    is_shared = False

    def __init__(self, limits: dict[str, int]) -> None:
        self.limits = limits
        self.now: Counter[str] = Counter()

    def take(self, scopes: Sequence[Scope]) -> Scope | None:
        for scope in scopes:
            if self.now[scope.name] >= self.limits.get(scope.name, 99):
                return scope
        self.now.update(scope.name for scope in scopes)
        return None

    def give(self, scopes: Sequence[Scope]) -> None:
        self.now.subtract(scope.name for scope in scopes)
        assert min(self.now.values(), default=0) >= 0

    def used(self, scope: Scope) -> int:
        return self.now[scope.name]


class Target:
    def __init__(self, name: str, policy: CredentialsPolicy = "none") -> None:
        self.upstream = Upstream(
            name, "http", Address("127.0.0.1", 1), "test", credentials=Credentials(cast("Any", policy))
        )
        self.told = Health()
        self.scope = Scope("upstream", name, 1)

    @property
    def health(self) -> Any:
        return self.told


class Request:
    """One request of a route to a, b and c."""

    def __init__(
        self,
        *,
        names: Sequence[str] = NAMES,
        limits: dict[str, int] | None = None,
        is_repeatable: bool = True,
        policy: CredentialsPolicy = "none",
        chance: float = 1.0,
        **retry: Any,
    ) -> None:
        self.targets = {name: Target(name, policy) for name in names}
        self.fallback = Fallback(Route("r", tuple(names), retry=Retry(**retry)))
        self.counts = Counts(limits or {})
        self.permit = Permit(self.counts, ())
        self.now = 1000.0
        self.attempts: Attempts[Target] = Attempts(
            self.fallback,
            list(self.targets.values()),
            self.permit,
            lambda: chance,
            lambda: 1_700_000_000.0,
            is_repeatable=is_repeatable,
        )

    def claim(self, **options: Any) -> str | None:
        """Who is asked next; it fails at once."""
        attempt = self.attempts.claim(self.now, **options)
        if attempt is None:
            return None
        self.now += attempt.wait_s
        attempt.failed(Failure("upstream_reset", "reset"), self.now)
        return attempt.target.upstream.name

    def all(self) -> list[str]:
        return list(iter(self.claim, None))

    def reject(self, *headers: tuple[bytes, bytes], status: int = 429) -> bool:
        attempt = self.attempts.claim(self.now)
        assert attempt is not None
        self.now += attempt.wait_s
        attempt.answered(status, self.now)
        return self.attempts.rejected(attempt, status, headers, self.now)

    def assert_told(self) -> None:
        """Every health has heard one word for each time it let somebody in."""
        for target in self.targets.values():
            assert len(target.told.words) == target.told.admitted


# Order and attempts.


@pytest.mark.parametrize(
    ("attempts", "expected"), [(0, "abc"), (1, "a"), (2, "ab"), (3, "abc"), (4, "abca"), (7, "abcabca")]
)
def test_attempts_go_round(attempts: int, expected: str) -> None:
    request = Request(attempts=attempts)
    assert request.all() == list(expected)
    assert request.attempts.reasons[-1] == ("", Why.ATTEMPTS)
    request.assert_told()


def test_what_is_sent_but_once_has_one_attempt_wherever_one_may_be_made() -> None:
    request = Request(attempts=5, is_repeatable=False)
    request.targets["a"].told.is_well = False
    assert request.all() == ["b"]


def test_those_that_are_not_well_or_full_are_passed_over_and_no_attempt_is_lost() -> None:
    request = Request(limits={"b": 0})
    request.targets["a"].told.is_well = False
    assert request.claim() == "c"
    assert request.attempts.reasons == [("a", Why.UNWELL), ("b", Why.FULL)]
    assert request.targets["b"].told.words == ["untold"]
    request.assert_told()


def test_each_once_stays_each_once_when_one_gets_well_again() -> None:
    request = Request()
    request.targets["a"].told.is_well = False
    assert [request.claim(), request.claim()] == ["b", "c"]
    request.targets["a"].told.is_well = True
    assert request.all() == ["a"]


def test_the_place_moves_with_the_request() -> None:
    request = Request()
    for name in NAMES:
        assert request.claim() == name
        assert +request.counts.now == Counter([name])
    request.permit.release()
    assert +request.counts.now == Counter()


def test_two_at_once_hold_two_places_and_the_losers_is_given_back() -> None:
    for loser, left in (("a", "b"), ("b", "a")):
        request = Request()
        first = request.attempts.claim(0.0)
        assert first is not None
        second = request.attempts.claim(0.0, beside=first.target)
        assert second is not None
        assert (second.target.upstream.name, +request.counts.now) == ("b", Counter("ab"))
        request.permit.leave(request.targets[loser].scope)
        assert +request.counts.now == Counter(left)
        request.permit.release()
        request.permit.release()
        assert +request.counts.now == Counter()


def test_beside_one_nobody_is_waited_for_and_nobody_asked_twice() -> None:
    request = Request(names=("a", "b"), attempts=9)
    first = request.attempts.claim(0.0)
    assert first is not None
    assert request.claim(beside=first.target) == "b"
    assert request.claim(beside=first.target) is None
    assert {why for _, why in request.attempts.reasons} == {Why.RUNNING, Why.LATER}


@pytest.mark.parametrize(("limits", "code"), [({}, "upstream_unavailable"), ({"a": 0}, "overloaded")])
def test_why_nobody_was_asked(limits: dict[str, int], code: str) -> None:
    request = Request(limits=limits)
    for name in NAMES[len(limits) :]:
        request.targets[name].told.is_well = False
    assert request.claim() is None
    failure = request.attempts.refusal(request.now)
    assert (failure.code, failure.retry_after) == (code, "" if limits else "9")
    request.assert_told()


# Weights.


@given(st.lists(st.integers(0, 20), min_size=2, max_size=6).filter(any))
def test_each_is_first_as_often_as_its_weight_and_never_in_a_burst(weights: list[int]) -> None:
    names = tuple("abcdef"[: len(weights)])
    fallback = Fallback(Route("r", names, weights=tuple(weights)))
    total = sum(weights)
    for _ in range(3):
        orders = [fallback.order() for _ in range(total)]
        firsts = Counter(order[0] for order in orders)
        assert firsts == {name: weight for name, weight in zip(names, weights, strict=True) if weight}
        for order in orders:
            assert sorted(order) == sorted(names)
            followers = [dict(zip(names, weights, strict=True))[name] for name in order[1:]]
            assert followers == sorted(followers, reverse=True)


def test_the_choice_is_smooth() -> None:
    fallback = Fallback(Route("r", NAMES, weights=(5, 1, 1)))
    assert "".join(fallback.order()[0] for _ in range(7)) == "aabacaa"


def test_without_weights_the_order_is_the_routes() -> None:
    fallback = Fallback(Route("r", NAMES))
    assert [fallback.order() for _ in range(3)] == [NAMES] * 3


# Budget.


@given(
    st.floats(0.0, 1.0),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 40), st.integers(0, 40)), max_size=40),
)
def test_second_tries_stay_a_share_of_requests(share: float, steps: list[tuple[float, int, int]]) -> None:
    budget, now = Budget(share), 0.0
    requests: list[float] = []
    tries: list[float] = []
    for passed_s, asked, wanted in steps:
        now += passed_s
        for _ in range(asked):
            budget.asked(now)
            requests.append(now)
        for _ in range(wanted):
            since = int(now) - BUDGET_WINDOW_S
            recent = sum(int(at) > since for at in requests), sum(int(at) > since for at in tries)
            bound = max(BUDGET_FLOOR_PER_S * BUDGET_WINDOW_S, share * recent[0]) if share else 0
            assert budget.has_another(now) == (recent[1] < bound)
            if recent[1] < bound:
                budget.tried(now)
                tries.append(now)


def test_a_spent_budget_ends_the_tries_and_takes_nothing() -> None:
    request = Request(budget=0.0)
    assert request.all() == ["a"]
    assert request.attempts.reasons == [("", Why.BUDGET)]
    assert [request.targets[name].told.admitted for name in NAMES] == [1, 0, 0]
    assert +request.counts.now == Counter("a")


def test_a_long_outage_is_not_made_worse() -> None:
    """A thousand requests a second at an upstream that fails: as many again would be 2,000, and 20 % are 1,200."""
    fallback = Fallback(Route("r", ("a", "b")))
    targets = [Target("a"), Target("b")]
    asked: Counter[str] = Counter()
    for number in range(20_000):
        attempts: Attempts[Target] = Attempts(fallback, targets, None, lambda: 1.0, lambda: 0.0)
        while (attempt := attempts.claim(number / 1000)) is not None:
            asked[attempt.target.upstream.name] += 1
            attempt.dropped()
    assert asked["a"] == 20_000
    assert asked["b"] <= 0.2 * 20_000 + BUDGET_FLOOR_PER_S * BUDGET_WINDOW_S


# Backoff and Retry-After.


def test_the_same_upstream_is_left_alone_for_a_while() -> None:
    for chance, share in ((0.0, 0.5), (1.0, 1.0)):
        request = Request(names=("a",), attempts=6, max_wait_s=1.5, chance=chance)
        waits = []
        for _ in range(6):
            attempt = request.attempts.claim(request.now)
            assert attempt is not None
            waits.append(attempt.wait_s)
            attempt.dropped()
        assert waits == [0.0, *(min(1.5, FIRST_BACKOFF_S * 2**number * share) for number in range(5))]


@pytest.mark.parametrize(
    ("seconds", "max_wait_s", "expected"), [(1, 2.0, "b a"), (30, 2.0, "b b"), (30, 60.0, "b a"), (0, 0.0, "b a")]
)
def test_retry_after_is_waited_for_or_ends_it_for_that_upstream(seconds: int, max_wait_s: float, expected: str) -> None:
    request = Request(names=("a", "b"), attempts=3, max_wait_s=max_wait_s)
    assert request.reject((b"Retry-After", b"%d" % seconds))
    started = request.now
    assert " ".join(request.all()) == expected
    if expected.endswith("a"):
        assert request.now - started >= seconds
    request.assert_told()


@pytest.mark.parametrize(
    ("policy", "rests"), [("replace", True), ("none", True), ("client", False), ("if_missing", False)]
)
def test_others_leave_it_alone_too_unless_it_spoke_to_one_clients_key(policy: CredentialsPolicy, rests: bool) -> None:
    request = Request(policy=policy)
    assert request.reject((b"Retry-After", b"30"))
    assert (request.targets["a"].told.rests_until == request.now + 30) == rests


@pytest.mark.parametrize("status", [200, 400, 404, 422, 499])
def test_other_answers_are_passed_on(status: int) -> None:
    request = Request()
    assert not request.reject(status=status)
    assert request.targets["b"].told.admitted == 0


def test_the_last_answer_is_passed_on_and_a_ready_one_is_not_lost() -> None:
    request = Request(names=("a", "b"))
    assert request.reject()
    assert not request.reject()
    assert request.claim() is None
    request.assert_told()
    abandoned = Request(names=("a", "b"))
    assert abandoned.reject()
    abandoned.attempts.close()
    assert abandoned.targets["b"].told.words == ["untold"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"Retry-After", b"7")], 7.0),
        ([(b"retry-after-ms", b"250"), (b"Retry-After", b"1")], 0.25),
        ([(b"Retry-After", b"Tue, 14 Nov 2023 22:13:50 GMT")], 30.0),
        ([(b"Retry-After", b"Tue, 14 Nov 2023 22:13:50 GMT"), (b"Date", b"Tue, 14 Nov 2023 22:13:45 GMT")], 5.0),
        ([(b"Retry-After", b"Tue, 14 Nov 2000 22:13:50 GMT")], 0.0),
        ([(b"Retry-After", b"-5")], None),
        ([(b"Retry-After", b"soon")], None),
        ([(b"Retry-After", b"")], None),
        ([], None),
    ],
)
def test_what_an_answer_asks_to_wait(headers: list[tuple[bytes, bytes]], expected: float | None) -> None:
    assert retry_after_s(headers, 1_700_000_000.0) == expected


@given(st.lists(st.tuples(st.sampled_from([b"Retry-After", b"Date", b"Retry-After-Ms"]), st.binary(max_size=40))))
def test_whatever_it_says_is_a_wait_or_nothing(headers: list[tuple[bytes, bytes]]) -> None:
    wait_s = retry_after_s(headers, 1_700_000_000.0)
    assert wait_s is None or wait_s >= 0.0


# Which failures.


def test_which_failures_lead_on() -> None:
    attempts = Request().attempts
    leading = {code for code in CODES if attempts.leads_on(Failure(code, "x"))}
    expected = {
        code
        for code, row in CODES.items()
        if row.outcome in {Outcome.UPSTREAM_UNREACHABLE, Outcome.UPSTREAM_BROKEN, Outcome.TIMED_OUT}
    }
    assert leading == (expected - {"total_timeout"}) | {"upstream_error"}


@pytest.mark.parametrize(
    ("status", "provider_code", "expected"),
    [
        (None, "", True),
        (529, "overloaded_error", True),
        (429, "rate_limit", True),
        (400, "", False),
        (None, "invalid_request_error", False),
        (None, "ValidationException", False),
        (None, "context_length_exceeded", False),
    ],
)
def test_which_errors_in_a_stream_lead_on(status: int | None, provider_code: str, expected: bool) -> None:
    failure = Failure("upstream_error", "x", upstream_status=status, provider_code=provider_code)
    assert Request().attempts.leads_on(failure) == expected


# All together.


@given(
    st.integers(0, 8),
    st.lists(st.tuples(st.sampled_from(NAMES), st.booleans(), st.sampled_from(["failed", "answered", "dropped"]))),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1)),
)
def test_every_admission_is_told_of_once_and_no_place_is_left(
    attempts: int, steps: list[tuple[str, bool, str]], limits: dict[str, int]
) -> None:
    request = Request(attempts=attempts, limits=limits)
    made = 0
    for name, is_well, word in steps:
        request.targets[name].told.is_well = is_well
        attempt = request.attempts.claim(request.now)
        if attempt is None:
            continue
        made += 1
        for each in (word, "dropped", word):
            if each == "failed":
                attempt.failed(Failure("upstream_reset", "x"), request.now)
            elif each == "answered":
                attempt.answered(200, request.now)
            else:
                attempt.dropped()
    assert made <= (attempts or len(NAMES))
    request.permit.release()
    assert +request.counts.now == Counter()
    request.assert_told()
