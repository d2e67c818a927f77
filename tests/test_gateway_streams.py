"""Whole streams through the door: heads, heartbeats, connections that live on, error statuses, compressed bodies."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import sys
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest

from sidecar.errors import Outcome
from tests.app_support import (
    CHAT,
    MESSAGES,
    OLLAMA_CHAT,
    SSE_HEAD,
    Reply,
    answering,
    ask,
    asked,
    before,
    chunk,
    client_of,
    on_uvloop,
    openai_frames,
    plain,
    stream,
)
from tests.upstream_support import serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TYPED = [("X-Stream-Format", "typed")]
FRAMES = openai_frames("Hel", "lo")
BODY = b"".join(FRAMES)
ODD_HEAD = (
    b"HTTP/1.1 200 Fine By Me\r\n"
    b"x-Request-ID: r1\r\nContent-Type: text/event-stream; charset=utf-8\r\nOpenAI-Processing-Ms: 5\r\n"
    b"Set-Cookie: a=1\r\nset-cookie: b=2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
    b"X-Stream-Id: theirs\r\ncache-control: max-age=5\r\nServer: uvicorn\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    b"Trailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def text_of(reply: Reply) -> str:
    return "".join(data["text"] for name, data in reply.events() if name == "token")


@pytest.mark.parametrize("format_name", ["native", "typed"])
@on_uvloop
async def test_stream_head(format_name: str) -> None:
    """The upstream's headers in its order and spelling, less those of its hop, then ours; nothing else."""
    async with answering([ODD_HEAD, chunk(BODY), b"0\r\n\r\n"]) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask(headers=[("X-Stream-Format", format_name)]))
        assert (reply.status, reply.reason) == (200, "Fine By Me")
        stream_id = reply.header("X-Stream-Id")
        assert stream_id
        assert len(stream_id) == 32
        assert reply.header("Content-Type") == "text/event-stream; charset=utf-8"
        theirs = [each for each in reply.headers if each[0] != "Content-Type"]
        assert theirs == [
            ("x-Request-ID", "r1"),
            ("OpenAI-Processing-Ms", "5"),
            ("Set-Cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("Server", "uvicorn"),
            ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("Cache-Control", "no-cache, no-transform"),
            ("X-Accel-Buffering", "no"),
            ("X-Stream-Id", stream_id),
            ("X-Stream-Format", format_name),
            ("Transfer-Encoding", "chunked"),
        ]


@on_uvloop
async def test_nothing_is_added_that_names_the_sidecar() -> None:
    async with answering(stream(FRAMES)) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask())
        assert (reply.header("Server"), reply.header("Date"), reply.header("Via")) == (None, None, None)


@on_uvloop
async def test_frames_leave_one_by_one_as_they_come() -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        for headers in ([], TYPED):
            await client.send(ask(headers=headers))
            peer = await server.peer()
            await peer.request()
            peer.data.clear()
            peer.send(SSE_HEAD)
            await client.head()
            for frame in FRAMES[:2]:
                peer.send(chunk(frame))
                got = await client.chunk()
                assert got == frame if not headers else b"event: token" in (got or b"")
            peer.send(chunk(b"".join(FRAMES[2:])) + b"0\r\n\r\n")
            while await client.chunk():
                pass
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}


@on_uvloop
async def test_connections_are_kept_on_both_sides() -> None:
    async with answering(stream(FRAMES)) as upstream, before(upstream.address) as app, client_of(app) as client:
        for headers in itertools.islice(itertools.cycle([TYPED, []]), 6):
            reply = await client.ask(ask(headers=headers))
            assert reply.is_whole
            assert text_of(reply) == "Hello" if headers else reply.body == BODY
        assert len(upstream.received) == 6
        assert app.pool("llm").idle == 1


HEARTBEATS = [
    ({"format": "typed", "heartbeat_s": 0.01}, True),
    ({"format": "typed", "heartbeat_s": 15.0}, False),
    ({"format": "native", "heartbeat_s": 0.01}, False),
    ({"format": "native", "heartbeat_s": 0.01, "native_heartbeat": True}, True),
]


@pytest.mark.parametrize(("route", "beats"), HEARTBEATS)
@on_uvloop
async def test_heartbeats_come_between_frames_only(route: dict[str, Any], beats: bool) -> None:
    half = len(FRAMES[1]) // 2
    async with serving() as server, before(server.address, route=route) as app, client_of(app) as client:
        await client.send(ask())
        peer = await server.peer()
        await peer.request()
        peer.send(SSE_HEAD)
        await client.head()
        peer.send(chunk(FRAMES[0]) + chunk(FRAMES[1][:half]))
        first = await client.chunk()
        if beats:
            while not ((await client.chunk()) or b"").startswith(b":"):
                pass
        else:
            swept = app.streams.last_turn_at
            while app.streams.last_turn_at == swept:
                await asyncio.sleep(0.01)
        peer.send(chunk(FRAMES[1][half:] + b"".join(FRAMES[2:])) + b"0\r\n\r\n")
        rest = b""
        while piece := await client.chunk():
            rest += piece
        without = b"".join(line for line in rest.splitlines(keepends=True) if not line.startswith(b":"))
        if route["format"] == "native":
            assert first == FRAMES[0]
            assert (rest if not beats else without.lstrip(b"\n")) == b"".join(FRAMES[1:])
        else:
            assert without.count(b"event: done") == 1
            assert beats or rest == without


