"""Arize Phoenix takes the traces of a real sidecar, and its own query API tells what was in them."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import httpx2
import openai
import pytest

from sidecar.app import App
from sidecar.settings import Telemetry
from tests.app_support import Answers, answering, before, openai_frames, stream
from tests.phoenix_server import Phoenix
from tests.upstream_support import run_on

CALLER_TRACE, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TEXTS = ("Hel", "lo", " you")


class Told(NamedTuple):
    """One stream as its client, its upstream and Phoenix saw it."""

    text: str
    upstream_parent: str
    request: dict[str, Any]
    call: dict[str, Any]


def say(app: App, headers: dict[str, str]) -> str:
    """What OpenAI's own client reads through the sidecar."""
    with (
        httpx2.Client(trust_env=False) as http,
        openai.OpenAI(api_key="k", base_url=f"http://{app.address}/v1", http_client=http, max_retries=0) as client,
    ):
        chunks = client.chat.completions.create(
            model="m-asked",
            messages=[{"role": "user", "content": "Hello?"}],
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=headers,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def told(phoenix: Phoenix, telemetry: Telemetry, environ: dict[str, str], headers: dict[str, str]) -> Told:
    """One stream through a sidecar that tells Phoenix; everything is sent when it has stopped."""
    texts: list[str] = []
    upstreams: list[Answers] = []

    async def streamed() -> None:
        async with (
            answering(stream(openai_frames(*TEXTS))) as upstream,
            before(upstream.address, environ=environ, tells_itself=True, telemetry=telemetry) as app,
        ):
            upstreams.append(upstream)
            texts.append(await asyncio.to_thread(say, app, headers))

    run_on("uvloop", streamed())
    (received,) = upstreams[0].received
    parent = received.header("traceparent")
    assert parent is not None
    request, call = phoenix.spans(parent.split("-")[1], count=2)
    return Told(texts[0], parent, request, call)


def assert_one_call(told: Told) -> None:
    """Its model, tokens and TTFT are there, and call, request and upstream hang together."""
    request, call = told.request, told.call
    assert told.text == "".join(TEXTS)
    assert (request["name"], call["name"]) == ("POST /**", "chat m-asked")
    assert call["parent_id"] == request["context"]["span_id"]
    assert told.upstream_parent == f"00-{call['context']['trace_id']}-{call['context']['span_id']}-01"
    found = call["attributes"]
    assert (
        found.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "m-asked",
            "gen_ai.response.model": "m",
            "gen_ai.usage.input_tokens": 1,
            "gen_ai.usage.output_tokens": len(TEXTS),
            "llm_sidecar.outcome": "completed",
        }.items()
    )
    assert 0 < found["gen_ai.response.time_to_first_chunk"] <= found["llm_sidecar.ttft"] < 10
    assert request["attributes"]["llm_sidecar.ttft"] == found["llm_sidecar.ttft"]
    assert "llm_sidecar.first_token" in [event["name"] for event in call["events"]]
    assert {request["status_code"], call["status_code"]} == {"UNSET"}
    # What its own pages show comes from these, which it derives, or is told.
    assert call["span_kind"] == "LLM"
    assert found["llm.token_count.prompt"] == 1
    assert found["llm.token_count.completion"] == len(TEXTS)


def test_a_stream_is_told_where_the_environment_says(phoenix: Phoenix, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": phoenix.url, "OTEL_METRICS_EXPORTER": "none"}
    for name, value in environ.items():  # the exporters read the process's own, as the sidecar does when it is run
        monkeypatch.setenv(name, value)
    found = told(phoenix, Telemetry(), environ, {})
    assert_one_call(found)
    assert found.request["parent_id"] is None
    assert found.call["attributes"]["llm.model_name"] == "m-asked"


def test_a_stream_is_told_over_grpc(phoenix: Phoenix) -> None:
    settings = Telemetry(otlp=phoenix.grpc_url, protocol="grpc")
    assert_one_call(told(phoenix, settings, {"OTEL_METRICS_EXPORTER": "none"}, {}))


def test_a_stream_in_the_words_of_openinference_continues_its_callers_trace(phoenix: Phoenix) -> None:
    settings = Telemetry(otlp=phoenix.url, compat=("openinference",))
    caller = {"traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01", "tracestate": "a=1"}
    found = told(phoenix, settings, {"OTEL_METRICS_EXPORTER": "none"}, caller)
    assert_one_call(found)
    assert found.request["context"]["trace_id"] == CALLER_TRACE
    assert found.request["parent_id"] == CALLER_SPAN
    said = found.call["attributes"]
    assert (said["llm.model_name"], said["llm.provider"], said["llm.token_count.total"]) == ("m", "openai", 4)
    assert [event["name"] for event in found.call["events"]] == ["llm_sidecar.first_token", "First Token Stream Event"]
