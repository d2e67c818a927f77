"""W3C trace context on its way through: ours in place of the client's where we trace, its own where we do not, and
baggage for nobody who was not named."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.headers import HeaderPolicy, Headers
from sidecar.record import Trace
from sidecar.settings import Address, AwsKeySource, AwsSigning, Credentials, Propagation, Upstream
from tests.app_support import (
    Received,
    answering,
    ask,
    asked,
    client_of,
    on_uvloop,
    openai_frames,
    plain,
    request,
    running,
    settings_for,
    stream,
    upstream_at,
)
from tests.aws_verifier import signed_by
from tests.observing import TRACE, Observing
from tests.upstream_support import serving

THEIRS = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-00"
OURS = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
SENT = [("traceparent", THEIRS), ("Tracestate", "theirs=1"), ("baggage", "user=alice"), ("X-Other", "1")]
SENT_RAW = [(name.encode(), value.encode()) for name, value in SENT]
ANSWER = stream(openai_frames("a"))


def test_the_header_as_the_standard_writes_it() -> None:
    assert TRACE.traceparent == OURS.encode()
    unsampled = Trace("0" * 31 + "1", "0" * 15 + "2", "0" * 15 + "3", is_sampled=False)
    assert unsampled.headers == [(b"traceparent", b"00-" + b"0" * 31 + b"1-" + b"0" * 15 + b"3-00")]


def trace_headers(trace: Trace | None, raw: Headers = SENT_RAW, **options: Any) -> Headers:
    """What an upstream is sent, less what has nothing to do with traces."""
    upstream = Upstream("llm", "http", Address("127.0.0.1", 1), "llm.test", **options)
    _, headers = HeaderPolicy(upstream).request(
        raw, "/", credential=None, own_bearer_consumed=False, client_host="", trace=trace
    )
    return [(name.lower(), value) for name, value in headers if name not in {b"Host", b"Accept-Encoding", b"X-Other"}]


OWN = [(b"traceparent", OURS.encode()), (b"tracestate", b"a=1,b=2")]
CLIENTS = [(b"traceparent", THEIRS.encode()), (b"tracestate", b"theirs=1")]
BAGGAGE = [(b"baggage", b"user=alice")]


@pytest.mark.parametrize(
    ("propagate", "trace", "expected"),
    [
        ("trace", TRACE, OWN),
        ("trace", None, CLIENTS),
        ("trace_and_baggage", TRACE, [*BAGGAGE, *OWN]),
        ("trace_and_baggage", None, [*CLIENTS, *BAGGAGE]),
        ("none", TRACE, []),
        ("none", None, []),
    ],
)
def test_what_each_policy_sends(propagate: Propagation, trace: Trace | None, expected: Headers) -> None:
    assert trace_headers(trace, propagate=propagate) == expected


def test_without_a_state_the_clients_is_not_sent_beside_ours() -> None:
    assert trace_headers(Trace("1" * 32, "2" * 16, "3" * 16)) == [
        (b"traceparent", b"00-" + b"1" * 32 + b"-" + b"3" * 16 + b"-01")
    ]


def test_connection_may_not_name_ours_away() -> None:
    raw = [*SENT_RAW, (b"Connection", b"traceparent, tracestate")]
    assert trace_headers(TRACE, raw) == OWN
    assert trace_headers(None, raw) == []


def test_what_an_upstream_edits_goes_before_the_trace() -> None:
    assert trace_headers(TRACE, remove_headers=("Traceparent",)) == []
    assert trace_headers(TRACE, remove_headers=("tracestate",)) == OWN[:1]
    assert trace_headers(TRACE, set_headers=(("Traceparent", THEIRS),)) == CLIENTS[:1]
    assert trace_headers(None, set_headers=(("baggage", "team=a"),)) == [(b"baggage", b"team=a"), *CLIENTS]


def trace_of(received: Received) -> list[tuple[str, str]]:
    names = {"traceparent", "tracestate", "baggage"}
    return [(name.lower(), value) for name, value in received.headers if name.lower() in names]


@pytest.mark.parametrize("place", [TRACE, None])
@on_uvloop
async def test_in_and_out(place: Trace | None) -> None:
    observer = Observing(place)
    async with answering(ANSWER) as upstream:
        settings = settings_for(upstream_at(upstream.address))
        async with running(settings, observer=observer) as app:
            reply = await asked(app, ask(headers=SENT))
            await asked(app, request("GET", "/nowhere/../x", headers=SENT))
    assert [each["Traceparent"] for each in observer.headers] == [THEIRS, THEIRS]
    assert [record.trace for record in observer.records] == [place, place]
    ours = [("traceparent", OURS), ("tracestate", "a=1,b=2")]
    expected = ours if place else [("traceparent", THEIRS), ("tracestate", "theirs=1")]
    assert [trace_of(received) for received in upstream.received] == [expected]
    assert reply.header("traceparent") is None


@on_uvloop
async def test_each_upstream_of_a_route_has_its_own_policy() -> None:
    observer = Observing(TRACE)
    async with serving() as first, answering(ANSWER) as second:
        upstreams = [
            upstream_at(first.address, "first", propagate="trace_and_baggage"),
            upstream_at(second.address, "second", propagate="none"),
        ]
        async with running(settings_for(*upstreams), observer=observer) as app, client_of(app) as client:
            await client.send(ask(headers=SENT))
            peer = await first.peer()
            head = (await peer.request()).decode()
            peer.reset()
            assert (await client.reply()).status == 200
    assert f"traceparent: {OURS}\r\n" in head
    assert "baggage: user=alice\r\n" in head
    assert THEIRS not in head
    assert trace_of(second.received[0]) == []
    (record,) = observer.records
    assert (record.upstream, record.attempts, record.trace) == ("second", 2, TRACE)
    assert len(observer.headers) == 1


@on_uvloop
async def test_a_signature_holds_with_the_trace_beside_it() -> None:
    keys = AwsKeySource(access_key_id="ID", secret_access_key="KEY")
    credentials = Credentials("replace", aws=AwsSigning("eu-central-1", keys))
    async with answering(plain(b"{}")) as upstream:
        settings = settings_for(upstream_at(upstream.address, credentials=credentials))
        environ = {"ID": "AKIDEXAMPLE1", "KEY": "secret/key"}
        async with running(settings, environ, Observing(TRACE)) as app:
            await asked(app, ask("/model/m/converse-stream", SENT))
    (received,) = upstream.received
    assert signed_by(received, {"AKIDEXAMPLE1": "secret/key"}) == ("AKIDEXAMPLE1", "eu-central-1", "bedrock")
    assert trace_of(received) == [("traceparent", OURS), ("tracestate", "a=1,b=2")]
    assert "traceparent" not in (received.header("Authorization") or "")
