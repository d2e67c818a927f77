"""What has to pass as it was sent, though something of it looks like a stream or a failure."""

from __future__ import annotations

import pytest

from sidecar.errors import Outcome
from sidecar.settings import Cors, Timeouts
from tests.app_support import answering, asked, before, on_uvloop, plain, request
from tests.core_support import Rig

PAGE = "https://app.example.com"
UPSTREAM_ERROR = b'data: {"error":{"message":"boom","code":"server_error"}}\n\n'
TOKEN = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


@pytest.mark.parametrize("dialect", ["auto", "openai-chat", "ollama-chat"])
@on_uvloop
async def test_a_text_page_of_an_llm_server_is_no_stream(dialect: str) -> None:
    page = b"vllm:num_requests_running 1.0\n"
    answer = plain(page, headers=[("Content-Type", "text/plain; version=0.0.4")])
    async with answering(answer) as upstream, before(upstream.address, upstream={"dialect": dialect}) as app:
        reply = await asked(app, request("GET", "/metrics"))
    assert (reply.status, reply.body, reply.is_whole) == (200, page, True)


@on_uvloop
async def test_who_may_read_an_answer_is_said_once() -> None:
    answer = plain(b"{}", headers=[("Content-Type", "application/json"), ("Access-Control-Allow-Origin", "*")])
    async with answering(answer) as upstream, before(upstream.address, cors=Cors((PAGE,))) as app:
        reply = await asked(app, request("GET", "/v1/models", headers=[("Origin", PAGE)]))
    assert reply.header("Access-Control-Allow-Origin") == PAGE


@on_uvloop
async def test_an_upstreams_own_cors_passes_where_none_is_configured() -> None:
    answer = plain(b"{}", headers=[("Content-Type", "application/json"), ("Access-Control-Allow-Origin", "*")])
    async with answering(answer) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("GET", "/v1/models", headers=[("Origin", PAGE)]))
    assert reply.header("Access-Control-Allow-Origin") == "*"


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket"])
@on_uvloop
async def test_a_websocket_upgrade_never_becomes_a_plain_get(upgrade: str) -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("GET", "/v1/realtime", headers=[("Upgrade", upgrade)]))
    assert (reply.status, upstream.received) == (501, [])


@pytest.mark.parametrize("dialect", ["opaque-sse", "opaque-ndjson"])
@pytest.mark.parametrize("format_name", ["native", "typed"])
def test_an_unknown_stream_is_not_out_of_time_while_it_lives(dialect: str, format_name: str) -> None:
    rig = Rig(dialect=dialect, format=format_name, timeouts=Timeouts(first_token_s=2.0, idle_s=3.0)).open()
    for _ in range(5):
        rig.feed(b'data: {"a":1}\n\n' if dialect == "opaque-sse" else b'{"a":1}\n').pass_time(2.0)
    assert rig.outcome is None
    rig.end()
    assert rig.outcome is Outcome.COMPLETED


def test_an_unknown_stream_that_falls_silent_is_out_of_time() -> None:
    rig = Rig(dialect="opaque-sse", timeouts=Timeouts(first_token_s=2.0, idle_s=3.0)).open().pass_time(4.0)
    assert (rig.code, rig.outcome) == ("idle_timeout", Outcome.TIMED_OUT)


def test_an_error_the_upstream_told_is_not_told_twice_in_native() -> None:
    rig = Rig(format="native").open().feed([TOKEN, UPSTREAM_ERROR]).end()
    assert (rig.outcome, rig.client.body, rig.client.ends) == (
        Outcome.UPSTREAM_FAILED,
        TOKEN + UPSTREAM_ERROR,
        ["finish"],
    )
