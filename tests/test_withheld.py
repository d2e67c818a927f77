"""Plain JSON where a typed stream was asked for: an error under a status of success, or an answer after all."""

from __future__ import annotations

import itertools
import json
import zlib
from typing import Any

import pytest

from sidecar.errors import Outcome
from sidecar.rejection import said_error
from sidecar.withheld import MAX_ERROR_BYTES
from tests.app_support import CHAT, MESSAGES, OLLAMA_CHAT, Headers, ask, asked, before, on_uvloop, plain
from tests.app_support import answering as upstream_answering
from tests.core_support import RESET, Rig, typed_events

JSON = "application/json; charset=utf-8"
GEMINI = "/v1beta/models/g:streamGenerateContent?alt=sse"
SAID: dict[str, Any] = {"message": "slow down", "type": "rate_limit_error", "code": 429}
TYPED: Headers = [("X-Stream-Format", "typed")]


def gzipped(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("value", "message", "native"),
    [
        ({"error": SAID}, "slow down", SAID),
        ([{"error": SAID}], "slow down", SAID),
        ({"type": "error", "error": SAID, "request_id": "r"}, "slow down", SAID),
        ({"error": "model not found"}, "model not found", "model not found"),
        ({"object": "error", "message": "m", "code": 400}, "m", {"object": "error", "message": "m", "code": 400}),
        ({"type": "error", "message": "m"}, "m", {"type": "error", "message": "m"}),
    ],
)
def test_what_says_an_error(value: Any, message: str, native: Any) -> None:
    error = said_error(json.dumps(value).encode())
    assert error is not None
    assert (error.message, error.native) == (message, native)


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"c1","choices":[]}',
        b'{"id":"r1","error":null,"output":[]}',
        b'{"error":""}',
        b'[{"error":"a"},{"error":"b"}]',
        b"[]",
        b'"error"',
        b"{",
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_says_none(body: bytes) -> None:
    assert said_error(body) is None


@pytest.mark.parametrize("cuts", [(), (1,), (5, 20)])
def test_an_error_ends_a_typed_stream(cuts: tuple[int, ...]) -> None:
    body = json.dumps({"error": SAID}).encode()
    marks = [0, *cuts, len(body)]
    rig = Rig().open(content_type=JSON)
    rig.feed([body[start:end] for start, end in itertools.pairwise(marks)])
    assert rig.client.head == b""
    assert rig.stream.buffered_bytes == len(body)
    rig.end()
    assert rig.outcome is Outcome.UPSTREAM_FAILED
    assert b"text/event-stream" in rig.client.head
    assert b"Content-Length" not in rig.client.head
    assert rig.client.ends == ["finish"]
    (_, start), (_, error), (_, done) = typed_events(rig.client.body)
    assert start["stream"] == "s1"
    assert (error["code"], error["message"], error["native"]) == ("upstream_error", "slow down", SAID)
    assert (error["retryable"], error["upstream_status"]) == (True, 429)
    assert done["status"] == "failed"


@pytest.mark.parametrize("body", [b'{"id":"c1","choices":[]}', b"", b"{broken"])
def test_an_answer_is_passed_on_as_it_is(body: bytes) -> None:
    rig = Rig().open(content_type=JSON).feed(body).end()
    assert rig.outcome is Outcome.COMPLETED
    assert b"Content-Type: application/json" in rig.client.head
    assert b"X-Stream-Format: native" in rig.client.head
    assert (rig.client.body, rig.client.ends) == (body, ["finish"])
    assert rig.stream.format == "native"


def test_a_long_body_is_an_answer_and_waits_no_longer() -> None:
    rig = Rig().open(content_type=JSON)
    rig.feed(b'{"error":"' + b"x" * (MAX_ERROR_BYTES - 10))
    assert rig.client.head == b""
    rig.feed(b"x")
    assert rig.client.head
    rig.feed(b'"}').end()
    assert rig.client.body == b'{"error":"' + b"x" * (MAX_ERROR_BYTES - 9) + b'"}'
    assert rig.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("body", [b'{"error":"m"}', b'{"id":"c1"}', b"x" * (MAX_ERROR_BYTES + 1)])
def test_the_answer_that_is_begun_knows_the_last_read_for_the_last(body: bytes) -> None:
    rig = Rig().open(content_type=JSON)
    rig.stream.on_last_body(body)
    rig.end()
    assert rig.outcome in {Outcome.COMPLETED, Outcome.UPSTREAM_FAILED}
    assert rig.stream._relay.is_last_read
    assert rig.client.ends == ["finish"]


