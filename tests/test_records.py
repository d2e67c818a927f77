"""Every way a request can end, made to happen over sockets: one record each, with all that is known by then."""

from __future__ import annotations

import json
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.dialects import DIALECTS
from sidecar.errors import Outcome
from sidecar.events import Usage
from sidecar.record import Record
from sidecar.routing import Router
from sidecar.settings import KIB, Address, Cors, Credentials, Limits, Match, Route, SecretSource, Timeouts
from tests.app_support import (
    CHAT,
    LAST_CHUNK,
    MESSAGES,
    OLLAMA_CHAT,
    SSE_HEAD,
    Client,
    answering,
    ask,
    asked,
    before,
    chunk,
    client_of,
    on_uvloop,
    openai_frames,
    plain,
    request,
    running,
    settings_for,
    stream,
    upstream_at,
)
from tests.core_support import Clock
from tests.departures import DEPARTURES, leave, until
from tests.observing import Observing
from tests.test_accounting import QUIET, REASONING
from tests.upstream_support import Peer, Server, serving

FORMATS = pytest.mark.parametrize("format_name", ["typed", "native"])
USAGE = {"input_tokens": 25, "cache_read_input_tokens": 5, "output_tokens": 1}
START = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "usage": USAGE}
SEEN = Usage(30, 1, 31, 5, native=USAGE)


def sse(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


BEGUN = [
    sse("message_start", message=START),
    sse("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}),
]
REST = [
    sse("content_block_delta", index=0, delta={"type": "text_delta", "text": " you"}),
    sse("content_block_stop", index=0),
    sse("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}),
    sse("message_stop"),
]
TOO_SLOW = Limits(buffer_bytes=64 * KIB, on_slow_client="evict")


async def begun(server: Server, client: Client, format_name: str, pieces: list[bytes] = BEGUN) -> Peer:
    """The upstream's side of a stream that has begun, once its client has seen the beginning."""
    await client.send(ask(MESSAGES, [("X-Stream-Format", format_name)]))
    peer = await server.peer()
    await peer.request()
    peer.send(SSE_HEAD + b"".join(map(chunk, pieces)))
    await client.head()
    await client.chunk()
    return peer


def assert_begun(record: Record, outcome: Outcome, code: str | None) -> None:
    """What was known when the stream had only begun."""
    assert (record.outcome, record.failure and record.failure.code) == (outcome, code)
    assert (record.usage, record.response_id, record.response_model) == (SEEN, "msg_1", "claude-x")
    assert (record.status, record.upstream_status, record.dialect) == (200, 200, "anthropic")
    assert None not in (record.body_read_at, record.sent_at, record.first_content_at, record.first_sent_at)
    assert (record.method, record.path, record.route, record.upstream) == ("POST", MESSAGES, "all", "llm")
    assert (record.requested_model, record.sent_model, record.is_stream) == ("m", "m", True)


@FORMATS
@on_uvloop
async def test_completed(format_name: str) -> None:
    observer = Observing()
    async with answering(stream([*BEGUN, *REST])) as upstream, before(upstream.address, observer=observer) as app:
        await asked(app, ask(MESSAGES, [("X-Stream-Format", format_name)]))
    (record,) = observer.records
    assert (record.outcome, record.failure, record.finish_reasons) == (Outcome.COMPLETED, None, ("stop",))
    assert record.usage == Usage(30, 9, 39, 5, native={**USAGE, "output_tokens": 9})
    assert (record.server_address, record.server_port) == ("127.0.0.1", upstream.address.port)
    assert (record.content_events, record.format) == (2, format_name)
    assert record.largest_gap_s is not None


@pytest.mark.parametrize("how", DEPARTURES)
@FORMATS
@on_uvloop
async def test_client_cancelled(format_name: str, how: str) -> None:
    observer = Observing()
    async with serving() as server, before(server.address, observer=observer) as app, client_of(app) as client:
        await begun(server, client, format_name)
        leave(client, how)
        assert_begun(await observer.record(), Outcome.CLIENT_CANCELLED, None)


@pytest.mark.parametrize("what", ["waiting for the answer", "sending the body"])
@on_uvloop
async def test_client_cancelled_before_an_answer(what: str) -> None:
    observer = Observing()
    async with serving() as server, before(server.address, observer=observer) as app, client_of(app) as client:
        whole = ask()
        await client.send(whole if what == "waiting for the answer" else whole[:-5])
        if what == "waiting for the answer":
            await (await server.peer()).request()
        else:
            await until(lambda: observer.started_count)
        leave(client, "reset")
        record = await observer.record()
    assert (record.outcome, record.failure, record.status, record.upstream_status) == (
        Outcome.CLIENT_CANCELLED,
        None,
        None,
        None,
    )


@FORMATS
@on_uvloop
async def test_client_too_slow(format_name: str) -> None:
    observer = Observing()
    async with (
        serving() as server,
        before(server.address, route={"limits": TOO_SLOW}, observer=observer) as app,
        client_of(app) as client,
    ):
        peer = await begun(server, client, format_name)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half
        peer.send(chunk(sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * KIB})) * 20_000)
        assert_begun(await observer.record(), Outcome.CLIENT_TOO_SLOW, "client_too_slow")


@on_uvloop
async def test_upstream_unreachable() -> None:
    observer = Observing()
    async with serving() as server:
        closed = server.address
    async with before(closed, closed, observer=observer) as app:
        reply = await asked(app, ask())
    (record,) = observer.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code) == (Outcome.UPSTREAM_UNREACHABLE, "upstream_refused")
    assert (record.status, record.upstream_status, record.attempts) == (reply.status, None, 2) == (502, None, 2)
    assert (record.upstream, record.server_port) == ("second", closed.port)
    assert (record.sent_at, record.dialect, record.is_stream) == (None, "openai-chat", True)


