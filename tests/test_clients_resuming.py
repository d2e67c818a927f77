"""OpenAI's background responses through the sidecar: made by one request, read on by others that have no body."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from sidecar.settings import Address
from tests.app_support import answering, asked, before, on_uvloop, plain, request, stream

BACKGROUND, RESUMED = (
    (Path(__file__).parent / "fixtures" / "openai-responses" / f"{name}.sse").read_bytes()
    for name in ("background", "resumed")
)
RESUME = "/v1/responses/resp_7?stream=true&starting_after=7"
REFUSAL = plain(b'{"error":{"message":"not found","type":"invalid_request_error","code":null}}', "404 Not Found")
TYPED = [("X-Stream-Format", "typed")]


def texts_of(address: Address, *, starting_after: int | None = None) -> list[str]:
    """The text deltas that the package hands out, of a new response or of one that is read on."""
    with (
        httpx2.Client(trust_env=False) as http,
        openai.OpenAI(api_key="k", base_url=f"http://{address}/v1", http_client=http, max_retries=0) as client,
    ):
        events: Any = (
            client.responses.create(model="m", input="hi", background=True, stream=True)
            if starting_after is None
            else client.responses.retrieve("resp_7", stream=True, starting_after=starting_after)
        )
        return [event.delta for event in events if event.type == "response.output_text.delta"]


@on_uvloop
async def test_the_package_reads_a_background_response_and_reads_it_on() -> None:
    async with (
        answering(lambda received: stream([RESUMED if received.method == "GET" else BACKGROUND])) as upstream,
        before(upstream.address) as app,
    ):
        assert await asyncio.to_thread(texts_of, app.address) == ["One", "", " two", " three", " Four."]
        read_on = await asyncio.to_thread(lambda: texts_of(app.address, starting_after=7))
        assert read_on == [" two", " three", " Four."]
        assert [received.target for received in upstream.received] == [
            "/v1/responses",
            "/v1/responses/resp_7?starting_after=7&stream=true",
        ]


@on_uvloop
async def test_a_response_read_on_in_typed_events() -> None:
    async with answering(stream([RESUMED])) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("GET", RESUME, headers=TYPED))
        assert reply.header("X-Stream-Format") == "typed"
        events = reply.events()
        assert [data["text"] for name, data in events if name == "token"] == [" two", " three", " Four."]
        assert events[-1][1]["status"] == "completed"
        assert events[-1][1]["finish_reasons"] == [{"index": 0, "reason": "stop", "native": "completed"}]


@pytest.mark.parametrize("target", [RESUME, "/openai/v1/responses/resp_7?stream=true"])
@on_uvloop
async def test_a_rejection_is_told_in_our_words_where_a_stream_was_asked_for(target: str) -> None:
    async with answering(REFUSAL) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("GET", target, headers=TYPED))
        assert reply.status == 404
        error = reply.json()["error"]
        assert (error["code"], error["message"]) == ("upstream_status", "not found")


@on_uvloop
async def test_a_response_that_is_only_looked_at_is_no_stream() -> None:
    async with answering(REFUSAL) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("GET", "/v1/responses/resp_7", headers=TYPED))
        assert (reply.status, reply.json()["error"]["code"]) == (404, None)


@on_uvloop
async def test_a_page_instead_of_a_resumed_stream_is_a_failure() -> None:
    page = plain(b"<html>", headers=[("Content-Type", "text/html")])
    async with answering(page) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("GET", RESUME))
        assert (reply.status, reply.json()["error"]["code"]) == (502, "upstream_not_a_stream")
