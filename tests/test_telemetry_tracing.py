"""W3C Trace Context in: what is valid joins its caller's trace, everything else begins one; and who is sampled."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sidecar.telemetry.choices import Sampling
from sidecar.telemetry.tracing import Tracing

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
ALWAYS = Tracing(Sampling())
HEX = "0123456789abcdef"


def ids(digits: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=digits, max_size=digits).filter(lambda text: text.strip("0") != "")


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        f"00-{TRACE_ID}-{SPAN_ID}-03",
        f"00-{TRACE_ID}-{SPAN_ID}-ff",
        f"01-{TRACE_ID}-{SPAN_ID}-01",
        f"cc-{TRACE_ID}-{SPAN_ID}-01-what the future brings",
        f"fe-{TRACE_ID}-{SPAN_ID}-01-",
    ],
)
def test_a_valid_parent_is_joined(parent: str) -> None:
    trace = ALWAYS.trace({"traceparent": parent})
    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (TRACE_ID, SPAN_ID, True)
    assert trace.traceparent == f"00-{TRACE_ID}-{trace.client_id}-01".encode()
    assert len({trace.server_id, trace.client_id, SPAN_ID}) == 3


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        PARENT.upper(),
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"01-{TRACE_ID}-{SPAN_ID}-01more",
        f"01-{TRACE_ID}-{SPAN_ID}-01.more",
        f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}0-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID[:-1]}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"0-{TRACE_ID}-{SPAN_ID}-01",
        f"0x-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
        f"00_{TRACE_ID}_{SPAN_ID}_01",
        f" {PARENT}",
        f"{PARENT}\n",
        f"00-{TRACE_ID}-{SPAN_ID}-0g",
        f"00-{'٣' * 32}-{SPAN_ID}-01",
    ],
)
def test_a_malformed_parent_begins_a_new_trace(parent: str) -> None:
    trace = ALWAYS.trace({"traceparent": parent, "tracestate": "vendor=1"})
    assert trace.trace_id != TRACE_ID
    assert (trace.parent_id, trace.state, trace.is_sampled) == ("", "", True)


def test_two_parents_are_none() -> None:
    headers = CIMultiDict([("traceparent", PARENT), ("TraceParent", PARENT)])
    assert ALWAYS.trace(headers).parent_id == ""


def test_headers_have_any_case_and_several_states_are_one() -> None:
    headers = CIMultiDict([("TraceParent", PARENT), ("TraceState", "a=1"), ("tracestate", " b=2 ,\tc=3,,")])
    assert ALWAYS.trace(headers).state == "a=1,b=2,c=3"


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("", ""),
        ("vendor=value", "vendor=value"),
        ("fw529a3039@dt=FfAAAAA,1a@b=x y", "fw529a3039@dt=FfAAAAA,1a@b=x y"),
        ("a_-*/0=!~", "a_-*/0=!~"),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("1a=1", ""),
        ("a=", ""),
        ("=1", ""),
        ("a", ""),
        ("a=1=2", ""),
        ("a=\u00e9", ""),
        ("a=b\x00", ""),
        (f"{'a' * 256}=1", f"{'a' * 256}=1"),
        (f"{'a' * 257}=1", ""),
        (f"a={'b' * 256}", f"a={'b' * 256}"),
        (f"a={'b' * 257}", ""),
        (",".join(f"k{number}=v" for number in range(32)), ",".join(f"k{number}=v" for number in range(32))),
        (",".join(f"k{number}=v" for number in range(33)), ""),
        (",".join(f"k{number}=v" for number in range(10_000)), ""),
        (f"big={'b' * 200},small=1,{'c' * 100}={'d' * 250}", "small=1"),
    ],
)
def test_a_state_travels_on_where_it_is_well_formed(state: str, kept: str) -> None:
    trace = ALWAYS.trace({"traceparent": PARENT, "tracestate": state})
    assert trace.state == kept
    assert trace.parent_id == SPAN_ID, "whatever its state is like"


@given(st.lists(st.tuples(st.text(HEX[10:], min_size=1, max_size=60), st.text(HEX, min_size=1, max_size=200))))
def test_a_state_is_never_long(members: list[tuple[str, str]]) -> None:
    state = ",".join(f"{key}={value}" for key, value in members)
    kept = ALWAYS.trace({"traceparent": PARENT, "tracestate": state}).state
    assert len(kept) <= 512
    assert set(kept.split(",")) - {""} <= set(state.split(","))


@given(ids(32), ids(16), st.integers(0, 255))
def test_what_the_sdk_would_extract_is_extracted(trace_id: str, span_id: str, flags: int) -> None:
    trace = ALWAYS.trace({"traceparent": f"00-{trace_id}-{span_id}-{flags:02x}"})
    assert (trace.trace_id, trace.parent_id, trace.is_sampled) == (trace_id, span_id, bool(flags & 1))


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.{0,3}", fullmatch=True))
def test_whatever_is_joined_the_sdk_joins_too(parent: str) -> None:
    trace = ALWAYS.trace({"traceparent": parent})
    if trace.parent_id:
        context = TraceContextTextMapPropagator().extract({"traceparent": parent})
        (span,) = context.values()
        found = span.get_span_context()  # type: ignore[attr-defined]  # a context's values are objects
        assert (f"{found.trace_id:032x}", f"{found.span_id:016x}") == (trace.trace_id, trace.parent_id)


def test_ids_are_fresh_and_well_formed() -> None:
    tracing = Tracing(Sampling())
    traces = [tracing.trace({}) for _ in range(1000)]
    assert len({trace.trace_id for trace in traces}) == 1000
    assert len({span for trace in traces for span in (trace.server_id, trace.client_id)}) == 2000
    assert all(re.fullmatch(r"[0-9a-f]{32}", trace.trace_id) for trace in traces)
    assert all(re.fullmatch(r"[0-9a-f]{16}", span) for trace in traces for span in (trace.server_id, trace.client_id))


@pytest.mark.parametrize(
    ("sampling", "alone", "below_sampled", "below_unsampled"),
    [
        (Sampling(1.0, follows_caller=True), True, True, False),
        (Sampling(0.0, follows_caller=True), False, True, False),
        (Sampling(1.0, follows_caller=False), True, True, True),
        (Sampling(0.0, follows_caller=False), False, False, False),
    ],
)
def test_who_decides(sampling: Sampling, alone: bool, below_sampled: bool, below_unsampled: bool) -> None:
    tracing = Tracing(sampling)
    assert tracing.trace({}).is_sampled is alone
    assert tracing.trace({"traceparent": PARENT}).is_sampled is below_sampled
    assert tracing.trace({"traceparent": f"{PARENT[:-1]}0"}).is_sampled is below_unsampled


@given(ids(32), st.floats(0, 1), st.booleans())
def test_a_share_is_the_sdks_share(trace_id: str, share: float, is_sampled: bool) -> None:
    headers = {"traceparent": f"00-{trace_id}-{SPAN_ID}-{is_sampled:02x}"}
    flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
    caller = SpanContext(int(trace_id, 16), int(SPAN_ID, 16), is_remote=True, trace_flags=flags)
    context = set_span_in_context(NonRecordingSpan(caller))
    for sampler, follows_caller in ((TraceIdRatioBased(share), False), (ParentBasedTraceIdRatio(share), True)):
        theirs = sampler.should_sample(context, int(trace_id, 16), "span").decision
        ours = Tracing(Sampling(share, follows_caller)).trace(headers)
        assert ours.is_sampled is (theirs is Decision.RECORD_AND_SAMPLE)


def test_without_a_propagator_nothing_is_read_and_nothing_sent() -> None:
    trace = Tracing(Sampling(), joins_traces=False).trace({"traceparent": PARENT, "tracestate": "a=1"})
    assert trace.trace_id != TRACE_ID
    assert (trace.parent_id, trace.state) == ("", "")
    assert getattr(trace, "headers", None) == []
