"""What bad requests get: status, code and shape of the path's API; the upstream is never called, nothing is echoed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.settings import KIB, Limits, Match, Route
from tests.app_support import (
    CHAT,
    MESSAGES,
    OLLAMA_CHAT,
    Reply,
    answering,
    ask,
    asked,
    client_of,
    on_uvloop,
    plain,
    request,
    running,
    settings_for,
    upstream_at,
)
from tests.upstream_support import turns

MARKER = "sk-marker-0123456789"
SECRET_HEADERS = [("Authorization", f"Bearer {MARKER}"), ("X-Note", MARKER), ("Content-Type", "application/json")]
OTHER = "/other/thing"
PATHS = [CHAT, MESSAGES, OLLAMA_CHAT, OTHER]
IDS = ["openai", "anthropic", "ollama", "problem"]
each_path = pytest.mark.parametrize("path", PATHS, ids=IDS)


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever these requests hold, no log line of any logger does."""
    caplog.set_level(logging.DEBUG)
    yield
    assert MARKER not in caplog.text
    assert [record for record in caplog.records if record.exc_info] == []


@asynccontextmanager
async def refusing(**options: Any) -> AsyncIterator[Any]:
    """An app whose upstream must never hear a request."""
    async with answering(plain(b"{}")) as upstream:
        limits = Limits(max_body_bytes=4 * KIB)
        routes = [Route("all", ("llm",), limits=limits)]
        async with running(settings_for(upstream_at(upstream.address), **{"routes": routes, **options})) as app:
            yield app
        assert upstream.received == []


def assert_refused(reply: Reply, path: str, status: int, code: str) -> str:
    """The whole answer is ours, in the shape of the path's API; returns its message."""
    assert (reply.status, reply.is_whole) == (status, True)
    assert MARKER.encode() not in reply.raw_head + reply.body
    assert reply.header("Server") is None
    assert reply.header("Date") is None
    body = reply.json()
    if path == OTHER:
        assert reply.header("Content-Type") == "application/problem+json"
        assert (body["type"], body["status"], body["code"]) == ("about:blank", status, code)
        return str(body["detail"])
    assert reply.header("Content-Type") == "application/json"
    return _message(path, body, status, code)


def _message(path: str, body: Mapping[str, Any], status: int, code: str) -> str:
    if path == OLLAMA_CHAT:
        assert set(body) == {"error"}
        return str(body["error"])
    error = body["error"]
    if path == CHAT:
        assert (set(error), error["code"]) == ({"message", "type", "param", "code"}, code)
    else:
        kinds = {404: "not_found_error", 413: "request_too_large"}
        assert (body["type"], error["type"]) == ("error", kinds.get(status, "invalid_request_error"))
    return str(error["message"])


def post(path: str, body: bytes) -> bytes:
    return request("POST", path, body, SECRET_HEADERS)


def chunked(path: str, rest: bytes) -> bytes:
    return request("POST", path, headers=[*SECRET_HEADERS, ("Transfer-Encoding", "chunked")]) + rest


@each_path
@on_uvloop
async def test_declared_body_over_the_limit(path: str) -> None:
    async with refusing() as app:
        reply = await asked(app, post(path, b'{"model":"' + MARKER.encode() * 400 + b'"}'))
        assert_refused(reply, path, 413, "body_too_large")


@each_path
@on_uvloop
async def test_declared_body_over_the_limit_is_refused_before_it_comes(path: str) -> None:
    async with refusing() as app, client_of(app) as client:
        reply = await client.ask(request("POST", path, headers=[*SECRET_HEADERS, ("Content-Length", "999999999")]))
        assert_refused(reply, path, 413, "body_too_large")
        assert reply.header("Connection") == "close"


@each_path
@on_uvloop
async def test_chunked_body_over_the_limit(path: str) -> None:
    piece = MARKER.encode() * 50
    async with refusing() as app, client_of(app) as client:
        await client.send(chunked(path, b""))
        for _ in range(5):
            await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert_refused(await client.reply(), path, 413, "body_too_large")


BROKEN_CHUNKS = [b"zz\r\n", b"5\r\nabcdeXX", b"-1\r\n", b"5;\r\nab\n0\r\n\r\n", b"0\r\nX\0: %b\r\n\r\n"]


@each_path
@pytest.mark.parametrize("rest", BROKEN_CHUNKS)
@on_uvloop
async def test_broken_chunked_body(path: str, rest: bytes) -> None:
    async with refusing() as app, client_of(app) as client:
        await client.send(chunked(path, b"3\r\n{ \n\r\n"))
        while app.streams.body_bytes == 0:
            await turns(1)
        await client.send(rest + MARKER.encode() + b"\r\n")
        assert_refused(await client.reply(), path, 400, "bad_request")
        assert await client.rest() == b""


@pytest.mark.parametrize("rest", BROKEN_CHUNKS)
@on_uvloop
async def test_broken_chunked_body_in_one_read_with_its_head(rest: bytes) -> None:
    async with refusing() as app, client_of(app) as client:
        reply = await client.ask(chunked(CHAT, rest + MARKER.encode() + b"\r\n"))
        assert_refused(reply, OTHER, 400, "bad_request")  # the parser keeps no path of what it could not read
        assert await client.rest() == b""


