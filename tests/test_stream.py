"""One stream between two fakes: its buffer policy, its deadlines, and its one ending on every path."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from sidecar.errors import Failure, Outcome
from sidecar.fallback import Attempt
from sidecar.settings import Limits, Timeouts
from sidecar.streams import SWEEP_INTERVAL_S
from tests.core_support import DONE, RESET, Promise, Rig, chunk

SMALL = Limits(buffer_bytes=2000, stall_timeout_s=10.0)
EVICT = Limits(buffer_bytes=2000, on_slow_client="evict", stall_timeout_s=10.0)
QUICK = Timeouts(first_token_s=5.0, idle_s=3.0, total_s=60.0)
WHOLE = chunk() + chunk("", "stop") + DONE


def is_settled(rig: Rig) -> bool:
    return cast("Promise", rig.stream.settled).done()


# The plain way through.


def test_typed_is_over_at_the_terminator_and_the_rest_is_drained() -> None:
    rig = Rig().open().feed(WHOLE)
    assert (rig.outcome, rig.client.ends, rig.exchange.calls) == (Outcome.COMPLETED, ["finish"], ["drain"])
    assert [name for name, _ in rig.events()] == ["start", "token", "done"]
    rig.assert_settled()


def test_native_waits_for_the_bodys_own_end() -> None:
    rig = Rig(format="native").open().feed(WHOLE)
    assert len(rig.streams) == 1
    rig.end()
    assert (rig.outcome, rig.client.body, rig.client.ends) == (Outcome.COMPLETED, WHOLE, ["finish"])
    rig.assert_settled()


@pytest.mark.parametrize("body", [WHOLE, DONE])
def test_native_does_not_wait_longer_than_a_second_after_the_terminator(body: bytes) -> None:
    rig = Rig(format="native").open().feed(body)
    rig.pass_time(SWEEP_INTERVAL_S)
    assert len(rig.streams) == 1
    rig.pass_time(1.0)
    assert (rig.outcome, rig.client.ends, rig.exchange.calls) == (Outcome.COMPLETED, ["finish"], ["abort"])
    rig.assert_settled()


def test_the_body_is_let_go_of_when_the_answer_begins() -> None:
    rig = Rig(body=b"x" * 500).send()
    assert rig.streams.body_bytes == 500
    rig.open()
    assert rig.streams.body_bytes == 0


def test_ttft_is_from_the_request_to_the_first_content_sent() -> None:
    rig = Rig().send()
    rig.clock.now += 0.5
    rig.open().feed(b": ping\n\n")
    rig.clock.now += 0.25
    rig.feed(WHOLE)
    done = rig.events()[-1][1]
    assert (done["ttft_ms"], done["duration_ms"]) == (750.0, 750.0)


# Failures.


def test_a_failure_with_nothing_sent_is_the_doors_to_tell() -> None:
    rig = Rig().send().end(RESET)
    assert (rig.outcome, rig.stream.failure, is_settled(rig)) == (None, RESET, True)
    rig.stream.give_up(RESET)
    assert rig.outcome is Outcome.UPSTREAM_BROKEN
    rig.assert_settled()


def test_a_dead_idle_connection_is_worth_another() -> None:
    rig = Rig().send()
    rig.stream.on_fail(RESET, may_resend=True)
    assert rig.stream.may_resend
    assert rig.stream.begin(rig.upstream)
    assert not rig.stream.may_resend
    rig.stream.sent(rig.exchange)
    rig.open().feed(WHOLE)
    rig.assert_settled()


def test_a_typed_client_is_told_and_the_native_one_gets_no_last_chunk() -> None:
    typed, native = (Rig(format=name).open().feed(chunk()).end(RESET) for name in ("typed", "native"))
    assert [name for name, _ in typed.events()][-2:] == ["error", "done"]
    assert (typed.client.ends, typed.stream.keep_alive) == (["finish"], True)
    assert (native.client.ends, native.stream.keep_alive) == ([], False)
    assert native.client.body.endswith(b"\n\n")
    assert DONE not in native.client.body
    for rig in (typed, native):
        assert rig.code == "upstream_reset"
        rig.assert_settled()


def test_a_page_instead_of_a_stream() -> None:
    rig = Rig().open(content_type="text/html")
    assert (rig.code, rig.client.head, rig.exchange.calls) == ("upstream_not_a_stream", b"", ["abort"])


@pytest.mark.parametrize("format_name", ["typed", "native"])
def test_an_error_status(format_name: str) -> None:
    rig = Rig(format=format_name).open(429, content_type="application/json").feed(b'{"error":{"message":"m"}}').end()
    if format_name == "typed":
        assert (rig.client.head, rig.code) == (b"", "upstream_status")
        rig.stream.give_up(cast("Failure", rig.stream.failure))
    else:
        assert rig.client.head.startswith(b"HTTP/1.1 429 ")
        assert (rig.client.body, rig.client.ends) == (b'{"error":{"message":"m"}}', ["finish"])
    assert rig.outcome is Outcome.UPSTREAM_REJECTED
    rig.assert_settled()


def test_a_frame_too_large() -> None:
    rig = Rig(limits=Limits(max_frame_bytes=300)).open().feed(chunk()).feed(chunk("x" * 400))
    assert (rig.code, rig.exchange.calls) == ("frame_too_large", ["abort"])
    assert rig.events()[-1][1]["status"] == "failed"
    rig.assert_settled()


def test_a_bug_ends_this_stream_and_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig().open().feed(chunk())

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(rig.stream.answer.relay), "feed", broken)  # type: ignore[union-attr]  # opened above
    with pytest.raises(ZeroDivisionError):
        rig.feed(chunk())
    assert (rig.code, rig.events()[-1][1]["status"]) == ("internal", "failed")
    rig.assert_settled()


@pytest.mark.parametrize("format_name", ["typed", "native"])
@pytest.mark.parametrize("dialect", ["raw", "opaque-sse", "opaque-ndjson"])
@pytest.mark.parametrize(
    ("is_eof_delimited", "eof", "expected"),
    [(False, "truncated", None), (True, "truncated", "upstream_truncated"), (True, "complete", None)],
)
def test_a_stream_without_marks_that_only_the_connection_ends(
    format_name: str, dialect: str, is_eof_delimited: bool, eof: Any, expected: str | None
) -> None:
    rig = Rig(dialect=dialect, format=format_name, eof=eof).open(is_eof_delimited=is_eof_delimited)
    rig.feed(b"data: 1\n\n").end()
    assert rig.code == expected
    assert (rig.outcome is Outcome.COMPLETED) == (expected is None)
    rig.assert_settled()


# What comes too late.


@pytest.mark.parametrize("late", [RESET, Failure("bad_request", "the upload broke")])
def test_a_late_failure_changes_nothing(late: Failure) -> None:
    gone = Rig().send()
    gone.stream.client_gone()
    flushing = Rig(format="native", capacity=1).open().feed([WHOLE, WHOLE]).end()
    for rig, outcome in ((gone, Outcome.CLIENT_CANCELLED), (flushing, None)):
        rig.stream.fail(late)
        rig.stream.on_fail(late, may_resend=False)
        assert rig.outcome is outcome
    flushing.client.drain()
    flushing.stream.client_writable()
    assert flushing.outcome is Outcome.COMPLETED
    flushing.assert_settled()


def test_no_upstream_is_asked_for_a_client_that_has_left() -> None:
    rig = Rig()
    rig.stream.client_gone()
    assert not rig.stream.begin(rig.upstream)
    assert not rig.stream.dialed()
    rig.assert_settled()


# The client's departure.


class Dial:
    """A connection in the making."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> bool:
        self.is_cancelled = True
        return True


