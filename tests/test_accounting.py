"""What a record says of a stream, told by a clock that only the test moves; and that observers cannot hurt one."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from sidecar.accounting import MAX_NAME, Guarded
from sidecar.answer import Asked
from sidecar.errors import Failure, Outcome
from sidecar.events import Usage
from sidecar.ports import ResponseHead
from sidecar.record import NOBODY
from sidecar.settings import Address, Limits, Route, Timeouts, Upstream
from sidecar.streams import SWEEP_INTERVAL_S, Streams
from tests.core_support import DONE, RESET, Client, Clock, Exchange, Loop, Rig, chunk
from tests.observing import Failing

ROLE = b'data: {"id":"r1","model":"m-1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
QUIET = [ROLE, b": ping\n\n", chunk(""), b"data: \n\n", b"event: ping\ndata: {}\n\n", b":\n\n"]
REASONING = b'data: {"id":"r1","model":"m-1","choices":[{"index":0,"delta":{"reasoning_content":"Hm"}}]}\n\n'
USAGE = b'data: {"id":"r1","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
SEEN = Usage(3, 2, 5, native={"prompt_tokens": 3, "completion_tokens": 2})
FORMATS = pytest.mark.parametrize("format_name", ["typed", "native"])


def passing(rig: Rig, seconds: float, *pieces: bytes) -> Rig:
    """Time passes, then these come."""
    rig.clock.now += seconds
    return rig.feed(pieces)


@FORMATS
def test_the_first_token_is_the_first_content(format_name: str) -> None:
    rig = Rig(format=format_name)
    rig.clock.now += 0.25
    rig.stream.session.body_read_at = rig.clock.now
    rig.clock.now += 0.05
    rig.send().open().feed(QUIET)
    passing(rig, 0.2, REASONING)
    passing(rig, 0.1, chunk(finish="stop"), DONE).end()
    record = rig.record
    start = record.received_at
    marks = [record.body_read_at, record.sent_at, record.first_content_at, record.first_sent_at]
    assert [round(cast("float", mark) - start, 6) for mark in marks] == [0.25, 0.3, 0.5, 0.5]
    assert [round(cast("float", mark) - start, 6) for mark in (record.last_content_at, record.ended_at)] == [0.6, 0.6]
    if format_name == "typed":
        assert rig.events()[-1][1]["ttft_ms"] == pytest.approx(500)


@FORMATS
def test_the_largest_gap_is_between_two_contents(format_name: str) -> None:
    rig = Rig(format=format_name).open()
    passing(rig, 5, *QUIET)
    passing(rig, 3, chunk("a"))
    assert rig.stream.session.largest_gap_s < 0
    waits = [0.01, 0.4, 0.02, 0.9, 0.03, *[0.01] * 40, 0.7]
    for number, wait in enumerate(waits):
        passing(rig, wait, chunk(f"word {number}"))
    passing(rig, 60, b": ping\n\n", chunk("", "stop"), DONE).end()
    assert rig.record.largest_gap_s == pytest.approx(0.9)
    assert (rig.record.content_events, rig.record.outcome) == (len(waits) + 1, Outcome.COMPLETED)


def test_the_gap_counts_in_every_lane() -> None:
    plain = [chunk("a"), chunk("b"), chunk("c"), chunk("d")]
    changing = [chunk("a").replace(b'"c"', b'"c%d"' % number) for number in range(4)]
    joined = [chunk("a"), chunk("b") + chunk("c")[:-5], chunk("c")[-5:] + chunk("d"), chunk("e")]
    for frames in (plain, changing, joined):
        for at in range(1, 4):
            rig = Rig(format="native").open()
            for number, frame in enumerate(frames):
                passing(rig, 2 if number == at else 0.5, frame)
            passing(rig, 9, DONE).end()
            assert rig.record.largest_gap_s == pytest.approx(2), (frames, at)


def test_one_content_has_no_gap_and_none_no_mark() -> None:
    one = passing(Rig().open(), 1, chunk("a", "stop"), DONE).end().record
    assert (one.largest_gap_s, one.content_events) == (None, 1)
    none = Rig().open().feed([ROLE, chunk("", "stop"), DONE]).end().record
    assert (none.largest_gap_s, none.first_content_at, none.first_sent_at, none.last_content_at) == (None,) * 4


def test_what_a_whole_stream_says() -> None:
    rig = Rig().open().feed([ROLE, chunk("a", "length"), USAGE, DONE]).end()
    record = rig.record
    assert (record.stream_id, record.outcome, record.failure) == ("s1", Outcome.COMPLETED, None)
    assert (record.method, record.path, record.http_version, record.scheme) == ("POST", "/x", "1.1", "http")
    assert (record.status, record.upstream_status, record.attempts) == (200, 200, 1)
    assert (record.route, record.route_path, record.upstream) == ("all", "/**", "llm")
    assert (record.server_address, record.server_port) == ("127.0.0.1", 1)
    assert (record.dialect, record.format, record.is_stream) == ("openai-chat", "typed", True)
    assert (record.requested_model, record.sent_model) == ("m", "m")
    assert (record.response_model, record.response_id, record.finish_reasons) == ("m-1", "r1", ("length",))
    assert record.usage == SEEN
    assert (record.warnings, record.content, record.trace) == ((), None, None)
    assert passing(Rig().open(), 0, chunk("a", "stop")).end().record.warnings == ("terminator_missing",)


def test_an_unknown_stream_is_called_what_its_first_frame_is() -> None:
    rig = Rig(dialect="auto").send()
    rig.stream.on_head(
        ResponseHead(200, "OK", [(b"Content-Type", b"text/event-stream")], "1.1", is_eof_delimited=False)
    )
    rig.feed([chunk("a", "stop"), DONE]).end()
    assert (rig.record.dialect, rig.record.response_id) == ("openai-chat", "c")
    assert Rig(dialect="opaque-sse").open().feed(b"data: 1\n\n").end().record.dialect == "opaque-sse"
    assert Rig(dialect="anthropic").send().end(RESET).stream.failure is RESET


def test_the_model_that_was_sent_and_where_to() -> None:
    streams = Streams(clock := Clock(), cast("Any", Loop(clock)), observer=(seen := Rig()).observer)
    upstream = Upstream("llm", "http", Address(path="/run/llm.sock"), "localhost", model_map=(("a-*", "b"),))
    asked = Asked("s", "POST", "/v1/messages", (1, 0), True, "native", True, "a-1", 1, scheme="https")
    stream = streams.open(asked, Route("r", ("llm",)), Client(), clock.now)
    stream.begin(upstream)
    stream.sent(Exchange())
    stream.client_gone()
    record = seen.record
    assert (record.requested_model, record.sent_model) == ("a-1", "b")
    assert (record.server_address, record.server_port) == ("/run/llm.sock", 0)
    assert (record.dialect, record.scheme, record.http_version) == ("anthropic", "https", "1.0")
    assert (record.status, record.upstream_status, record.is_stream) == (None, None, True)


def test_names_are_cut_and_their_words_left_out() -> None:
    long = "n" * 1000
    begun = json.dumps({"id": long, "model": long, "choices": [{"index": 0, "delta": {"content": "a"}}]}).encode()
    error = json.dumps({"error": {"message": "You said: secret", "code": long, "type": "t"}}).encode()
    rig = Rig().open().feed([b"data: " + begun + b"\n\n", b"data: " + error + b"\n\n"]).end()
    record = rig.record
    assert (record.response_id, record.response_model) == ("n" * MAX_NAME, "n" * MAX_NAME)
    failure = cast("Failure", record.failure)
    assert (record.outcome, failure.code, failure.provider_code) == (
        Outcome.UPSTREAM_FAILED,
        "upstream_error",
        "n" * MAX_NAME,
    )
    assert "secret" not in failure.message
    assert (failure.native, failure.__traceback__, failure.__context__) == (None, None, None)
    assert cast("Failure", rig.stream.session.failure).native is not None


def test_of_a_providers_own_counts_few_and_no_other_values_are_held() -> None:
    own: dict[str, Any] = {"prompt_tokens": 3, "details": {"text": "x" * 1000}, "note": "x" * 1000, "is_cut": True}
    own |= {f"count_{number}_{'x' * 1000}": number for number in range(1000)}
    frame = json.dumps({"id": "c", "choices": [], "usage": own}).encode()
    usage = Rig().open().feed([b"data: " + frame + b"\n\n", chunk("a", "stop"), DONE]).end().record.usage
    assert usage is not None
    assert len(usage.native) == 32
    assert usage.native["prompt_tokens"] == usage.input_tokens == 3
    assert all(type(count) is int and len(name) <= MAX_NAME for name, count in usage.native.items())


# Every ending keeps what was seen until then.


def gone(rig: Rig) -> None:
    rig.stream.client_gone()


def cut(rig: Rig) -> None:
    rig.end()


def reset(rig: Rig) -> None:
    rig.end(RESET)


def said(rig: Rig) -> None:
    rig.feed(b'data: {"error":{"message":"m","code":"server_error"}}\n\n').end()


def silence(rig: Rig) -> None:
    rig.pass_time(100)


def crash(rig: Rig) -> None:
    rig.stream.crash()


def shutdown(rig: Rig) -> None:
    rig.streams.end_all()


def stall(rig: Rig) -> None:
    rig.client.is_ready = False
    rig.feed([chunk("x" * 300)] * 4)


def whole(rig: Rig) -> None:
    rig.feed([chunk("", "stop"), DONE]).end()


@pytest.mark.parametrize(
    ("end", "outcome", "code"),
    [
        (whole, Outcome.COMPLETED, None),
        (gone, Outcome.CLIENT_CANCELLED, None),
        (stall, Outcome.CLIENT_TOO_SLOW, "client_too_slow"),
        (cut, Outcome.UPSTREAM_BROKEN, "upstream_truncated"),
        (reset, Outcome.UPSTREAM_BROKEN, "upstream_reset"),
        (said, Outcome.UPSTREAM_FAILED, "upstream_error"),
        (silence, Outcome.TIMED_OUT, "idle_timeout"),
        (crash, Outcome.INTERNAL, "internal"),
        (shutdown, Outcome.SHUT_DOWN, "shutting_down"),
    ],
)
@FORMATS
def test_every_ending_keeps_what_was_seen(format_name: str, end: Any, outcome: Outcome, code: str | None) -> None:
    limits = Limits(buffer_bytes=500, on_slow_client="evict")
    rig = Rig(format=format_name, limits=limits, timeouts=Timeouts(idle_s=60)).open()
    passing(rig, 1, chunk("a"))
    passing(rig, 1, USAGE)
    end(rig)
    record = rig.record
    assert (record.outcome, record.failure and record.failure.code) == (outcome, code)
    assert (record.usage, record.status, record.response_id) == (SEEN, 200, "c")
    assert (record.sent_at, record.first_content_at, record.first_sent_at) == (1000, 1001, 1001)
    rig.assert_settled()


@pytest.mark.parametrize(
    ("end", "outcome", "status"),
    [
        (gone, Outcome.CLIENT_CANCELLED, None),
        (crash, Outcome.INTERNAL, 500),
        (reset, Outcome.UPSTREAM_BROKEN, 502),
        (silence, Outcome.TIMED_OUT, 504),
        (shutdown, Outcome.SHUT_DOWN, 503),
    ],
)
def test_with_nothing_sent_the_status_is_the_doors(end: Any, outcome: Outcome, status: int | None) -> None:
    rig = Rig(timeouts=Timeouts(first_token_s=60)).send()
    end(rig)
    if rig.outcome is None:
        rig.stream.give_up(cast("Failure", rig.stream.failure))
    assert (rig.record.outcome, rig.record.status, rig.record.upstream_status) == (outcome, status, None)
    rig.stream.give_up(RESET)
    rig.stream.crash()
    rig.assert_settled()


def test_of_several_upstreams_the_last_is_told() -> None:
    rig = Rig().send()
    rig.stream.on_head(ResponseHead(200, "OK", [(b"Content-Type", b"text/html")], "1.1", is_eof_delimited=False))
    rig.clock.now += 1
    second = Upstream("second", "http", Address("::1", 2), "second.test")
    assert rig.stream.begin(second)
    rig.stream.on_fail(Failure("upstream_refused", "no"), may_resend=False)
    rig.stream.give_up(cast("Failure", rig.stream.failure))
    record = rig.record
    assert (record.upstream, record.server_address, record.attempts) == ("second", "::1", 2)
    assert (record.outcome, record.upstream_status, record.sent_at) == (Outcome.UPSTREAM_UNREACHABLE, None, None)


def test_an_answer_before_the_upload_is_through_has_no_upstream_time() -> None:
    rig = Rig()
    assert rig.stream.begin(rig.upstream)
    rig.stream.sent(rig.exchange, is_whole=False)
    headers = [(b"Content-Type", b"text/event-stream")]
    rig.stream.on_head(ResponseHead(200, "OK", headers, "1.1", is_eof_delimited=False))
    passing(rig, 1, chunk("a"))
    rig.clock.now += 1
    rig.stream.body_sent()
    rig.feed([chunk("", "stop"), DONE]).end()
    assert (rig.record.sent_at, rig.record.body_read_at, rig.record.first_content_at) == (None, 1002, 1001)


# Observers.


def test_an_observer_that_fails_hurts_nobody_and_is_told_of_once() -> None:
    told: list[Exception] = []
    observer = Guarded(Failing(), told.append)
    assert observer.started({}) is None
    rig = Rig()
    rig.streams.observer = observer
    rig.streams.start()
    rig.open().feed([chunk("a", "stop"), DONE]).end()
    rig.clock.now += SWEEP_INTERVAL_S
    rig.loop.run_due()
    assert rig.outcome is Outcome.COMPLETED
    assert (rig.client.ends, len(rig.streams), len(rig.loop.timers)) == (["finish"], 0, 1)
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_nobody_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.accounting.Record", None)
    rig = Rig()
    rig.streams.observer = Guarded(NOBODY, lambda _error: pytest.fail("nobody failed"))
    assert rig.streams.observer.started({}) is None
    rig.open().feed([chunk("a", "stop"), DONE]).end()
    assert (rig.outcome, rig.observer.records) == (Outcome.COMPLETED, [])


def test_how_late_the_sweep_comes_is_told() -> None:
    rig = Rig()
    rig.streams.start()
    for late_s in (0.0, 0.004, 1.5, 0.0):
        rig.clock.now += SWEEP_INTERVAL_S + late_s
        rig.loop.run_due()
    assert rig.observer.lates == pytest.approx([0.0, 0.004, 1.5, 0.0])
