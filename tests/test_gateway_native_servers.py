"""Servers that stream unasked, or are asked without a body, through the real sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import Outcome
from tests.app_support import Headers, Reply, answering, asked, before, on_uvloop, plain, request, stream
from tests.dialect_reading import FIXTURES

TYPED = ("X-Stream-Format", "typed")
ACCEPT = ("Accept", "text/event-stream")


def body_of(name: str) -> bytes:
    return Path(FIXTURES / name).read_bytes()


def text_of(reply: Reply) -> str:
    return "".join(data["text"] for name, data in reply.events() if name == "token")


@pytest.mark.parametrize(
    ("path", "headers"), [("/v1/streams/abc", []), ("/v1/streams/abc", [ACCEPT]), ("/v1/files/x", [ACCEPT])]
)
@on_uvloop
async def test_replicate_is_read_with_get(path: str, headers: Headers) -> None:
    body = body_of("replicate/text_and_logs.sse")
    async with answering(stream([body])) as upstream, before(upstream.address) as app:
        native = await asked(app, request("GET", path, headers=headers))
        assert (native.status, native.body, native.is_whole) == (200, body, True)
        typed = await asked(app, request("GET", path, headers=[*headers, TYPED]))
        assert text_of(typed) == 'Say "hi":\n\n- wö[1]'
        assert typed.events()[-1][1]["status"] == "completed"
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}


@pytest.mark.parametrize(
    ("path", "fixture", "text"),
    [
        ("/", "tgi/details.sse", "Hello wörld"),
        ("/generate_stream", "tgi/details.sse", "Hello wörld"),
        ("/v2/models/m/generate_stream", "triton/pieces.sse", "Hello wörld"),
        ("/v2/models/m/versions/1/generate_stream", "triton/kserve_done.sse", "Hello!"),
        ("/elsewhere", "triton/pieces.sse", "Hello wörld"),
        ("/elsewhere", "cohere/thinking_text_citation.sse", "Penguins live south\u2028 🐧."),
        ("/elsewhere", "llamacpp/progress_and_probabilities.sse", "Hellö"),
        ("/elsewhere", "sglang/accumulated.sse", "Hello wörld"),
    ],
)
@on_uvloop
async def test_first_frames_and_paths(path: str, fixture: str, text: str) -> None:
    body = body_of(fixture)
    async with answering(stream([body])) as upstream, before(upstream.address) as app:
        reply = await asked(
            app, request("POST", path, b'{"inputs":"a"}', [("Content-Type", "application/json"), TYPED])
        )
        assert text_of(reply) == text
        assert reply.events()[-1][1]["status"] == "completed"


@pytest.mark.parametrize("path", ["/generate_stream", "/v2/models/m/generate_stream", "/v1/streams/a"])
@on_uvloop
async def test_a_rejection_of_what_streams_unasked_is_told_in_our_words(path: str) -> None:
    rejection = plain(b'{"error":"overloaded","error_type":"overloaded"}', "429 Too Many Requests")
    async with answering(rejection) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("POST", path, b"{}", [("Content-Type", "application/json"), TYPED]))
        assert reply.status == 429
        assert reply.json()["error" if "streams" not in path else "detail"] == "overloaded"


@on_uvloop
async def test_a_growing_text_is_a_matter_of_configuration() -> None:
    body = body_of("triton-accumulated/grows.sse")
    ask = request("POST", "/v2/models/m/generate_stream", b"{}", [("Content-Type", "application/json"), TYPED])
    async with answering(stream([body])) as upstream:
        async with before(upstream.address) as app:
            assert text_of(await asked(app, ask)) == "HelHelloHelloHello wörld"
        async with before(upstream.address, upstream={"dialect": "triton-accumulated"}) as app:
            assert text_of(await asked(app, ask)) == "Hello wörld"


@pytest.mark.parametrize(("eof", "status"), [("truncated", "failed"), ("complete", "completed")])
@on_uvloop
async def test_the_end_of_the_connection_ends_a_triton_stream_only_where_that_is_configured(
    eof: str, status: str
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    body = body_of("triton/pieces.sse")
    ask = request("POST", "/v2/models/m/generate_stream", b"{}", [("Content-Type", "application/json"), TYPED])
    async with answering([head, body]) as upstream, before(upstream.address, upstream={"eof": eof}) as app:
        reply = await asked(app, ask)
        assert text_of(reply) == "Hello wörld"
        assert reply.events()[-1][1]["status"] == status


HELLO = "Hello wörld"
SAID = 'Say "hi":\n\n- wö[1]'


@pytest.mark.parametrize(
    ("path", "route", "upstream_options", "name", "text"),
    [
        ("/a/v2/models/m/generate_stream", {"strip_prefix": "/a/v2/models/m"}, {}, "tgi", HELLO),
        ("/v1/chat/completions", {"rewrite": "/v2/models/m/generate_stream"}, {}, "triton", HELLO),
        ("/v1/messages", {"rewrite": "/v1/streams/a"}, {}, "replicate", SAID),
        ("/x", {"rewrite": "/generate_stream"}, {"base_path": "/v2/models/m"}, "triton", HELLO),
    ],
)
@on_uvloop
async def test_the_path_that_is_sent_says_what_is_spoken(
    path: str, route: Any, upstream_options: Any, name: str, text: str
) -> None:
    fixtures = {"tgi": "details", "triton": "pieces", "replicate": "text_and_logs"}
    body = body_of(f"{name}/{fixtures[name]}.sse")
    async with (
        answering(stream([body])) as upstream,
        before(upstream.address, route=route, upstream=upstream_options) as app,
    ):
        reply = await asked(app, request("POST", path, b"{}", [("Content-Type", "application/json"), TYPED]))
        assert text_of(reply) == text
        assert reply.events()[-1][1]["status"] == "completed"