def test_leaving_cancels_the_dial() -> None:
    rig = Rig()
    dial = Dial()
    rig.stream.begin(rig.upstream)
    rig.stream.dialing(dial)
    rig.stream.client_gone()
    assert dial.is_cancelled
    assert rig.outcome is Outcome.CLIENT_CANCELLED
    rig.assert_settled()


@pytest.mark.parametrize("phase", ["waiting", "headers", "streaming", "blocked"])
@pytest.mark.parametrize("format_name", ["typed", "native"])
def test_leaving_aborts_the_upstream_before_it_returns(phase: str, format_name: str) -> None:
    rig = Rig(format=format_name, limits=SMALL, capacity=1 if phase == "blocked" else None).send()
    if phase != "waiting":
        rig.open()
    if phase in {"streaming", "blocked"}:
        rig.feed([chunk("x" * 500)] * 10)
    rig.stream.client_gone()
    assert rig.exchange.calls[-1] == "abort"
    assert (rig.outcome, rig.client.ends) == (Outcome.CLIENT_CANCELLED, ["abort"])
    rig.stream.client_gone()
    rig.assert_settled()


def test_an_unread_client_is_looked_for_until_it_is_read_again() -> None:
    rig = Rig().send()
    rig.stream.client_unread(True)
    rig.clock.now += 0.005
    rig.loop.run_due()
    assert rig.outcome is None
    rig.client.has_left = True
    rig.stream.client_unread(False)
    rig.clock.now += 0.005
    rig.loop.run_due()
    assert rig.outcome is None
    rig.stream.client_unread(True)
    rig.clock.now += 0.005
    rig.loop.run_due()
    assert rig.outcome is Outcome.CLIENT_CANCELLED
    rig.assert_settled()


# Buffers.


