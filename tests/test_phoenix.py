"""Arize Phoenix takes OTLP traces and its own query API tells what was in them."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, set_span_in_context

from tests.phoenix_server import Phoenix


def test_a_trace_made_by_hand_is_read_back(phoenix: Phoenix) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(phoenix.traces_url)))
    tracer = provider.get_tracer("by hand")
    outer = tracer.start_span("POST /v1/chat/completions", kind=SpanKind.SERVER)
    attributes: dict[str, str | int | float] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "some-model",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.time_to_first_chunk": 0.2,
    }
    context = set_span_in_context(outer)
    inner = tracer.start_span("chat some-model", context, kind=SpanKind.CLIENT, attributes=attributes)
    inner.add_event("gen_ai.first_token")
    inner.end()
    outer.end()
    provider.shutdown()

    request, call = phoenix.spans(f"{outer.get_span_context().trace_id:032x}", count=2)
    assert (request["name"], call["name"]) == ("POST /v1/chat/completions", "chat some-model")
    assert call["parent_id"] == request["context"]["span_id"]
    assert call["attributes"].items() >= attributes.items()
    assert [event["name"] for event in call["events"]] == ["gen_ai.first_token"]
    # What its own pages show comes from these, which it derives.
    assert call["span_kind"] == "LLM"
    derived = ("llm.model_name", "llm.token_count.prompt", "llm.token_count.completion")
    assert [call["attributes"][name] for name in derived] == ["some-model", 3, 7]
