"""Every way a request can end, made to happen over sockets: one record each, with all that is known by then."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import pytest

from sidecar.app import App
from sidecar.dialects import DIALECTS
from sidecar.errors import Outcome
from sidecar.events import Usage
from sidecar.record import Record
from sidecar.routing import Router
from sidecar.settings import KIB, Address, Cors
from tests import endings
from tests.app_support import (
    CHAT,
    MESSAGES,
    OLLAMA_CHAT,
    Reply,
    answering,
    ask,
    asked,
    before,
    client_of,
    on_uvloop,
    openai_frames,
    plain,
    request,
    stream,
)
from tests.departures import DEPARTURES, leave, until
from tests.endings import REFUSALS, Play, Watching
from tests.observing import Observing
from tests.upstream_support import serving

FORMATS = pytest.mark.parametrize("format_name", ["typed", "native"])


class Recorded(Observing):
    """Runs a sidecar, and remembers its records."""

    def before(self, *addresses: Address, **options: Any) -> AbstractAsyncContextManager[App]:
        return before(*addresses, observer=self, **options)

    async def over(self, app: App) -> None:
        await self.record()


def assert_begun(record: Record, outcome: Outcome, code: str | None) -> None:
    """What was known when the stream had only begun."""
    assert (record.outcome, record.failure and record.failure.code) == (outcome, code)
    assert (record.usage, record.response_id, record.response_model) == (endings.SEEN, "msg_1", "claude-x")
    assert (record.status, record.upstream_status, record.dialect) == (200, 200, "anthropic")
    assert None not in (record.body_read_at, record.sent_at, record.first_content_at, record.first_sent_at)
    assert (record.method, record.path, record.route, record.upstream) == ("POST", MESSAGES, "all", "llm")
    assert (record.requested_model, record.sent_model, record.is_stream) == ("m", "m", True)


@FORMATS
@on_uvloop
async def test_completed(format_name: str) -> None:
    recorded = Recorded()
    port = await endings.completed(recorded, format_name)
    (record,) = recorded.records
    assert (record.outcome, record.failure, record.finish_reasons) == (Outcome.COMPLETED, None, ("stop",))
    assert record.usage == Usage(30, 9, 39, 5, native={**endings.USAGE, "output_tokens": 9})
    assert (record.server_address, record.server_port) == ("127.0.0.1", port)
    assert (record.content_events, record.format) == (2, format_name)
    assert record.largest_gap_s is not None


CUT: list[tuple[Play, Outcome, str | None]] = [
    *((partial(endings.client_cancelled, how=how), Outcome.CLIENT_CANCELLED, None) for how in DEPARTURES),
    (endings.client_too_slow, Outcome.CLIENT_TOO_SLOW, "client_too_slow"),
    (partial(endings.upstream_broken, how="end"), Outcome.UPSTREAM_BROKEN, "upstream_truncated"),
    (partial(endings.upstream_broken, how="reset"), Outcome.UPSTREAM_BROKEN, "upstream_reset"),
    (partial(endings.upstream_broken, how="chunk"), Outcome.UPSTREAM_BROKEN, "malformed_upstream"),
    (endings.upstream_failing, Outcome.UPSTREAM_FAILED, "upstream_error"),
    (endings.timed_out, Outcome.TIMED_OUT, "idle_timeout"),
    (endings.shut_down, Outcome.SHUT_DOWN, "shutting_down"),
    (endings.internal_by_a_bug, Outcome.INTERNAL, "internal"),
]


@pytest.mark.parametrize(("play", "outcome", "code"), CUT)
@FORMATS
@on_uvloop
async def test_a_stream_that_had_begun(format_name: str, play: Play, outcome: Outcome, code: str | None) -> None:
    recorded = Recorded()
    await play(recorded, format_name)
    (record,) = recorded.records
    assert_begun(record, outcome, code)
    assert record.failure is None or record.failure.provider_code == (
        "overloaded_error" if code == "upstream_error" else ""
    )


@on_uvloop
async def test_client_cancelled_before_an_answer() -> None:
    recorded = Recorded()
    await endings.client_cancelled_before_an_answer(recorded)
    assert_cancelled_early(recorded.records)


@on_uvloop
async def test_client_cancelled_before_its_body_was_read() -> None:
    recorded = Recorded()
    async with recorded.before(endings.NOBODY) as app, client_of(app) as client:
        await client.send(ask()[:-5])
        await until(lambda: recorded.started_count)
        leave(client, "reset")
        await recorded.over(app)
    assert_cancelled_early(recorded.records)


def assert_cancelled_early(records: list[Record]) -> None:
    (record,) = records
    assert (record.outcome, record.failure, record.status, record.upstream_status) == (
        Outcome.CLIENT_CANCELLED,
        None,
        None,
        None,
    )


@on_uvloop
async def test_upstream_unreachable() -> None:
    recorded = Recorded()
    reply, port = await endings.upstream_refusing(recorded)
    (record,) = recorded.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code) == (Outcome.UPSTREAM_UNREACHABLE, "upstream_refused")
    assert (record.status, record.upstream_status, record.attempts) == (reply.status, None, 2) == (502, None, 2)
    assert (record.upstream, record.server_port) == ("second", port)
    assert (record.sent_at, record.dialect, record.is_stream) == (None, "openai-chat", True)


@FORMATS
@on_uvloop
async def test_upstream_rejected(format_name: str) -> None:
    recorded = Recorded()
    reply = await endings.upstream_rejecting(recorded, format_name)
    (record,) = recorded.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code) == (Outcome.UPSTREAM_REJECTED, "upstream_status")
    assert (record.status, record.upstream_status, record.failure.upstream_status) == (429, 429, 429)
    assert reply.status == 429
    assert "secret" not in record.failure.message
    assert (record.dialect, record.is_stream, record.attempts) == ("openai-chat", True, 1)


@FORMATS
@on_uvloop
async def test_timed_out_before_an_answer(format_name: str) -> None:
    recorded = Recorded()
    reply = await endings.timed_out_before_an_answer(recorded, format_name)
    (record,) = recorded.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code) == (Outcome.TIMED_OUT, "first_token_timeout")
    assert (reply.status, record.status, record.upstream_status) == (504, 504, None)


@on_uvloop
async def test_shut_down_before_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.app.app.CLOSE_TIMEOUT_S", 0.1)
    observer = Observing()
    async with (
        serving() as server,
        before(server.address, observer=observer) as app,
        client_of(app) as waiting,
        client_of(app) as sending,
    ):
        await waiting.send(ask())
        await (await server.peer()).request()
        await sending.send(ask()[:-5])
        await until(lambda: observer.started_count == 2)
        await app.close()
        told = {(record.outcome, record.status) for record in observer.records}
    assert told == {(Outcome.SHUT_DOWN, 503), (Outcome.SHUT_DOWN, None)}


@on_uvloop
async def test_internal_without_a_credential() -> None:
    recorded = Recorded()
    reply = await endings.internal_without_a_credential(recorded)
    (record,) = recorded.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code) == (Outcome.INTERNAL, "internal")
    assert (reply.status, record.status) == (500, 500)


@on_uvloop
async def test_internal_by_a_bug_before_there_is_a_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Router, "match", broken)
    observer = Observing()
    async with answering(plain(b"{}")) as upstream, before(upstream.address, observer=observer) as app:
        with caplog.at_level(logging.CRITICAL, "sidecar.gateway"):
            reply = await asked(app, ask())
    (record,) = observer.records
    assert (record.outcome, record.status, reply.status) == (Outcome.INTERNAL, 500, 500)


@on_uvloop
async def test_internal_by_a_bug_in_a_sweep_before_an_answer() -> None:
    recorded = Recorded()
    reply = await endings.internal_by_a_bug_before_an_answer(recorded)
    (record,) = recorded.records
    assert (record.outcome, record.status, reply.status, reply.is_whole) == (Outcome.INTERNAL, 500, 500, True)


# Refusals.


@pytest.mark.parametrize(("data", "status", "code"), REFUSALS, ids=[code for _, _, code in REFUSALS])
@on_uvloop
async def test_refused(data: bytes, status: int, code: str) -> None:
    recorded = Recorded()
    reply = await endings.refused(recorded, data)
    (record,) = recorded.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code, record.failure.message != "") == (Outcome.REFUSED, code, True)
    assert (reply.status, record.status, record.upstream_status, record.attempts) == (status, status, None, 0)
    assert record.path == data.split(b" ")[1].decode()
    assert reply.header("X-Stream-Id") == record.stream_id


@pytest.mark.parametrize(
    ("play", "status", "code"),
    [
        (endings.refused_for_want_of_a_token, 401, "unauthorized"),
        (endings.refused_for_want_of_room, 503, "overloaded"),
    ],
)
@on_uvloop
async def test_refused_for_want_of_a_token_or_of_room(
    play: Callable[[Watching], Awaitable[Reply]], status: int, code: str
) -> None:
    recorded = Recorded()
    reply = await play(recorded)
    (record,) = recorded.records
    assert record.failure is not None
    assert (reply.status, record.status, record.failure.code) == (status, status, code)
    assert (record.outcome, record.route, record.dialect) == (Outcome.REFUSED, "", "openai-chat")


@on_uvloop
async def test_what_is_no_http_has_no_record() -> None:
    observer = Observing()
    async with before(Address("127.0.0.1", 9), observer=observer) as app, client_of(app) as client:
        await client.send(b"\x16\x03\x01 what\r\n\r\n")
        assert (await client.reply()).status == 400
    assert (observer.records, observer.started_count) == ([], 0)


# Whatever else passes.


@on_uvloop
async def test_plain_answers_uploads_and_several_on_one_connection() -> None:
    observer = Observing()
    async with (
        answering(plain(b'{"data":[]}')) as upstream,
        before(upstream.address, observer=observer) as app,
        client_of(app) as client,
    ):
        await client.ask(request("GET", "/v1/models?key=secret"))
        await client.ask(ask(stream=False))
        await client.ask(request("POST", "/v1/files", b"x" * 100, [("Content-Type", "application/octet-stream")]))
        await client.ask(request("HEAD", "/v1/models", version="1.0"), to_head=True)
    models, chat, upload, head = observer.records
    for record in observer.records:
        assert (record.outcome, record.status, record.upstream_status) == (Outcome.COMPLETED, 200, 200)
        assert (record.is_stream, record.content_events, record.first_content_at) == (False, 0, None)
        assert (record.format, record.attempts, record.largest_gap_s) == ("native", 1, None)
        assert None not in (record.body_read_at, record.sent_at)
    assert (models.method, models.path, models.dialect) == ("GET", "/v1/models", "")
    assert (chat.requested_model, chat.dialect) == ("m", "openai-chat")
    assert (upload.path, upload.body_read_at) == ("/v1/files", upload.sent_at)
    assert (head.method, head.http_version) == ("HEAD", "1.0")
    assert len({record.stream_id for record in observer.records}) == observer.started_count == 4


@pytest.mark.parametrize(("path", "dialect"), [(OLLAMA_CHAT, "ollama-chat"), ("/some/path", "openai-chat")])
@on_uvloop
async def test_what_the_answer_speaks(path: str, dialect: str) -> None:
    observer = Observing()
    ollama = [b'{"model":"l","message":{"content":"a"},"done":false}\n', b'{"model":"l","done":true}\n']
    answer = stream(ollama, "application/x-ndjson") if path == OLLAMA_CHAT else stream(openai_frames("a", "b"))
    async with answering(answer) as upstream, before(upstream.address, observer=observer) as app:
        await asked(app, ask(path))
    (record,) = observer.records
    assert (record.dialect, record.dialect in DIALECTS) == (dialect, True)
    assert record.response_model == ("l" if path == OLLAMA_CHAT else "m")


@on_uvloop
async def test_a_preflight_is_a_request_of_its_own() -> None:
    observer = Observing()
    page = [("Origin", "https://page.test"), ("Access-Control-Request-Method", "POST")]
    cors = Cors(("https://page.test",))
    async with before(Address("127.0.0.1", 9), cors=cors, observer=observer) as app:
        reply = await asked(app, request("OPTIONS", CHAT, headers=page))
        await asked(app, request("OPTIONS", CHAT, headers=[("Origin", "https://other.test"), page[1]]))
    allowed, forbidden = observer.records
    assert (allowed.outcome, allowed.failure, allowed.status, reply.status) == (Outcome.COMPLETED, None, 204, 204)
    assert (forbidden.outcome, forbidden.status) == (Outcome.REFUSED, 403)


@on_uvloop
async def test_a_stale_connection_is_another_attempt() -> None:
    observer = Observing()
    answer = b"".join(stream(openai_frames("a")))
    async with serving() as server, before(server.address, observer=observer) as app, client_of(app) as client:
        await client.send(ask())
        first = await server.peer()
        await first.request()
        first.send(answer)
        await client.reply()
        await client.send(ask())
        await first.request()
        first.reset()
        second = await server.peer(1)
        await second.request()
        second.send(answer)
        assert (await client.reply()).is_whole
    assert [record.attempts for record in observer.records] == [1, 2]
    assert [record.outcome for record in observer.records] == [Outcome.COMPLETED] * 2


# Time to first token.


@FORMATS
@on_uvloop
async def test_the_time_to_first_token_is_that_of_the_content(
    format_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded()
    rest = await endings.thinking_first(recorded, format_name, endings.move_by_hand(monkeypatch))
    (record,) = recorded.records
    assert record.sent_at is not None and record.first_content_at is not None  # noqa: PT018 - for mypy
    assert record.first_sent_at is not None
    assert record.first_content_at - record.sent_at == pytest.approx(0.2, abs=0.005)
    assert record.first_sent_at - record.received_at == pytest.approx(0.2, abs=0.005)
    assert record.largest_gap_s == pytest.approx(0.3)
    if format_name == "typed":
        done = json.loads(rest.split(b"event: done\ndata: ")[1].split(b"\n")[0])
        assert done["ttft_ms"] == pytest.approx((record.first_sent_at - record.received_at) * 1000)


# Content.


@pytest.mark.parametrize("content_bytes", [0, 64 * KIB])
@FORMATS
@on_uvloop
async def test_content_is_kept_where_it_is_asked_for(format_name: str, content_bytes: int) -> None:
    observer = Observing()
    async with (
        answering(stream(openai_frames("Hel", "lo", " there"))) as upstream,
        before(upstream.address, observer=observer, content_bytes=content_bytes) as app,
    ):
        data = ask(headers=[("X-Stream-Format", format_name)], messages=[{"role": "user", "content": "Say it"}])
        await asked(app, data)
    (record,) = observer.records
    if content_bytes:
        assert record.content is not None
        assert record.content.request == data.partition(b"\r\n\r\n")[2].decode()
        assert (record.content.answer, record.content.is_cut) == ("Hello there", False)
    else:
        assert record.content is None
        assert "Say it" not in repr(record)
        assert "there" not in repr(record)
