"""Upstreams that fail after their headers: exactly one `done` with the table's code, and no false end in native."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from sidecar.app import App
from sidecar.errors import Outcome
from sidecar.settings import KIB, Limits, Timeouts
from tests.app_support import (
    MESSAGES,
    OLLAMA_CHAT,
    SSE_HEAD,
    Client,
    Reply,
    answering,
    ask,
    asked,
    before,
    chunk,
    client_of,
    on_uvloop,
    openai_frames,
    stream,
)
from tests.upstream_support import Peer, serving, turns

FRAMES = openai_frames("one", "two", done=False)[:2]
HALF = b'data: {"id":"c1","choices":[{"index":0,"del'
TYPED = [("X-Stream-Format", "typed")]
NATIVE = [("X-Stream-Format", "native")]
NDJSON_HEAD = SSE_HEAD.replace(b"text/event-stream", b"application/x-ndjson")
IDLE = {"timeouts": Timeouts(first_token_s=30, idle_s=0.05)}
FIRST = {"timeouts": Timeouts(first_token_s=0.05)}


@dataclass
class Talk:
    """A stream under way: its client, the upstream's end of it, and the app between."""

    app: App
    client: Client
    peer: Peer

    def fails(self, outcome: Outcome) -> None:
        assert self.app.streams.outcomes == {outcome: 1}


@asynccontextmanager
async def talking(asking: bytes, head: bytes = SSE_HEAD, **options: Any) -> AsyncIterator[Talk]:
    """The upstream has sent its head and nothing more."""
    async with serving() as server, before(server.address, **options) as app, client_of(app) as client:
        await client.send(asking)
        peer = await server.peer()
        await peer.request()
        peer.send(head)
        yield Talk(app, client, peer)


def done_of(reply: Reply, code: str | None, status: str) -> dict[str, Any]:
    """The reply is a whole typed answer that ends in one `done`, after one `error` of this code if there is one."""
    assert (reply.status, reply.is_whole) == (200, True)
    events = reply.events()
    names = [name for name, _ in events]
    assert names[0] == "start"
    assert names[-1] == "done"
    assert names.count("start") == names.count("done") == 1
    assert [data["code"] for name, data in events if name == "error"] == ([code] if code else [])
    done: dict[str, Any] = events[-1][1]
    assert done["status"] == status
    return done


def texts(reply: Reply) -> str:
    return "".join(data["text"] for name, data in reply.events() if name == "token")


END: Sequence[tuple[str, Callable[[Peer], None], str, Outcome]] = [
    ("eof", Peer.end, "upstream_truncated", Outcome.UPSTREAM_BROKEN),
    ("reset", Peer.reset, "upstream_reset", Outcome.UPSTREAM_BROKEN),
    ("broken_chunk", lambda peer: peer.send(b"zz\r\n"), "malformed_upstream", Outcome.UPSTREAM_BROKEN),
    ("clean_end", lambda peer: peer.send(b"0\r\n\r\n"), "upstream_truncated", Outcome.UPSTREAM_BROKEN),
    ("idle", lambda peer: None, "idle_timeout", Outcome.TIMED_OUT),
]
each_end = pytest.mark.parametrize(("end", "code", "outcome"), [row[1:] for row in END], ids=[row[0] for row in END])


@each_end
@on_uvloop
async def test_typed_stream_that_breaks_off(end: Callable[[Peer], None], code: str, outcome: Outcome) -> None:
    async with talking(ask(headers=TYPED), upstream=IDLE) as talk:
        talk.peer.send(chunk(FRAMES[0]) + chunk(FRAMES[1] + HALF))
        await until_read(talk, b"two")
        end(talk.peer)
        reply = await talk.client.reply()
        done = done_of(reply, code, "timed_out" if outcome is Outcome.TIMED_OUT else "failed")
        assert (texts(reply), done["content_events"], done["finish_reasons"]) == ("onetwo", 2, [])
        talk.fails(outcome)
        reply = await talk.client.ask(b"GET /nothing HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n")
        assert reply.status == 501  # the client's connection lives on


@each_end
@on_uvloop
async def test_native_stream_that_breaks_off(end: Callable[[Peer], None], code: str, outcome: Outcome) -> None:
    """The frames that came whole, the dialect's own error, then the connection's end without the last chunk."""
    async with talking(ask(headers=NATIVE), upstream=IDLE) as talk:
        talk.peer.send(chunk(FRAMES[0]) + chunk(FRAMES[1] + HALF))
        await until_read(talk, b"two")
        end(talk.peer)
        reply = await talk.client.reply()
        assert reply.body.startswith(b"".join(FRAMES))
        error = reply.body.removeprefix(b"".join(FRAMES))
        assert error.startswith(b'data: {"error":{')
        assert b'"code":"%b"' % code.encode() in error
        assert error.endswith(b"}}\n\n")
        assert not reply.is_whole
        assert b"[DONE]" not in reply.body
        talk.fails(outcome)


NATIVE_ERRORS = {
    MESSAGES: (
        SSE_HEAD,
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m1"}}\n\n',
        b"event: content_block_de",
        b'event: error\ndata: {"type":"error","error":{"type":"',
        b"\n\n",
    ),
    OLLAMA_CHAT: (
        NDJSON_HEAD,
        b'{"model":"m","message":{"role":"assistant","content":"hi"},"done":false}\n',
        b'{"model":"m","mess',
        b'{"error":"',
        b'"}\n',
    ),
}