BAD_HEADS = {
    "cl_and_te": b"POST %b HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nX: %b\r\n\r\n0\r\n\r\n",
    "te_and_cl": b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\nX: %b\r\n\r\n0\r\n\r\n",
    "two_lengths": b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\nX: %b\r\n\r\nabcde",
    "bare_lf": b"POST %b HTTP/1.1\nHost: a\nX: %b\nContent-Length: 2\n\n{}",
    "bare_lf_in_fields": b"POST %b HTTP/1.1\r\nHost: a\nX: %b\r\nContent-Length: 2\r\n\r\n{}",
    "bare_lf_at_the_end": b"POST %b HTTP/1.1\r\nHost: a\r\nX: %b\r\nContent-Length: 2\r\n\n{}",
    "bare_cr": b"POST %b HTTP/1.1\r\nHost: a\r\nX: a\r%b\r\nContent-Length: 2\r\n\r\n{}",
    "nul": b"POST %b HTTP/1.1\r\nHost: a\r\nX: \0%b\r\nContent-Length: 2\r\n\r\n{}",
    "space_before_colon": b"POST %b HTTP/1.1\r\nHost: a\r\nX : %b\r\nContent-Length: 2\r\n\r\n{}",
    "folded": b"POST %b HTTP/1.1\r\nHost: a\r\nX: a\r\n %b\r\nContent-Length: 2\r\n\r\n{}",
    "no_colon": b"POST %b HTTP/1.1\r\nHost: a\r\nX%b\r\nContent-Length: 2\r\n\r\n{}",
    "bad_length": b"POST %b HTTP/1.1\r\nHost: a\r\nX: %b\r\nContent-Length: +2\r\n\r\n{}",
    "te_twice": b"POST %b HTTP/1.1\r\nHost: a\r\nX: %b\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "te_not_chunked": b"POST %b HTTP/1.1\r\nHost: a\r\nX: %b\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "method": b"PO ST %b HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n",
    "version": b"POST %b HTTX/1.1\r\nHost: a\r\nX: %b\r\n\r\n",
    "http2_preface": b"PRI * HTTP/2.0\r\n\r\nSM %b %b\r\n\r\n",
}


@pytest.mark.parametrize("head", BAD_HEADS.values(), ids=BAD_HEADS)
@on_uvloop
async def test_broken_framing(head: bytes) -> None:
    async with refusing() as app, client_of(app) as client:
        reply = await client.ask(head % (CHAT.encode(), MARKER.encode()))
        assert reply.json()["code"] == "bad_request"
        assert_refused(reply, OTHER, 400, "bad_request")
        assert await client.rest() == b""


@on_uvloop
async def test_broken_framing_split_between_reads() -> None:
    async with refusing() as app, client_of(app) as client:
        for piece in (b"POST / HTTP/1.1\r\nHost: a\r", b"\nX: ", MARKER.encode(), b"\n", b"\r\n"):
            await client.send(piece)
        assert_refused(await client.reply(), OTHER, 400, "bad_request")


@pytest.mark.parametrize(
    "head",
    [
        request("GET", CHAT, headers=[("X-Big", MARKER * 2000)]),
        request("GET", CHAT + "?" + MARKER * 2000),
        request("GET", CHAT, headers=[("X-" + "n" * 40_000, MARKER)]),
        request("GET", CHAT, headers=[(f"X-{number}", MARKER) for number in range(1000)]),
    ],
    ids=["value", "target", "name", "count"],
)
@on_uvloop
async def test_oversized_header_fields(head: bytes) -> None:
    async with refusing() as app:
        assert_refused(await asked(app, head), OTHER, 431, "headers_too_large")


@each_path
@on_uvloop
async def test_oversized_header_block(path: str) -> None:
    many = [(f"X-{number}", MARKER * 100) for number in range(40)]
    async with refusing() as app:
        assert_refused(await asked(app, request("GET", path, headers=many)), path, 431, "headers_too_large")


@each_path
@on_uvloop
async def test_no_route(path: str) -> None:
    async with refusing(routes=[Route("one", ("llm",), Match("/elsewhere"))]) as app:
        assert_refused(await asked(app, post(path, MARKER.encode())), path, 404, "route_not_found")


@each_path
@pytest.mark.parametrize("body", [b"{}", b"", b'{"model":1}', b"not JSON " + MARKER.encode(), b'{"model":"a'])
@on_uvloop
async def test_model_missing(path: str, body: bytes) -> None:
    async with refusing(routes=[Route("one", ("llm",), Match(model="gpt-*"))]) as app:
        assert_refused(await asked(app, post(path, body)), path, 400, "model_missing")


@each_path
@on_uvloop
async def test_unknown_format_lists_the_known(path: str) -> None:
    async with refusing() as app:
        reply = await asked(app, ask(path, [*SECRET_HEADERS[:2], ("X-Stream-Format", MARKER)]))
        message = assert_refused(reply, path, 400, "unknown_format")
        assert message == "the known stream formats are: native, typed"


@on_uvloop
async def test_connection_lives_on_after_a_refusal_that_was_read_whole() -> None:
    async with refusing(routes=[Route("one", ("llm",), Match("/elsewhere"))]) as app, client_of(app) as client:
        for _ in range(3):
            reply = await client.ask(post(CHAT, b"{}"))
            assert_refused(reply, CHAT, 404, "route_not_found")
            assert reply.header("Connection") is None


@on_uvloop
async def test_client_that_leaves_in_the_middle_of_its_body_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with refusing() as app:
        async with client_of(app) as client:
            await client.send(chunked(CHAT, b"3\r\n{ \n\r\n"))
            while app.streams.body_bytes == 0:
                await turns(1)
        while app.streams.body_bytes:
            await turns(1)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
