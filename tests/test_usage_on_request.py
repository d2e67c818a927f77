"""Usage asked for on the client's behalf: the upstream is told, a native client is spared the extra chunk."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sidecar.dialects.usage_on_request import ExtraChunk, asking_for_usage, includes_usage
from sidecar.errors import Outcome
from sidecar.events import Frame, Token, Usage
from tests.app_support import CHAT, MESSAGES, answering, asked, before, on_uvloop, request, stream

USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
TOKEN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
FINISH = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
EXTRA = b'data: {"id":"c","choices":[],"usage":' + msgspec.json.encode(USAGE) + b"}\n\n"
DONE = b"data: [DONE]\n\n"
JSON = [("Content-Type", "application/json")]


async def through(
    body: dict[str, Any], path: str = CHAT, *, headers: list[tuple[str, str]] | None = None, **route: Any
) -> tuple[Any, dict[str, Any]]:
    """What a client of a route with ``usage: request`` is answered, and the body its upstream was sent."""
    async with (
        answering(stream([TOKEN, FINISH, EXTRA, DONE])) as upstream,
        before(upstream.address, route={"usage": "request", **route}) as app,
    ):
        reply = await asked(app, request("POST", path, msgspec.json.encode(body), [*JSON, *(headers or [])]))
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}
        sent = upstream.received[0].body
    return reply, msgspec.json.decode(sent)


@on_uvloop
async def test_a_native_client_that_did_not_ask_is_spared_the_extra_chunk() -> None:
    reply, sent = await through({"model": "m", "stream": True, "messages": []})
    assert sent == {"model": "m", "stream": True, "messages": [], "stream_options": {"include_usage": True}}
    assert reply.body == TOKEN + FINISH + DONE
    assert reply.is_whole


@pytest.mark.parametrize("options", [{"include_usage": False, "include_obfuscation": False}, None])
@on_uvloop
async def test_other_stream_options_stay(options: dict[str, Any] | None) -> None:
    reply, sent = await through({"model": "m", "stream": True, "stream_options": options})
    assert sent["stream_options"] == {**(options or {}), "include_usage": True}
    assert EXTRA not in reply.body


@on_uvloop
async def test_a_client_that_asked_is_sent_it() -> None:
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    reply, sent = await through(body)
    assert sent == body
    assert reply.body == TOKEN + FINISH + EXTRA + DONE


@on_uvloop
async def test_what_counts_is_the_path_that_is_sent() -> None:
    typed = [("X-Stream-Format", "typed")]
    body = {"model": "m", "stream": True}
    reply, sent = await through(body, "/generate", headers=typed, rewrite=CHAT)
    assert sent["stream_options"] == {"include_usage": True}
    assert dict(reply.events())["token"] == {"index": 0, "text": "x"}
    reply, sent = await through(body, "/gpt", headers=typed, rewrite=CHAT)
    assert (sent["stream_options"], reply.events()[-1][1]["status"]) == ({"include_usage": True}, "completed")
    reply, _ = await through(body, "/gpt", rewrite=CHAT)
    assert reply.body == TOKEN + FINISH + DONE


@on_uvloop
async def test_a_typed_client_is_told_the_usage() -> None:
    reply, sent = await through({"model": "m", "stream": True}, headers=[("X-Stream-Format", "typed")])
    assert sent["stream_options"] == {"include_usage": True}
    assert dict(reply.events())["usage"]["native"] == USAGE


@pytest.mark.parametrize(
    ("path", "body", "route"),
    [
        (CHAT, {"model": "m", "stream": True}, {"usage": "as_asked"}),
        (MESSAGES, {"model": "m", "stream": True}, {}),
        (CHAT, {"model": "m", "stream": False}, {}),
        (CHAT, {"model": "m"}, {}),
    ],
)
@on_uvloop
async def test_nothing_else_is_touched(path: str, body: dict[str, Any], route: dict[str, Any]) -> None:
    async with (
        answering(stream([TOKEN, FINISH, EXTRA, DONE])) as upstream,
        before(upstream.address, route={"usage": "request", **route}) as app,
    ):
        reply = await asked(app, request("POST", path, msgspec.json.encode(body), JSON))
        assert upstream.received[0].body == msgspec.json.encode(body)
    assert reply.body.startswith(TOKEN + FINISH + EXTRA)


@on_uvloop
async def test_each_upstream_is_asked_in_its_own_way() -> None:
    """The path is OpenAI's, but this upstream is configured to speak something else."""
    async with (
        answering(stream([TOKEN, FINISH, EXTRA, DONE])) as upstream,
        before(upstream.address, route={"usage": "request"}, upstream={"dialect": "opaque-sse"}) as app,
    ):
        body = msgspec.json.encode({"model": "m", "stream": True})
        reply = await asked(app, request("POST", CHAT, body, JSON))
        assert upstream.received[0].body == body
    assert EXTRA in reply.body


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"stream_options":[1]}', b"[" * 5000, b""])
def test_what_is_no_object_is_for_the_upstream_to_refuse(body: bytes) -> None:
    assert asking_for_usage(body) == body


