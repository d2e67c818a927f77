"""The whole of it over sockets: one request is one trace, one page of metrics and one line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import App
from sidecar.settings import Address, Logs, SecretSource, Telemetry
from sidecar.telemetry.line_output import LineOutput
from tests.app_support import CHAT, answering, ask, asked, on_uvloop, openai_frames, settings_for, stream, upstream_at
from tests.telemetry_support import DEADLINE_S, collecting, refusing_url, values

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER_ID = "b7ad6b7169203331"
SECRET = "sk-very-secret"
HEADERS = [
    ("traceparent", f"00-{TRACE_ID}-{CALLER_ID}-01"),
    ("tracestate", "a=1"),
    ("baggage", f"user={SECRET}"),
    ("Authorization", f"Bearer {SECRET}"),
]
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Logged:
    """Log lines in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
        self.output = LineOutput(Logs("json"), self._descriptor)
        self.output.start()

    def close(self) -> None:
        self.output.close(DEADLINE_S)
        os.close(self._descriptor)

    def lines(self) -> list[dict[str, Any]]:
        self.output.close(DEADLINE_S)
        return [json.loads(line) for line in self._path.read_text().splitlines()]


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Logged]:
    made = Logged(tmp_path / "log")
    yield made
    made.close()


@asynccontextmanager
async def running(
    upstream: Address, environ: Mapping[str, str] | None = None, lines: LineOutput | None = None, **options: Any
) -> AsyncIterator[App]:
    app = App(settings_for(upstream_at(upstream), **options), environ or {}, lines=lines)
    await app.start()
    try:
        yield app
    finally:
        await app.close()


async def page_of(app: App, *, bearer: str = "", path: str = "/metrics") -> str:
    asked_for = urllib.request.Request(f"http://127.0.0.1:{app.admin_port}{path}")
    if bearer:
        asked_for.add_header("Authorization", f"Bearer {bearer}")

    def get() -> str:
        with NO_PROXY.open(asked_for, timeout=DEADLINE_S) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(get)


@on_uvloop
async def test_one_request_is_one_trace_one_line_and_one_count(logged: Logged) -> None:
    target = f"{CHAT}?key={SECRET}"
    with collecting() as collector:
        async with (
            answering(stream(openai_frames("a", "b"))) as upstream,
            running(upstream.address, lines=logged.output, telemetry=Telemetry(otlp=collector.url)) as app,
        ):
            reply = await asked(app, ask(target, HEADERS))
            page = await page_of(app)
        server, client = collector.spans
        (got,) = upstream.received
    assert reply.is_whole
    assert (server.trace_id.hex(), server.parent_span_id.hex(), server.trace_state) == (TRACE_ID, CALLER_ID, "a=1")
    assert client.parent_span_id == server.span_id
    assert got.header("traceparent") == f"00-{TRACE_ID}-{client.span_id.hex()}-01"
    assert (got.header("tracestate"), got.header("baggage")) == ("a=1", None)
    found = values(client.attributes)
    assert (found["gen_ai.request.model"], found["gen_ai.usage.output_tokens"]) == ("m", 2)
    assert found["gen_ai.response.time_to_first_chunk"] <= found["llm_sidecar.ttft"]
    (line,) = logged.lines()
    assert (line["trace_id"], line["span_id"]) == (TRACE_ID, server.span_id.hex())
    assert (line["stream"], line["outcome"], line["path"]) == (reply.header("X-Stream-Id"), "completed", CHAT)
    assert line["ttft_s"] == found["llm_sidecar.ttft"]
    assert 'llm_sidecar_streams_ended_total{llm_sidecar_route="all",llm_sidecar_upstream="llm"' in page
    assert "\nllm_sidecar_streams_active 0" in page
    assert "\nllm_sidecar_buffered_limit_bytes 268435456" in page
    assert re.search(r"\nllm_sidecar_connections [01]\n", page)
    assert re.search(r"\nllm_sidecar_connections_limit [1-9]\d*\n", page)
    for told in (str(collector.spans), str(line), page):
        assert SECRET not in told


@on_uvloop
async def test_without_a_collector_context_travels_all_the_same(logged: Logged) -> None:
    async with answering(stream(openai_frames("a"))) as upstream, running(upstream.address, lines=logged.output) as app:
        await asked(app, ask(headers=[("traceparent", f"00-{TRACE_ID}-{CALLER_ID}-00")]))
    sent = upstream.received[0].header("traceparent")
    assert sent is not None
    assert (sent.split("-")[1], sent.split("-")[3]) == (TRACE_ID, "00")
    assert logged.lines()[0]["trace_id"] == TRACE_ID


@on_uvloop
async def test_switched_off_lines_stay_and_a_clients_context_travels_on(logged: Logged) -> None:
    environ = {"OTEL_SDK_DISABLED": "true"}
    async with (
        answering(stream(openai_frames("a"))) as upstream,
        running(upstream.address, environ, logged.output, telemetry=Telemetry(otlp=refusing_url())) as app,
    ):
        await asked(app, ask(headers=HEADERS))
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await page_of(app)
    assert upstream.received[0].header("traceparent") == HEADERS[0][1], "the client's own travels on"
    assert "trace_id" not in logged.lines()[0]


@on_uvloop
async def test_without_a_propagator_no_context_is_sent() -> None:
    async with (
        answering(stream(openai_frames("a"))) as upstream,
        running(upstream.address, {"OTEL_PROPAGATORS": "none"}) as app,
    ):
        await asked(app, ask(headers=HEADERS))
    assert upstream.received[0].header("traceparent") is None


@on_uvloop
async def test_the_page_is_guarded_as_the_rest_of_the_admin_port() -> None:
    auth = SecretSource(env="ADMIN")
    async with (
        answering(stream(openai_frames("a"))) as upstream,
        running(upstream.address, {"ADMIN": SECRET}, admin_auth=auth) as app,
    ):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            await page_of(app)
        assert "# TYPE llm_sidecar_buffered_limit_bytes gauge" in await page_of(app, bearer=SECRET)


@on_uvloop
async def test_content_is_captured_where_it_is_asked_for() -> None:
    with collecting() as collector:
        telemetry = Telemetry(otlp=collector.url, capture_content=True, compat=("openinference",))
        async with (
            answering(stream(openai_frames("Hel", "lo"))) as upstream,
            running(upstream.address, telemetry=telemetry) as app,
        ):
            await asked(app, ask(messages=[{"role": "user", "content": "hi"}]))
        (_, client) = collector.spans
    found = values(client.attributes)
    assert json.loads(found["gen_ai.input.messages"])[0]["parts"] == [{"type": "text", "content": "hi"}]
    assert json.loads(found["gen_ai.output.messages"])[0]["parts"] == [{"type": "text", "content": "Hello"}]
    assert found["output.value"] == "Hello"
