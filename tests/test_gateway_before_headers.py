"""Upstreams that fail before their headers: the HTTP status and code of the endings table, in the path's own shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.errors import Outcome
from sidecar.settings import Address, Timeouts
from tests.app_support import CHAT, MESSAGES, OLLAMA_CHAT, Headers, ask, asked, before, on_uvloop, plain, request
from tests.upstream_support import Peer, Server, serving, turns

FORMATS = ["native", "typed"]
each_format = pytest.mark.parametrize("format_name", FORMATS)
HTML = plain(b"<html>busy</html>", headers=[("Content-Type", "text/html; charset=utf-8")])
GARBAGE = b"SSH-2.0-OpenSSH_9.6\r\n\r\n"


def in_format(name: str) -> Headers:
    return [("X-Stream-Format", name)]


async def assert_answered(
    address: Address, format_name: str, status: int, code: str, *, upstream: Mapping[str, Any] | None = None
) -> None:
    """A stream request to ``address`` gets this status and code, and the connection stays usable."""
    async with before(address, upstream=upstream or {}) as app:
        reply = await asked(app, ask(CHAT, in_format(format_name)))
        assert (reply.status, reply.is_whole, reply.json()["error"]["code"]) == (status, True, code)
        assert reply.header("X-Stream-Id")
        assert reply.header("Connection") is None
        assert sum(app.streams.outcomes.values()) == 1


@each_format
@on_uvloop
async def test_refused(format_name: str) -> None:
    async with serving() as closed:
        address = closed.address
    await turns(3)
    await assert_answered(address, format_name, 502, "upstream_refused")


@each_format
@on_uvloop
async def test_unknown_name(format_name: str) -> None:
    await assert_answered(Address("no-such-host.invalid", 80), format_name, 502, "upstream_dns")


@each_format
@on_uvloop
async def test_tls_to_a_plain_port(format_name: str) -> None:
    async with speaking(GARBAGE, at_once=True) as address:
        await assert_answered(address, format_name, 502, "upstream_tls", upstream={"scheme": "https"})


@each_format
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (GARBAGE, "upstream_not_http"),
        (b"\x16\x03\x01\x00\x02\x02\x46", "upstream_not_http"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "upstream_truncated"),
        (b"", "upstream_reset"),
        (HTML, "upstream_not_a_stream"),
    ],
    ids=["garbage", "tls_alert", "half_a_head", "nothing", "html"],
)
@on_uvloop
async def test_what_is_no_stream(answer: bytes, code: str, format_name: str) -> None:
    async with speaking(answer) as address:
        await assert_answered(address, format_name, 502, code)


@each_format
@on_uvloop
async def test_reset(format_name: str) -> None:
    async with speaking(Peer.reset) as address:
        await assert_answered(address, format_name, 502, "upstream_reset")


@each_format
@on_uvloop
async def test_silence(format_name: str) -> None:
    timeouts = {"timeouts": Timeouts(first_token_s=0.05)}
    async with speaking(lambda _peer: None) as address:
        await assert_answered(address, format_name, 504, "first_token_timeout", upstream=timeouts)


@each_format
@on_uvloop
async def test_total_time(format_name: str) -> None:
    timeouts = {"timeouts": Timeouts(total_s=0.05)}
    async with speaking(lambda _peer: None) as address:
        await assert_answered(address, format_name, 504, "total_timeout", upstream=timeouts)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (MESSAGES, {"type": "error", "error": {"type": "api_error"}}),
        (OLLAMA_CHAT, {}),
        ("/any/thing", {"type": "about:blank", "title": "Bad Gateway", "status": 502, "code": "upstream_refused"}),
    ],
)
@on_uvloop
async def test_shape_follows_the_path(path: str, shape: dict[str, Any]) -> None:
    async with serving() as closed:
        address = closed.address
    await turns(3)
    async with before(address) as app:
        body = (await asked(app, ask(path))).json()
        for key, value in shape.items():
            assert body[key] == value if not isinstance(value, dict) else value.items() <= body[key].items()
        if not shape:
            assert isinstance(body["error"], str)
        assert app.streams.outcomes == {Outcome.UPSTREAM_UNREACHABLE: 1}


@on_uvloop
async def test_next_upstream_answers_where_the_first_cannot_be_reached() -> None:
    async with serving() as closed:
        nobody = closed.address
    await turns(3)
    async with speaking(plain(b'{"ok":1}')) as address, before(nobody, address) as app:
        assert (await asked(app, ask(stream=False))).json() == {"ok": 1}
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}


@pytest.mark.parametrize("answer", [b"", GARBAGE, HTML], ids=["nothing", "garbage", "html"])
@on_uvloop
async def test_next_upstream_answers_where_the_first_breaks(answer: bytes) -> None:
    async with speaking(answer) as first, speaking(plain(b'{"ok":1}')) as second, before(first, second) as app:
        assert (await asked(app, ask())).json() == {"ok": 1}
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}


@on_uvloop
async def test_last_upstreams_failure_is_told() -> None:
    async with speaking(HTML) as first, speaking(GARBAGE) as second, before(first, second) as app:
        assert (await asked(app, ask())).json()["error"]["code"] == "upstream_not_http"
        assert app.streams.outcomes == {Outcome.UPSTREAM_BROKEN: 1}


@each_format
@on_uvloop
async def test_rejection_is_an_answer_and_asks_nobody_else(format_name: str) -> None:
    rejected = plain(b'{"error":{"message":"no"}}', "400 Oops")
    async with speaking(rejected) as first, serving() as second, before(first, second.address) as app:
        assert (await asked(app, ask(headers=in_format(format_name)))).status == 400
        assert second.peers == []


@on_uvloop
async def test_streamed_upload_goes_to_one_upstream_only() -> None:
    upload = request("POST", "/up", b"bytes", [("Content-Type", "application/octet-stream")])
    async with speaking(b"") as first, serving() as second, before(first, second.address) as app:
        assert (await asked(app, upload)).json()["code"] == "upstream_reset"
        assert second.peers == []


@asynccontextmanager
async def speaking(answer: Any, *, at_once: bool = False) -> AsyncIterator[Address]:
    """An upstream that sends these bytes (or does this) once asked (or at once), then closes if it sent any."""

    async def serve(server: Server) -> None:
        number = 0
        while True:
            peer = await server.peer(number)
            number += 1
            if not at_once:
                await peer.request()
            if isinstance(answer, bytes):
                peer.send(answer)
                peer.end()
            else:
                answer(peer)

    async with serving() as server:
        task = asyncio.get_running_loop().create_task(serve(server))
        try:
            yield server.address
        finally:
            task.cancel()
            await turns(2)