def test_values_keep_their_very_bytes() -> None:
    body = b'{ "temperature": 1.000, "stream_options" : {"a" : 1e2} }'
    assert asking_for_usage(body) == b'{"temperature":1.000,"stream_options":{"a":1e2,"include_usage":true}}'


@pytest.mark.parametrize(
    ("options", "asks"), [({"include_usage": True}, True), ({"include_usage": 1}, False), (None, False), ([], False)]
)
def test_who_asks_by_himself(options: Any, *, asks: bool) -> None:
    assert includes_usage(options) == asks


def test_only_a_chunk_of_nothing_but_counts_is_extra() -> None:
    usage = Usage(9, 1, 10, native=USAGE)
    is_extra = ExtraChunk()
    assert is_extra(Frame(b'{"choices":[],"usage":{}}', b""), [usage])
    assert not is_extra(Frame(b'{"choices":[{"delta":{}}],"usage":{}}', b""), [usage])
    assert not is_extra(Frame(b'{"choices":[],"usage":{}}', b""), [Token(0, "a"), usage])
    assert not is_extra(Frame(b'{"choices":[]}', b""), [])


CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


@pytest.mark.parametrize(
    ("always", "last", "hides"),
    [
        ({}, {"system_fingerprint": None, "service_tier": None, "obfuscation": "x", "timings": {}}, True),
        ({"system_fingerprint": "fp", "service_tier": "default", "provider": "p"}, {}, True),
        ({}, {"timings": {"prompt_n": 1}}, False),
        ({}, {"sla_metrics": {"ttft_ms": 3}}, False),
        ({}, {"system_fingerprint": "late"}, False),
        ({"system_fingerprint": None}, {"system_fingerprint": "late"}, False),
        ({"system_fingerprint": "fp"}, {"system_fingerprint": "another"}, False),
        ({}, {"something_new": True}, False),
    ],
)
@on_uvloop
async def test_a_chunk_with_news_beside_its_counts_is_passed_on(always: Any, last: Any, *, hides: bool) -> None:
    def chunk(**fields: Any) -> bytes:
        return b"data: " + msgspec.json.encode({**CHUNK, **always, **fields}) + b"\n\n"

    text = [chunk(choices=[{"index": 0, "delta": {"content": word}}]) for word in ("a", "b", "c")]
    finish = chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    extra = chunk(choices=[], usage=USAGE, **last)
    async with (
        answering(stream([*text, finish, extra, DONE])) as upstream,
        before(upstream.address, route={"usage": "request"}) as app,
    ):
        reply = await asked(app, request("POST", CHAT, b'{"model":"m","stream":true}', JSON))
    assert reply.body == b"".join([*text, finish, *([] if hides else [extra]), DONE])