def test_pause_holds_the_upstream_back_until_most_has_drained() -> None:
    rig = Rig(format="native", limits=SMALL, capacity=1).open()
    sent = []
    while not rig.exchange.is_paused:
        sent.append(chunk("x" * 300))
        rig.feed(sent[-1])
    assert rig.stream.buffered_bytes <= SMALL.buffer_bytes + 2 * len(sent[-1])
    while rig.exchange.is_paused:
        rig.client.drain()
        rig.stream.client_writable()
    assert rig.stream.lag_bytes - rig.client.unsent <= SMALL.buffer_bytes // 8
    rig.feed(WHOLE).end()
    while rig.outcome is None:
        rig.client.drain()
        rig.stream.client_writable()
    assert rig.client.body == b"".join(sent) + WHOLE
    # The rest of the stream was too much for this client as well, and ended while the upstream was held back.
    assert rig.exchange.calls == ["pause", "resume", "pause"]
    rig.assert_settled()


def test_evict_lets_a_client_go_that_falls_behind() -> None:
    rig = Rig(limits=EVICT, capacity=1).open()
    rig.feed([chunk("x" * 300)] * 30)
    assert (rig.outcome, rig.code) == (Outcome.CLIENT_TOO_SLOW, "client_too_slow")
    assert (rig.exchange.calls, rig.client.ends) == (["abort"], ["abort"])
    rig.assert_settled()


def test_a_slow_but_steady_client_stays() -> None:
    rig = Rig(format="native", limits=SMALL, capacity=1).open().feed([chunk()] * 3)
    rig.stream.client_blocked()
    for _ in range(40):
        rig.client.unsent -= 1
        rig.pass_time(1.0)
    assert rig.outcome is None
    rig.pass_time(1.0).pass_time(SMALL.stall_timeout_s + 1)
    assert rig.outcome is Outcome.CLIENT_TOO_SLOW
    rig.assert_settled()


def test_a_tail_that_is_never_read_ends_as_too_slow() -> None:
    rig = Rig(limits=SMALL, capacity=1).open().feed(chunk())
    rig.stream.client_blocked()
    rig.feed(WHOLE)
    assert (rig.outcome, rig.stream.phase) == (None, "flushing")
    rig.pass_time(1.0).pass_time(SMALL.stall_timeout_s + 1)
    assert rig.outcome is Outcome.CLIENT_TOO_SLOW
    rig.assert_settled()


# Deadlines.


def test_comments_and_empty_deltas_do_not_satisfy_first_token() -> None:
    rig = Rig(timeouts=QUICK).open()
    for _ in range(6):
        rig.feed(b": ping\n\n" + chunk("")).pass_time(1.0)
    assert (rig.code, rig.outcome, rig.exchange.calls) == ("first_token_timeout", Outcome.TIMED_OUT, ["abort"])
    assert rig.events()[-1][1]["status"] == "timed_out"
    rig.assert_settled()


def test_first_token_before_headers_is_the_doors_to_tell() -> None:
    rig = Rig(timeouts=QUICK).send().pass_time(6.0)
    assert (rig.code, rig.outcome, is_settled(rig)) == ("first_token_timeout", None, True)


def test_the_headers_of_a_plain_answer_satisfy_first_token() -> None:
    rig = Rig(timeouts=QUICK, wants_stream=False).open(content_type="application/json")
    for _ in range(10):
        rig.feed(b"{").pass_time(2.0)
    assert rig.outcome is None
    rig.pass_time(2.0)
    assert rig.code == "idle_timeout"
    rig.assert_settled()


def test_idle_counts_from_the_last_bytes() -> None:
    rig = Rig(timeouts=QUICK).open().feed(chunk())
    for _ in range(5):
        rig.pass_time(2.0).feed(b": ping\n\n")
    assert rig.outcome is None
    rig.pass_time(3.5)
    assert rig.code == "idle_timeout"
    rig.assert_settled()


def test_idle_stands_still_while_the_upstream_is_paused() -> None:
    rig = Rig(format="native", timeouts=QUICK, limits=Limits(buffer_bytes=100, stall_timeout_s=50), capacity=1).open()
    rig.feed([chunk()] * 3)
    rig.stream.client_blocked()
    for _ in range(10):
        rig.pass_time(1.0)
    assert (rig.outcome, rig.exchange.is_paused) == (None, True)
    while rig.exchange.is_paused:
        rig.client.drain()
        rig.stream.client_writable()
    rig.client.drain()
    rig.pass_time(2.0)
    assert rig.outcome is None
    rig.pass_time(2.0)
    assert rig.code == "idle_timeout"
    rig.assert_settled()


def test_total_ends_whatever_goes_on() -> None:
    rig = Rig(timeouts=QUICK).open()
    for _ in range(61):
        rig.feed(chunk()).pass_time(1.0)
    assert rig.code == "total_timeout"
    rig.assert_settled()


