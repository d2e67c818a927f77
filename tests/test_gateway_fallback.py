"""Another upstream is asked, over real sockets: after every kind of failure, in every mode of commit and format."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.errors import Outcome
from sidecar.relay import Relay
from sidecar.settings import Retry, Timeouts
from tests.app_support import LAST_CHUNK, SSE_HEAD, Reply, ask, asked, before, chunk, on_uvloop, plain, stream
from tests.fallback_support import (
    BEFORE_CONTENT,
    BEFORE_HEAD,
    BUSY,
    ERROR,
    GOOD,
    GOOD_BODY,
    ROLE,
    Act,
    acting,
    nobody,
    says,
)
from tests.observing import Observing

FORMATS = pytest.mark.parametrize("format_name", ["native", "typed"])
QUICK: dict[str, Any] = {"timeouts": Timeouts(first_token_s=0.05)}
MODES = ("headers", "first_content", "request")
CASES = [
    *((name, act, commit) for name, act in BEFORE_HEAD.items() for commit in MODES),
    *((name, act, commit) for name, act in BEFORE_CONTENT.items() for commit in MODES[1:]),
]
each_case = pytest.mark.parametrize(
    ("act", "commit"), [pytest.param(act, commit, id=f"{name}-{commit}") for name, act, commit in CASES]
)


def in_format(name: str, **body: Any) -> bytes:
    return ask(headers=[("X-Stream-Format", name)], **body)


def assert_good(reply: Reply, format_name: str, upstream: str = "second") -> None:
    """The good answer, once, and nothing of any other."""
    assert (reply.status, reply.is_whole) == (200, True)
    if format_name == "native":
        assert reply.body == GOOD_BODY
        return
    events = reply.events()
    assert [name for name, _ in events] == ["start", "token", "token", "usage", "done"]
    assert (events[0][1]["upstream"], events[-1][1]["status"]) == (upstream, "completed")


@FORMATS
@each_case
@on_uvloop
async def test_the_next_upstream_answers(act: Act, commit: str, format_name: str) -> None:
    observer = Observing()
    async with (
        acting(act) as first,
        acting(says(GOOD, then="go on")) as second,
        before(first.address, second.address, route={"commit": commit}, upstream=QUICK, observer=observer) as app,
    ):
        assert_good(await asked(app, in_format(format_name)), format_name)
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}
        assert (len(first.requests), len(second.requests)) == (1, 1)
    (record,) = observer.records
    assert (record.upstream, record.attempts, record.upstream_status, record.status) == ("second", 2, 200, 200)
    assert record.sent_at is not None and record.first_content_at is not None  # noqa: PT018 - for mypy
    assert record.received_at <= record.sent_at <= record.first_content_at
    assert (record.content_events, record.failure) == (2, None)


@FORMATS
@pytest.mark.parametrize("commit", MODES)
@on_uvloop
async def test_nobody_there(commit: str, format_name: str) -> None:
    async with (
        nobody() as address,
        acting(says(GOOD, then="go on")) as second,
        before(address, second.address, route={"commit": commit}) as app,
    ):
        assert_good(await asked(app, in_format(format_name)), format_name)


@FORMATS
@pytest.mark.parametrize(("name", "act"), BEFORE_CONTENT.items())
@on_uvloop
async def test_by_default_the_head_commits(name: str, act: Act, format_name: str) -> None:
    """What fails behind it is told in the stream, and nobody else is asked."""
    async with (
        acting(act) as first,
        acting(says(GOOD, then="go on")) as second,
        before(first.address, second.address, upstream=QUICK) as app,
    ):
        reply = await asked(app, in_format(format_name))
        assert (reply.status, second.requests) == (200, [])
        assert Outcome.COMPLETED not in app.streams.outcomes, name
        if format_name == "typed":
            assert [event for event, _ in reply.events()][-2:] == ["error", "done"]


ENDS = [
    ("nothing", 502, "upstream_reset", Outcome.UPSTREAM_BROKEN),
    ("html", 502, "upstream_not_a_stream", Outcome.UPSTREAM_BROKEN),
    ("silence", 504, "first_token_timeout", Outcome.TIMED_OUT),
    ("pings_only", 504, "first_token_timeout", Outcome.TIMED_OUT),
    ("cut_behind_role", 502, "upstream_truncated", Outcome.UPSTREAM_BROKEN),
    ("clean_end_behind_role", 502, "upstream_truncated", Outcome.UPSTREAM_BROKEN),
    ("error_behind_role", 502, "upstream_error", Outcome.UPSTREAM_FAILED),
    ("error_in_one_read", 502, "upstream_error", Outcome.UPSTREAM_FAILED),
]


@FORMATS
@pytest.mark.parametrize("upstreams", [1, 2])
@pytest.mark.parametrize(("name", "status", "code", "outcome"), ENDS)
@on_uvloop
async def test_before_content_a_failure_is_an_http_error(
    name: str, status: int, code: str, outcome: Outcome, upstreams: int, format_name: str
) -> None:
    observer = Observing()
    act = {**BEFORE_HEAD, **BEFORE_CONTENT}[name]
    async with acting(act) as first, acting(act) as second:
        addresses = [first.address, second.address][:upstreams]
        route = {"commit": "first_content"}
        async with before(*addresses, route=route, upstream=QUICK, observer=observer) as app:
            reply = await asked(app, in_format(format_name))
            assert (reply.status, reply.json()["error"]["code"], reply.is_whole) == (status, code, True)
            assert app.streams.outcomes == {outcome: 1}
    (record,) = observer.records
    assert (record.status, record.attempts) == (status, upstreams)


@FORMATS
@pytest.mark.parametrize("upstreams", [1, 2])
@pytest.mark.parametrize(("name", "code", "outcome"), [(name, code, outcome) for name, _, code, outcome in ENDS])
@on_uvloop
async def test_in_an_answer_that_has_begun_it_is_told_there(
    name: str, code: str, outcome: Outcome, upstreams: int, format_name: str
) -> None:
    observer = Observing()
    act = {**BEFORE_HEAD, **BEFORE_CONTENT}[name]
    async with acting(act) as first, acting(act) as second:
        addresses = [first.address, second.address][:upstreams]
        route = {"commit": "request"}
        async with before(*addresses, route=route, upstream=QUICK, observer=observer) as app:
            reply = await asked(app, in_format(format_name))
            assert app.streams.outcomes == {outcome: 1}
    assert reply.status == 200
    assert (reply.header("Content-Type") or "").startswith("text/event-stream")
    if format_name == "typed":
        events = reply.events()
        assert [event for event, _ in events] == ["start", "error", "done"]
        assert (events[1][1]["code"], reply.is_whole) == (code, True)
    else:
        is_its_own_word = code == "upstream_error"
        assert reply.body.count(b'"error"') == 1
        assert (b"[DONE]" in reply.body) == is_its_own_word
        assert reply.is_whole == is_its_own_word
    (record,) = observer.records
    assert (record.status, record.attempts) == (200, upstreams)


@FORMATS
@pytest.mark.parametrize("commit", MODES[:2])
@on_uvloop
async def test_the_last_answer_is_passed_on_as_it_is(commit: str, format_name: str) -> None:
    own = plain(
        b'{"error":{"message":"all busy"}}', "429 Slow", [("Content-Type", "application/json"), ("Retry-After", "7")]
    )
    observer = Observing()
    async with (
        acting(says(BUSY, then="go on")) as first,
        acting(says(own, then="go on")) as second,
        before(first.address, second.address, route={"commit": commit}, observer=observer) as app,
    ):
        reply = await asked(app, in_format(format_name))
        assert (reply.status, reply.header("Retry-After")) == (429, "7")
        assert b"all busy" in reply.body
        if format_name == "native":
            assert reply.json() == {"error": {"message": "all busy"}}
        assert app.streams.outcomes == {Outcome.UPSTREAM_REJECTED: 1}
    (record,) = observer.records
    assert (record.upstream, record.attempts, record.upstream_status, record.status) == ("second", 2, 429, 429)


@FORMATS
@on_uvloop
async def test_a_rejection_in_an_answer_that_has_begun(format_name: str) -> None:
    async with acting(says(BUSY, then="go on")) as first, before(first.address, route={"commit": "request"}) as app:
        reply = await asked(app, in_format(format_name))
        assert app.streams.outcomes == {Outcome.UPSTREAM_REJECTED: 1}
    assert (reply.status, reply.is_whole) == (200, format_name == "typed")
    if format_name == "typed":
        error = reply.events()[1][1]
        assert (error["code"], error["message"], error["upstream_status"]) == ("upstream_status", "busy", 503)
    else:
        assert reply.body.startswith(b"data: ") and b"busy" in reply.body  # noqa: PT018 - one frame


@pytest.mark.parametrize("status", [400, 401, 404, 422])
@pytest.mark.parametrize("commit", MODES)
@on_uvloop
async def test_bad_requests_ask_nobody_else(commit: str, status: int) -> None:
    rejected = plain(b'{"error":{"message":"bad"}}', f"{status} No")
    async with (
        acting(says(rejected, then="go on")) as first,
        acting(says(GOOD, then="go on")) as second,
        before(first.address, second.address, route={"commit": commit}) as app,
    ):
        reply = await asked(app, in_format("native"))
        assert (reply.status, second.requests) == (200 if commit == "request" else status, [])


@on_uvloop
async def test_attempts_bound_the_tries_and_more_go_round_again() -> None:
    for attempts, expected in ((1, (1, 0)), (2, (1, 1)), (3, (2, 1)), (5, (3, 2))):
        retry = Retry(attempts=attempts, max_wait_s=0.0)
        async with (
            acting(says(BUSY, then="go on")) as first,
            acting(says(then="reset")) as second,
            before(first.address, second.address, route={"retry": retry}) as app,
        ):
            await asked(app, ask())
            assert (len(first.requests), len(second.requests)) == expected


@on_uvloop
async def test_one_upstream_may_be_asked_again() -> None:
    answers = [BUSY, BUSY, GOOD]
    async with acting(lambda peer: peer.send(answers.pop(0))) as only:
        observer = Observing()
        retry = Retry(attempts=3, max_wait_s=0.01)
        async with before(only.address, route={"retry": retry}, observer=observer) as app:
            assert_good(await asked(app, in_format("native")), "native")
            assert len(only.requests) == 3
            assert len(only.server.peers) == 1
    assert observer.records[0].attempts == 3


@on_uvloop
async def test_other_statuses_and_none() -> None:
    teapot = plain(b"{}", "418 Teapot")
    for statuses, asks in (((418,), 1), ((503,), 0), ((), 0)):
        retry = Retry(statuses=statuses)
        async with (
            acting(says(teapot, then="go on")) as first,
            acting(says(GOOD, then="go on")) as second,
            before(first.address, second.address, route={"retry": retry}) as app,
        ):
            reply = await asked(app, ask())
            assert (reply.status, len(second.requests)) == (200 if asks else 418, asks)


@on_uvloop
async def test_a_spent_budget_passes_the_answer_on() -> None:
    async with (
        acting(says(BUSY, then="go on")) as first,
        acting(says(GOOD, then="go on")) as second,
        before(first.address, second.address, route={"retry": Retry(budget=0.0)}) as app,
    ):
        assert (await asked(app, ask())).status == 503
        assert second.requests == []


@on_uvloop
async def test_plain_requests_go_on_too() -> None:
    async with (
        acting(says(BUSY, then="go on")) as first,
        acting(says(plain(b'{"ok":1}'), then="go on")) as second,
        before(first.address, second.address, route={"commit": "request"}) as app,
    ):
        reply = await asked(app, ask(stream=False))
        assert (reply.json(), reply.header("Content-Type")) == ({"ok": 1}, "application/json")


@pytest.mark.parametrize("commit", MODES[1:])
@FORMATS
@on_uvloop
async def test_a_whole_answer_without_content_is_an_answer(format_name: str, commit: str) -> None:
    frames = [
        b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    ]
    async with (
        acting(says(*stream(frames), then="go on")) as first,
        acting(says(GOOD, then="go on")) as second,
        before(first.address, second.address, route={"commit": commit}) as app,
    ):
        reply = await asked(app, in_format(format_name))
        assert (reply.status, reply.is_whole, second.requests) == (200, True, [])
        if format_name == "native":
            assert reply.body == b"".join(frames)
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}


@on_uvloop
async def test_what_the_stream_says_of_the_request_asks_nobody_else() -> None:
    error = b'data: {"error":{"message":"no such tool","type":"invalid_request_error","code":"invalid_request"}}\n\n'
    async with (
        acting(says(SSE_HEAD, chunk(error), LAST_CHUNK, then="go on")) as first,
        acting(says(GOOD, then="go on")) as second,
        before(first.address, second.address, route={"commit": "first_content"}) as app,
    ):
        reply = await asked(app, ask())
        assert (reply.status, reply.json()["error"]["code"], second.requests) == (502, "upstream_error", [])
        assert ERROR not in reply.body


@pytest.mark.parametrize("commit", MODES)
@FORMATS
@on_uvloop
async def test_a_bug_at_the_very_end_of_a_body_is_told(
    format_name: str, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(Relay, "finish", broken)
    async with (
        acting(says(SSE_HEAD, chunk(ROLE), LAST_CHUNK, then="go on")) as first,
        before(first.address, route={"commit": commit}) as app,
    ):
        reply = await asked(app, in_format(format_name))
        assert reply.status == (500 if commit == "first_content" else 200)
        assert app.streams.outcomes == {Outcome.INTERNAL: 1}