@pytest.mark.parametrize("body", [b"", b'{"error":', b'{"error":"m"}'])
def test_of_a_broken_body_nothing_is_sent(body: bytes) -> None:
    rig = Rig().open(content_type=JSON).feed(body).end(RESET)
    assert rig.client.head == b""
    assert rig.stream.failure is RESET
    assert rig.outcome is None


def test_a_broken_answer_that_had_begun_is_told_so() -> None:
    rig = Rig().open(content_type=JSON).feed(b"x" * (MAX_ERROR_BYTES + 1)).end(RESET)
    assert rig.outcome is Outcome.UPSTREAM_BROKEN
    assert len(rig.client.body) == MAX_ERROR_BYTES + 1
    assert not rig.stream.keep_alive


def test_a_client_that_leaves_meanwhile() -> None:
    rig = Rig().open(content_type=JSON).feed(b'{"error":')
    rig.stream.client_gone()
    assert rig.outcome is Outcome.CLIENT_CANCELLED
    assert rig.exchange.is_dropped


@pytest.mark.parametrize(
    "rig",
    [
        Rig(format="native").open(content_type=JSON),
        Rig(wants_stream=False).open(content_type=JSON),
        Rig().open(content_type="text/csv"),
    ],
    ids=["native", "no_stream", "no_json"],
)
def test_nothing_is_withheld_where_no_typed_stream_is_missing(rig: Rig) -> None:
    rig.feed(b'{"error":"m"}')
    assert rig.client.body == b'{"error":"m"}'
    rig.end()
    assert rig.outcome is Outcome.COMPLETED


# Through the whole sidecar.


@pytest.mark.parametrize("path", [CHAT, MESSAGES, OLLAMA_CHAT, GEMINI, "/v1beta/interactions", "/generate", "/my/llm"])
@pytest.mark.parametrize("body", [{"error": SAID}, [{"error": SAID}]], ids=["object", "list"])
@on_uvloop
async def test_an_error_under_success_on_every_path(path: str, body: Any) -> None:
    text = json.dumps(body).encode()
    async with upstream_answering(plain(text)) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask(path, TYPED))
        assert (reply.status, reply.is_whole) == (200, True)
        assert reply.header("Content-Type") == "text/event-stream; charset=utf-8"
        (name, _), (error_name, error), (done_name, done) = reply.events()
        assert (name, error_name, done_name) == ("start", "error", "done")
        assert (error["message"], error["native"], done["status"]) == ("slow down", SAID, "failed")
        native = await asked(app, ask(path))
        assert (native.body, native.header("Content-Type")) == (text, "application/json")


@on_uvloop
async def test_a_compressed_error_and_a_compressed_answer() -> None:
    headers = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")]
    for body, is_error in [(b'{"error":"m"}', True), (b'{"ok":1}', False)]:
        answer = plain(gzipped(body), headers=headers)
        async with upstream_answering(answer) as upstream, before(upstream.address) as app:
            reply = await asked(app, ask(CHAT, TYPED))
            if is_error:
                assert reply.header("Content-Encoding") is None
                assert reply.events()[1][1]["message"] == "m"
            else:
                assert (reply.header("Content-Encoding"), reply.body) == ("gzip", gzipped(body))


@on_uvloop
async def test_what_is_not_compressed_as_it_says_passes() -> None:
    answer = plain(b"no gzip", headers=[("Content-Type", "application/json"), ("Content-Encoding", "gzip")])
    async with upstream_answering(answer) as upstream, before(upstream.address) as app:
        assert (await asked(app, ask(CHAT, TYPED))).body == b"no gzip"


@on_uvloop
async def test_the_connection_serves_on_after_either() -> None:
    async with upstream_answering(plain(b'{"error":"m"}')) as upstream, before(upstream.address) as app:
        for _ in range(3):
            assert (await asked(app, ask(CHAT, TYPED))).events()[-1][1]["status"] == "failed"
        assert app.streams.outcomes == {Outcome.UPSTREAM_FAILED: 3}
        assert len(upstream.received) == 3


@on_uvloop
async def test_an_old_client_is_answered_too() -> None:
    async with upstream_answering(plain(b'{"ok":1}')) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask(CHAT, TYPED, version="1.0"))
        assert (reply.status, reply.body) == (200, b'{"ok":1}')