@pytest.mark.parametrize("path", [MESSAGES, OLLAMA_CHAT])
@on_uvloop
async def test_native_error_frame_of_other_dialects(path: str) -> None:
    head, frame, half, error_start, error_end = NATIVE_ERRORS[path]
    async with talking(ask(path), head) as talk:
        talk.peer.send(chunk(frame) + chunk(half))
        await until_read(talk, frame[-10:])
        talk.peer.reset()
        reply = await talk.client.reply()
        assert reply.body.startswith(frame + error_start)
        assert reply.body.endswith(error_end)
        assert (reply.is_whole, reply.body.count(b"\n\n")) == (False, frame.count(b"\n\n") + error_end.count(b"\n\n"))


@pytest.mark.parametrize(
    "noise", [b"", b": ping\n\n", b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n']
)
@on_uvloop
async def test_silence_before_the_first_content(noise: bytes) -> None:
    """Comments and roles are no content: only that ends the wait."""
    async with talking(ask(headers=TYPED), upstream=FIRST) as talk:
        if noise:
            talk.peer.send(chunk(noise))
        reply = await talk.client.reply()
        assert done_of(reply, "first_token_timeout", "timed_out")["ttft_ms"] is None
        talk.fails(Outcome.TIMED_OUT)
        await talk.peer.lost()


@on_uvloop
async def test_silence_before_the_first_content_in_native() -> None:
    async with talking(ask(), upstream=FIRST) as talk:
        talk.peer.send(chunk(b": ping\n\n"))
        reply = await talk.client.reply()
        assert reply.body.startswith(b': ping\n\ndata: {"error":{')
        assert b'"first_token_timeout"' in reply.body
        assert not reply.is_whole


SMALL_FRAMES = {"limits": Limits(max_frame_bytes=4 * KIB)}
BIG_FRAME = openai_frames("x" * 40 * KIB)[0]


@pytest.mark.parametrize("in_one_read", [False, True])
@on_uvloop
async def test_oversized_frame_ends_a_typed_stream(in_one_read: bool) -> None:
    async with talking(ask(headers=TYPED), route=SMALL_FRAMES) as talk:
        talk.peer.send(chunk(FRAMES[0]))
        if not in_one_read:
            await until_read(talk, b"one")
        talk.peer.send(chunk(BIG_FRAME))
        reply = await talk.client.reply()
        done_of(reply, "frame_too_large", "failed")
        assert texts(reply) == "one"
        talk.fails(Outcome.UPSTREAM_BROKEN)
        await talk.peer.lost()


@on_uvloop
async def test_oversized_frame_passes_through_native() -> None:
    frames = [FRAMES[0], BIG_FRAME, *openai_frames("two")]
    async with answering(stream(frames)) as upstream, before(upstream.address, route=SMALL_FRAMES) as app:
        reply = await asked(app, ask())
        assert (reply.body, reply.is_whole) == (b"".join(frames), True)
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}


STRANGE = {
    "broken_json": (b'data: {"choices": [\n\n', "extension", {"type": "unparsed", "data": '{"choices": ['}),
    "broken_utf8": (b"data: \xff{\n\n", "extension", {"type": "unparsed", "data": "\ufffd{"}),
    "unknown_event": (b'event: weather\ndata: {"sun":1}\n\n', "extension", {"type": "weather", "data": {"sun": 1}}),
    "utf8_in_text": (
        b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"a\xc3(b"}}]}\n\n',
        "token",
        {"index": 0, "text": "a\ufffd(b"},
    ),
}


@pytest.mark.parametrize(("frame", "name", "data"), STRANGE.values(), ids=STRANGE)
@on_uvloop
async def test_strange_frames_pass_on_and_the_stream_lives(frame: bytes, name: str, data: dict[str, Any]) -> None:
    frames = [FRAMES[0], frame, *openai_frames("two")]
    async with answering(stream(frames)) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask(headers=TYPED))
        done_of(reply, None, "completed")
        assert (name, data) in reply.events()
        assert texts(reply).replace(data.get("text", ""), "") == "onetwo"
        native = await asked(app, ask(headers=NATIVE))
        assert (native.body, native.is_whole) == (b"".join(frames), True)
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}


@on_uvloop
async def test_upstream_error_in_the_stream() -> None:
    error = b'data: {"error":{"message":"no capacity","code":503}}\n\n'
    frames = [FRAMES[0], error]
    async with answering(stream(frames)) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask(headers=TYPED))
        done_of(reply, "upstream_error", "failed")
        native = await asked(app, ask(headers=NATIVE))
        assert native.body.startswith(b"".join(frames))
        assert app.streams.outcomes == {Outcome.UPSTREAM_FAILED: 2}


@on_uvloop
async def test_body_that_only_eof_ends_is_complete_with_its_terminator() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    frames = openai_frames("one")
    async with answering([head, *frames]) as upstream, before(upstream.address) as app:
        native = await asked(app, ask())
        assert (native.body, native.is_whole) == (b"".join(frames), True)
        done_of(await asked(app, ask(headers=TYPED)), None, "completed")


@on_uvloop
async def test_cut_gzip_stream() -> None:
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b"".join(FRAMES)) + packer.flush(zlib.Z_SYNC_FLUSH)
    head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    async with talking(ask(headers=TYPED), head) as talk:
        talk.peer.send(chunk(packed))
        await until_read(talk, b"two")
        talk.peer.end()
        reply = await talk.client.reply()
        done_of(reply, "upstream_truncated", "failed")
        assert texts(reply) == "onetwo"


async def until_read(talk: Talk, marker: bytes) -> None:
    """Until the client has been sent ``marker``: what comes after it is another read of the upstream."""
    reader: Any = talk.client.reader
    while marker not in reader._buffer:
        await turns(1)