def test_total_passes_while_another_upstream_is_dialled() -> None:
    rig = Rig(timeouts=QUICK).send().pass_time(6.0)
    assert rig.code == "first_token_timeout"
    assert rig.stream.begin(rig.upstream)
    dial = Dial()
    rig.stream.dialing(dial)
    rig.pass_time(60.0).pass_time(1.0)
    assert (rig.code, rig.outcome, dial.is_cancelled, is_settled(rig)) == ("total_timeout", None, True, True)
    rig.stream.on_fail(RESET, may_resend=False)
    assert rig.code == "total_timeout"


def test_an_ended_stream_is_not_watched() -> None:
    rig = Rig().open().feed(WHOLE)
    rig.stream.client_unread(True)
    assert rig.outcome is Outcome.COMPLETED
    assert rig.loop.timers == []


def test_total_lets_go_of_a_client_that_is_behind() -> None:
    rig = Rig(timeouts=QUICK, limits=Limits(stall_timeout_s=1000), capacity=1).open().feed(chunk())
    rig.stream.client_blocked()
    rig.feed(WHOLE).pass_time(61.0)
    assert rig.outcome is Outcome.CLIENT_TOO_SLOW
    rig.assert_settled()


def test_heartbeats_fill_silence_only() -> None:
    rig = Rig(heartbeat_s=2.0).open().feed(chunk())
    rig.pass_time(1.0).feed(chunk())
    rig.pass_time(1.5)
    assert b"keep-alive" not in rig.client.body
    rig.pass_time(1.0)
    rig.pass_time(2.0)
    assert rig.client.body.count(b": keep-alive\n\n") == 2


def test_heartbeats_come_in_a_long_prefill() -> None:
    rig = Rig(heartbeat_s=15.0).send().pass_time(1.0).open()
    for _ in range(41):
        rig.pass_time(1.0)
    assert rig.client.body.count(b": keep-alive\n\n") == 2


# Shutdown.


@pytest.mark.parametrize("format_name", ["typed", "native"])
def test_shutdown_tells_who_can_be_told(format_name: str) -> None:
    rig = Rig(format=format_name).open().feed(chunk())
    rig.streams.end_all()
    assert (rig.outcome, rig.code, rig.exchange.calls) == (Outcome.SHUT_DOWN, "shutting_down", ["abort"])
    if format_name == "typed":
        assert [name for name, _ in rig.events()][-2:] == ["error", "done"]
        assert rig.events()[-1][1]["status"] == "interrupted"
    rig.assert_settled()


def test_shutdown_cuts_off_who_is_behind() -> None:
    rig = Rig(capacity=1).open().feed([chunk()] * 3)
    rig.streams.end_all()
    assert (rig.outcome, rig.client.ends) == (Outcome.SHUT_DOWN, ["abort"])
    rig.assert_settled()


@pytest.mark.parametrize("phase", ["dialing", "waiting"])
def test_shutdown_before_an_answer_is_the_doors_to_tell(phase: str) -> None:
    rig = Rig()
    if phase == "dialing":
        rig.stream.begin(rig.upstream)
        rig.stream.dialing(Dial())
    else:
        rig.send()
    rig.streams.end_all()
    assert (rig.code, rig.outcome, is_settled(rig)) == ("shutting_down", None, True)
    rig.stream.give_up(cast("Failure", rig.stream.failure))
    rig.assert_settled()


class Told:
    """Counts what health is told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def succeeded(self, now: float) -> None:
        self.words.append("succeeded")

    def failed(self, failure: Failure, now: float) -> None:
        self.words.append(failure.code)

    def untold(self) -> None:
        self.words.append("untold")


def attempt_of(health: Told) -> Attempt[Any]:
    return Attempt(cast("Any", SimpleNamespace(health=health)))


def test_health_hears_of_content_though_the_client_is_behind() -> None:
    health, rig = Told(), Rig(capacity=1)
    assert rig.stream.begin(rig.upstream, attempt_of(health))
    rig.stream.sent(rig.exchange)
    rig.client.is_ready = False
    rig.open().feed(chunk())
    assert health.words == ["succeeded"]
    rig.stream.client_gone()
    assert health.words == ["succeeded"]


def test_health_hears_that_nothing_came_of_a_stream_that_is_over() -> None:
    health, rig = Told(), Rig()
    assert rig.stream.begin(rig.upstream, attempt_of(health))
    rig.stream.sent(rig.exchange)
    rig.open()
    rig.stream.client_gone()
    assert health.words == ["untold"]


def test_a_shutdown_leaves_nothing_to_send_again() -> None:
    rig = Rig().send()
    rig.stream.on_fail(RESET, may_resend=True)
    rig.stream.shut_down()
    assert rig.stream.failure is not None
    assert (rig.stream.failure.code, rig.stream.may_resend) == ("shutting_down", False)