@FORMATS
@on_uvloop
async def test_upstream_rejected(format_name: str) -> None:
    observer = Observing()
    body = json.dumps({"error": {"message": "You said: secret", "type": "requests", "code": "rate_limit_exceeded"}})
    async with (
        answering(plain(body.encode(), "429 Too Many Requests")) as upstream,
        before(upstream.address, observer=observer) as app,
    ):
        reply = await asked(app, ask(headers=[("X-Stream-Format", format_name)]))
    (record,) = observer.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code) == (Outcome.UPSTREAM_REJECTED, "upstream_status")
    assert (record.status, record.upstream_status, record.failure.upstream_status) == (429, 429, 429)
    assert reply.status == 429
    assert "secret" not in record.failure.message
    assert (record.dialect, record.is_stream, record.attempts) == ("openai-chat", True, 1)


@pytest.mark.parametrize(("how", "code"), [("end", "upstream_truncated"), ("reset", "upstream_reset")])
@FORMATS
@on_uvloop
async def test_upstream_broken(format_name: str, how: str, code: str) -> None:
    observer = Observing()
    async with serving() as server, before(server.address, observer=observer) as app, client_of(app) as client:
        peer = await begun(server, client, format_name)
        if how == "end":
            peer.send(LAST_CHUNK)
        else:
            peer.reset()
        assert_begun(await observer.record(), Outcome.UPSTREAM_BROKEN, code)


@FORMATS
@on_uvloop
async def test_upstream_failed_in_its_stream(format_name: str) -> None:
    observer = Observing()
    async with serving() as server, before(server.address, observer=observer) as app, client_of(app) as client:
        peer = await begun(server, client, format_name)
        error = {"type": "overloaded_error", "message": "Overloaded"}
        peer.send(chunk(sse("error", error=error)) + LAST_CHUNK)
        record = await observer.record()
        assert_begun(record, Outcome.UPSTREAM_FAILED, "upstream_error")
        assert record.failure is not None
        assert record.failure.provider_code == "overloaded_error"


@FORMATS
@on_uvloop
async def test_timed_out(format_name: str) -> None:
    observer = Observing()
    timeouts = Timeouts(idle_s=0.3)
    async with (
        serving() as server,
        before(server.address, upstream={"timeouts": timeouts}, observer=observer) as app,
        client_of(app) as client,
    ):
        await begun(server, client, format_name)
        assert_begun(await observer.record(), Outcome.TIMED_OUT, "idle_timeout")


@FORMATS
@on_uvloop
async def test_timed_out_before_an_answer(format_name: str) -> None:
    observer = Observing()
    timeouts = Timeouts(first_token_s=0.3)
    async with serving() as server, before(server.address, upstream={"timeouts": timeouts}, observer=observer) as app:
        reply = await asked(app, ask(headers=[("X-Stream-Format", format_name)]))
    (record,) = observer.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code) == (Outcome.TIMED_OUT, "first_token_timeout")
    assert (reply.status, record.status, record.upstream_status) == (504, 504, None)


@FORMATS
@on_uvloop
async def test_shut_down(format_name: str) -> None:
    observer = Observing()
    async with serving() as server, before(server.address, observer=observer) as app, client_of(app) as client:
        await begun(server, client, format_name)
        await app.close()
        assert_begun(await observer.record(), Outcome.SHUT_DOWN, "shutting_down")


