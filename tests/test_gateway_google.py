"""Google's APIs through the whole sidecar: arrays that stream, streams that break, Anthropic's messages at Vertex."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from sidecar.settings import Limits
from tests.app_support import LAST_CHUNK, Headers, ask, asked, before, chunk, client_of, on_uvloop, request
from tests.app_support import answering as upstream_answering
from tests.app_support import stream as answer_of
from tests.official_google import as_google_events, read_gemini
from tests.upstream_support import serving

ARRAY = "/v1beta/models/g:streamGenerateContent"
VERTEX_CLAUDE = "/v1/projects/p/locations/l/publishers/anthropic/models/c:streamRawPredict"
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=UTF-8\r\nTransfer-Encoding: chunked\r\n\r\n"
JSON = "application/json; charset=UTF-8"
TYPED: Headers = [("X-Stream-Format", "typed")]


def element(text: str, **candidate: Any) -> bytes:
    content = {"parts": [{"text": text}], "role": "model"}
    return json.dumps({"candidates": [{"content": content, **candidate}], "responseId": "r1"}, indent=1).encode()


def generate(headers: Headers = ()) -> bytes:
    """A request that says nothing of streaming, as Google's clients send it."""
    body = json.dumps({"contents": [{"parts": [{"text": "hi"}]}]}).encode()
    return request("POST", ARRAY, body, [("Content-Type", "application/json"), *headers])


@on_uvloop
async def test_elements_of_an_array_reach_the_client_one_by_one() -> None:
    pieces = [b"[" + element("a"), b"\n,\r\n" + element("b"), b"\n,\r\n" + element("c", finishReason="STOP"), b"\n]\n"]
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(generate())
        peer = await server.peer()
        await peer.request()
        peer.send(JSON_HEAD)
        head = None
        for piece in pieces:
            peer.send(chunk(piece))
            head = head or await client.head()
            received = b""
            while received != piece:
                received += await client.chunk() or b"cut"
        peer.send(LAST_CHUNK)
        assert await client.chunk() == b""
        assert head is not None
        assert (head.header("Content-Type"), head.header("X-Stream-Format")) == (JSON, "native")


@on_uvloop
async def test_an_array_in_typed() -> None:
    pieces = [
        b"[" + element("a"),
        b"\n,\r\n" + element("b")[:20],
        element("b")[20:] + b"," + element("", finishReason=1),
    ]
    async with upstream_answering(answer_of([*pieces, b"]"], JSON)) as upstream, before(upstream.address) as app:
        reply = await asked(app, generate(TYPED))
        assert [name for name, _ in reply.events()] == ["start", "token", "token", "done"]
        assert [data["text"] for name, data in reply.events() if name == "token"] == ["a", "b"]
        done = reply.events()[-1][1]
        assert (done["status"], done["finish_reasons"]) == (
            "completed",
            [{"index": 0, "reason": "stop", "native": "STOP"}],
        )
        assert upstream.received[0].target == ARRAY


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" + element("a") + b",oops", "malformed_upstream"),
        (b"[" + element("a", finishReason="STOP") + b"]]", "malformed_upstream"),
        (b"[" + element("a", finishReason="STOP"), "upstream_truncated"),
        (b"[" + element("a") + b"]", "upstream_truncated"),
        (b"[" + element("a") + b"," + b" " * 5000, "frame_too_large"),
        (b"[" + element("a") + b',{"error":{"code":503,"message":"m"}}]', "upstream_error"),
        (b'[{"error":{"code":503,"message":"m"}}]', "upstream_error"),
        (b'{"error":{"code":503,"message":"m"}}', "upstream_error"),
    ],
)
@on_uvloop
async def test_a_broken_array_in_typed(body: bytes, code: str) -> None:
    route = {"limits": Limits(max_frame_bytes=4000)}
    async with upstream_answering(answer_of([body], JSON)) as upstream, before(upstream.address, route=route) as app:
        events = (await asked(app, generate(TYPED))).events()
        assert [name for name, _ in events if name not in {"token", "usage"}] == ["start", "error", "done"]
        assert (events[-2][1]["code"], events[-1][1]["status"]) == (code, "failed")
        if code == "upstream_error":
            assert events[-2][1]["native"] == {"code": 503, "message": "m"}


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([b"[" + element("a"), b",\n" + element("b")[:30]], 1),
        ([b"[" + element("a") + b"\n,"], 1),
        ([b"[" + element("a"), b"\n,\n" + element("b") + b"\n"], 2),
        ([b" [ "], 0),
    ],
)
@on_uvloop
async def test_a_broken_array_in_native_closes_with_our_error(pieces: Sequence[bytes], told: int) -> None:
    async with upstream_answering(answer_of(pieces, JSON)) as upstream, before(upstream.address) as app:
        reply = await asked(app, generate())
        elements = json.loads(reply.body)
        assert len(elements) == told + 1
        assert elements[-1]["error"]["status"] == "UNAVAILABLE"
        assert not reply.is_whole
        seen = read_gemini(as_google_events(reply.body))
        assert seen.text.get(0, "") == "ab"[:told]
        assert seen.error == elements[-1]["error"]["message"]


def claude(*payloads: dict[str, Any]) -> list[bytes]:
    return [b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode()) for each in payloads]


VERTEX = {"type": "vertex_event"}
MESSAGE = {"type": "message_start", "message": {"id": "msg_vrtx_1", "model": "c", "usage": {"input_tokens": 5}}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}
STOP = {"type": "message_stop"}


@pytest.mark.parametrize(
    "payloads",
    [
        [VERTEX, MESSAGE, TEXT, END, STOP],
        [MESSAGE, VERTEX, TEXT, END, STOP],
        [MESSAGE, TEXT, END, VERTEX, STOP],
        [MESSAGE, TEXT, END, STOP, VERTEX],
    ],
)
@on_uvloop
async def test_anthropics_messages_at_vertex(payloads: list[dict[str, Any]]) -> None:
    frames = claude(*payloads)
    async with upstream_answering(answer_of(frames)) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask(VERTEX_CLAUDE, TYPED, anthropic_version="vertex-2023-10-16"))
        events = [event for event in reply.events() if event[0] != "extension"]
        assert [name for name, _ in events] == ["start", "token", "usage", "done"]
        assert (events[0][1]["response_id"], events[0][1]["model"]) == ("msg_vrtx_1", "c")
        assert (events[1][1]["text"], events[-1][1]["status"]) == ("Hi", "completed")
        native = await asked(app, ask(VERTEX_CLAUDE))
        assert native.body == b"".join(frames)


@on_uvloop
async def test_a_refusal_at_vertex_is_told_in_anthropics_shape() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n"
    async with upstream_answering(page) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask(VERTEX_CLAUDE))
        assert (reply.status, reply.json()["error"]["type"]) == (502, "api_error")