REJECTIONS = [
    (CHAT, 429, b'{"error": {"message":"slow down",  "type":"rate_limit"}}'),
    (CHAT, 500, b"<html>oops</html>"),
    (CHAT, 401, b""),
    (MESSAGES, 529, b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'),
    (OLLAMA_CHAT, 404, b'{"error":"model \\"x\\" not found"}'),
    ("/own/thing", 418, b"tea"),
]


@pytest.mark.parametrize(("path", "status", "body"), REJECTIONS)
@on_uvloop
async def test_error_status_passes_through_native_byte_for_byte(path: str, status: int, body: bytes) -> None:
    answer = plain(body, f"{status} No Way", [("Content-Type", "application/odd"), ("Retry-After", "7")])
    async with answering(answer) as upstream, before(upstream.address) as app, client_of(app) as client:
        for _ in range(2):
            reply = await client.ask(ask(path))
            assert (reply.status, reply.reason, reply.body) == (status, "No Way", body)
            assert (reply.header("Content-Type"), reply.header("Retry-After")) == ("application/odd", "7")
        assert app.streams.outcomes == {Outcome.UPSTREAM_REJECTED: 2}


@pytest.mark.parametrize(("path", "status", "body"), REJECTIONS)
@on_uvloop
async def test_error_status_is_an_http_error_in_typed(path: str, status: int, body: bytes) -> None:
    answer = plain(body, f"{status} No Way", [("Content-Type", "application/json"), ("Retry-After", "7")])
    async with answering(answer) as upstream, before(upstream.address) as app, client_of(app) as client:
        for _ in range(2):
            reply = await client.ask(ask(path, TYPED))
            assert (reply.status, reply.is_whole, reply.header("Retry-After")) == (status, True, "7")
            told = reply.json()
            if path == CHAT:
                assert told["error"]["code"] == "upstream_status"
            elif path == MESSAGES:
                assert told["error"]["native"] == {
                    "type": "error",
                    "error": {"type": "overloaded_error", "message": "Overloaded"},
                }
            elif path == OLLAMA_CHAT:
                assert told == {"error": 'model "x" not found'}
            else:
                assert (told["code"], told["status"]) == ("upstream_status", status)
        assert app.streams.outcomes == {Outcome.UPSTREAM_REJECTED: 2}


def compressed_head(coding: str) -> bytes:
    return SSE_HEAD.replace(b"\r\n\r\n", f"\r\nContent-Encoding: {coding}\r\n\r\n".encode())


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
@on_uvloop
async def test_compressed_stream(coding: str, size: int) -> None:
    packed = CODINGS[coding](BODY)
    head = compressed_head(coding)
    pieces = [chunk(packed[at : at + size]) for at in range(0, len(packed), size)]
    async with answering([head, *pieces, b"0\r\n\r\n"]) as upstream, before(upstream.address) as app:
        native = await asked(app, ask())
        assert (native.body, native.is_whole, native.header("Content-Encoding")) == (packed, True, coding)
        typed = await asked(app, ask(headers=TYPED))
        assert (text_of(typed), typed.header("Content-Encoding")) == ("Hello", None)
        assert typed.events()[-1][1]["status"] == "completed"
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}


@on_uvloop
async def test_coding_that_cannot_be_undone_passes_through_native_only() -> None:
    packed = b"\x8b\x03\x80data: no frame at all\n\n\x03"
    head = compressed_head("compress")
    async with answering([head, chunk(packed), b"0\r\n\r\n"]) as upstream, before(upstream.address) as app:
        native = await asked(app, ask())
        assert (native.body, native.is_whole, native.header("Content-Encoding")) == (packed, True, "compress")
        typed = await asked(app, ask(headers=TYPED))
        assert (typed.status, typed.json()["error"]["code"]) == (502, "malformed_upstream")


@on_uvloop
async def test_broken_compressed_stream() -> None:
    packed = bytearray(gzip.compress(BODY))
    packed[len(packed) // 2] ^= 0xFF
    head = compressed_head("gzip")
    async with answering([head, chunk(bytes(packed)), b"0\r\n\r\n"]) as upstream, before(upstream.address) as app:
        typed = await asked(app, ask(headers=TYPED))
        assert [name for name, _ in typed.events()][-1] == "done"
        assert typed.events()[-1][1]["status"] == "failed"
        native = await asked(app, ask())
        assert native.body == packed