@on_uvloop
async def test_shut_down_before_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.app.CLOSE_TIMEOUT_S", 0.1)
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
    observer = Observing()
    credentials = Credentials("replace", secret=SecretSource(file="/nowhere"))
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, upstream={"credentials": credentials}, observer=observer) as app,
    ):
        reply = await asked(app, ask())
    (record,) = observer.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code) == (Outcome.INTERNAL, "internal")
    assert (reply.status, record.status, upstream.received) == (500, 500, [])


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
    observer = Observing()
    async with serving() as server, before(server.address, observer=observer) as app, client_of(app) as client:
        await client.send(ask())
        await (await server.peer()).request()
        for running_stream in app.streams:
            running_stream.crash()
        reply = await client.reply()
    (record,) = observer.records
    assert (record.outcome, record.status, reply.status, reply.is_whole) == (Outcome.INTERNAL, 500, 500, True)


# Refusals.


REFUSALS: list[tuple[bytes, int, str]] = [
    (request("GET", "/nowhere/at/all"), 404, "route_not_found"),
    (request("GET", "/v1/../x"), 400, "bad_request"),
    (ask(headers=[("X-Stream-Format", "x")]), 400, "unknown_format"),
    (request("POST", "/v1/by-model", b"{}", [("Content-Type", "application/json")]), 400, "model_missing"),
    (ask(text="x" * 5000), 413, "body_too_large"),
    (request("GET", "/v1", headers=[(f"X-{number}", "x" * 4000) for number in range(17)]), 431, "headers_too_large"),
    (
        request("GET", "/v1", headers=[("Upgrade", "websocket"), ("Connection", "Upgrade")]),
        501,
        "websocket_unsupported",
    ),
]
ROUTES = [
    Route("by-model", ("llm",), Match("/v1/by-model", model="m*")),
    Route("all", ("llm",), Match("/v1/**"), limits=Limits(max_body_bytes=4 * KIB)),
]


@pytest.mark.parametrize(("data", "status", "code"), REFUSALS, ids=[code for _, _, code in REFUSALS])
@on_uvloop
async def test_refused(data: bytes, status: int, code: str) -> None:
    observer = Observing()
    settings = settings_for(upstream_at(Address("127.0.0.1", 9)), routes=ROUTES)
    async with running(settings, observer=observer) as app:
        reply = await asked(app, data)
    (record,) = observer.records
    assert record.failure is not None
    assert (record.outcome, record.failure.code, record.failure.message != "") == (Outcome.REFUSED, code, True)
    assert (reply.status, record.status, record.upstream_status, record.attempts) == (status, status, None, 0)
    assert record.path == data.split(b" ")[1].decode()
    assert reply.header("X-Stream-Id") == record.stream_id


@on_uvloop
async def test_refused_for_want_of_a_token_or_of_room() -> None:
    for options, status, code in (
        ({"auth": SecretSource(env="OWN")}, 401, "unauthorized"),
        ({"max_buffered_bytes": -1}, 503, "overloaded"),
    ):
        observer = Observing()
        settings = settings_for(upstream_at(Address("127.0.0.1", 9)), **options)
        async with running(settings, {"OWN": "token"}, observer) as app:
            reply = await asked(app, ask())
        (record,) = observer.records
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
    """What comes at once is role-only, pings, empty and comment frames; reasoning comes 200 ms later, on a clock that
    only the test moves."""
    clock = Clock()
    monkeypatch.setattr("sidecar.app.time", SimpleNamespace(monotonic=clock, time=time.time, time_ns=time.time_ns))
    observer = Observing()
    async with serving() as server, before(server.address, observer=observer) as app, client_of(app) as client:
        await client.send(ask(CHAT, [("X-Stream-Format", format_name)]))
        peer = await server.peer()
        await peer.request()
        peer.send(SSE_HEAD + b"".join(map(chunk, QUIET)) + chunk(b": mark\n\n"))
        await client.head()
        (running_stream,) = app.streams
        await until(lambda: running_stream.session.start is not None)
        clock.now += 0.2
        peer.send(chunk(REASONING))
        await until(lambda: running_stream.session.content_events == 1)
        clock.now += 0.3
        peer.send(b"".join(map(chunk, openai_frames("a"))) + LAST_CHUNK)
        record = await observer.record()
        rest = await client.reader.readuntil(LAST_CHUNK)
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
