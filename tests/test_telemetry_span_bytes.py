"""Our encoding of spans against OpenTelemetry's own: byte for byte what a collector reads the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from sidecar.errors import CODES, Failure, Outcome
from sidecar.record import Content
from sidecar.telemetry.choices import Collector
from sidecar.telemetry.otlp import span_exporter
from sidecar.telemetry.span_bytes import encode
from sidecar.telemetry.spans import SpanBuilder
from tests.telemetry_support import waiting

RESOURCE = Resource({"service.name": "test", "cores": 2, "ratio": 0.5, "is": True}, "https://schema.test/1")
SCOPE = InstrumentationScope("test", "1.0")
VALUES = (
    st.text(max_size=300)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.lists(st.text(max_size=5), max_size=3).map(tuple)
)


def context(trace_id: int = 2**127 + 1, *, is_remote: bool = False, state: TraceState | None = None) -> SpanContext:
    return SpanContext(trace_id, 5, is_remote, TraceFlags(1), state or TraceState())


def span(**changes: Any) -> ReadableSpan:
    plain = {"context": context(), "resource": RESOURCE, "instrumentation_scope": SCOPE}
    return ReadableSpan("name", **{**plain, "start_time": 1, "end_time": 2**63, **changes})


def assert_alike(*spans: ReadableSpan) -> None:
    assert encode(spans) == encode_spans(spans).SerializeToString(deterministic=True)


@pytest.mark.parametrize("compat", [(), ("langfuse", "legacy", "openinference", "openlit")])
@pytest.mark.parametrize("content", [None, Content("asked" * 5000, "answered", is_cut=True)])
def test_every_span_of_ours(compat: tuple[str, ...], content: Content | None) -> None:
    builder = SpanBuilder(RESOURCE, compat, 0.3)
    made = builder.build(waiting(content=content))
    for code in CODES:
        made += builder.build(waiting(outcome=CODES[code].outcome, failure=Failure(code, "says"), content=content))
    made += builder.build(waiting(outcome=Outcome.CLIENT_CANCELLED, warnings=("one", "other")))
    assert len(made) > 2 * len(CODES)
    assert_alike(*made)


def test_parents_states_and_statuses() -> None:
    state = TraceState([("a", "1"), ("b@c", "2")])
    assert_alike(
        span(parent=context(is_remote=True, state=state), context=context(state=state), kind=SpanKind.SERVER),
        span(parent=context(), kind=SpanKind.CLIENT, status=Status(StatusCode.ERROR, "why")),
        span(status=Status(StatusCode.OK), events=(Event("one", timestamp=3), Event("two", {"a": 1}, 4))),
    )


def test_other_resources_and_scopes_stand_apart() -> None:
    other = InstrumentationScope("other", None, "https://schema.test/2", {"a": "b"})
    assert_alike(span(), span(instrumentation_scope=other), span(resource=Resource({}), instrumentation_scope=None))
    assert encode([]) == b""


@given(st.dictionaries(st.text(min_size=1, max_size=20), VALUES, max_size=8))
def test_any_attributes(attributes: dict[str, Any]) -> None:
    assert_alike(span(attributes=attributes))


def test_what_is_equal_in_python_is_not_in_bytes() -> None:
    assert_alike(*(span(attributes={"a": value}) for value in (1, True, 1.0, "1", 0, False, 0.0, "")))


def test_a_value_of_no_known_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be a bytes"):
        encode([span(attributes={"a": b"x"})])


def test_where_a_release_takes_no_bytes_the_sdk_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Sequence[ReadableSpan]] = []

    def export(_: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encoded.append(spans)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    exporter = span_exporter(Collector(url="http://127.0.0.1:9"))
    client = exporter.__dict__.pop("_client")
    spans = [span()]
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert encoded == [spans]
    client.shutdown()
