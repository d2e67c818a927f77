"""The line and its verdict: what a client is sent of a body, and how the stream is judged to have ended."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure, FrameTooLargeError, Outcome
from sidecar.formats import NativeFormat, TypedFormat
from sidecar.framing import make_framing
from sidecar.framing.inflate import Inflater
from sidecar.log import Log
from sidecar.relay import Collector, CompressedRelay, PlainRelay, Relay
from sidecar.session import Session, UpstreamState
from tests.aws_messages import event
from tests.core_support import DONE, RESET, Client, chunk, typed_events
from tests.dialect_reading import body_of, error_frame, framing_in
from tests.framing_feeds import random_split
from tests.test_dialects_recordings import HANDMADE, RECORDED, SYNTHETIC_OPENAI, end_offsets

HANDMADE_IDS = [path.name for _, path in HANDMADE]
CUT_SHARDS = 16
"""The cuts of every recording are dealt out to so many tests, which run side by side."""

TIMES = re.compile(rb'"(?:ttft|duration)_ms":[^,}]+')


class Line:
    """A relay and everything around it."""

    def __init__(
        self,
        dialect: str,
        format_name: str = "typed",
        *,
        max_frame: int = 1 << 20,
        framing_name: str = "",
        **options: Any,
    ) -> None:
        self.client = Client()
        self.client.start(b"head", is_chunked=True)
        self.session = Session(0.0)
        self.session.upstream = UpstreamState.WAITING
        self.dialect = DIALECTS[dialect]()
        name = framing_name or DIALECTS[dialect].framings[0]
        framing = make_framing(name, max_frame, strict=format_name == "typed")
        encoder: Any = (
            TypedFormat("s", "all", "llm", "m", 1)
            if format_name == "typed"
            else NativeFormat(lambda failure: error_frame(dialect, failure, name), framing.joint)
        )
        kind = CompressedRelay if "inflater" in options else Relay
        self.relay = kind(framing, self.dialect, encoder, self.session, Log(self.client), **options)

    def run(self, pieces: Iterable[bytes], failure: Failure | None = None) -> tuple[Outcome, Failure | None, bytes]:
        """The whole body and its end; the outcome, its failure and all the client was sent."""
        try:
            for piece in pieces:
                self.relay.feed(piece, 1.0)
        except Failure as own:  # the stream drops the upstream then
            failure = own
        return self.finish(failure)

    def finish(self, failure: Failure | None = None) -> tuple[Outcome, Failure | None, bytes]:
        outcome, said = self.relay.finish(failure, 2.0)
        return outcome, said, self.client.body + self.relay.close(outcome, said, 2.0)


def code_of(failure: Failure | None) -> str | None:
    return failure.code if failure is not None else None


def ending(
    dialect: str, body: bytes, failure: Failure | None = None, **options: Any
) -> tuple[Outcome, str | None, Any]:
    """Outcome, code and `done` of a typed stream."""
    outcome, said, sent = Line(dialect, **options).run([body] if body else [], failure)
    events = typed_events(sent)
    assert [name for name, _ in events].count("done") == 1
    return outcome, code_of(said), events[-1][1]


# The verdict.


def test_the_terminator_completes() -> None:
    outcome, code, done = ending("openai-chat", chunk() + chunk("", "stop") + DONE)
    assert (outcome, code) == (Outcome.COMPLETED, None)
    assert done["status"] == "completed"
    assert "warnings" not in done


def test_the_terminator_completes_even_where_the_connection_then_breaks() -> None:
    assert ending("openai-chat", chunk() + DONE, RESET)[:2] == (Outcome.COMPLETED, None)


@pytest.mark.parametrize("failure", [None, RESET])
def test_every_finish_mark_without_the_terminator_completes_with_a_warning(failure: Failure | None) -> None:
    outcome, _, done = ending("openai-chat", chunk() + chunk("", "stop"), failure)
    assert outcome is Outcome.COMPLETED
    assert done["warnings"] == ["terminator_missing"]


def test_one_choice_unfinished_is_truncated() -> None:
    second = chunk("x").replace(b'"index": 0', b'"index": 1')
    assert ending("openai-chat", chunk() + second + chunk("", "stop"))[1] == "upstream_truncated"


@pytest.mark.parametrize("body", [b"", b": ping\n\n", chunk(), chunk() + chunk()[:20]])
def test_a_clean_end_before_any_mark_is_truncated(body: bytes) -> None:
    outcome, code, done = ending("openai-chat", body)
    assert (outcome, code, done["status"]) == (Outcome.UPSTREAM_BROKEN, "upstream_truncated", "failed")


def test_a_broken_connection_keeps_its_own_code() -> None:
    assert ending("openai-chat", chunk(), RESET)[:2] == (Outcome.UPSTREAM_BROKEN, "upstream_reset")


@pytest.mark.parametrize("failure", [None, RESET])
@pytest.mark.parametrize("end", [b"", chunk("", "stop"), DONE])
def test_an_error_said_in_the_stream_outranks_how_it_ended(end: bytes, failure: Failure | None) -> None:
    said = b'data: {"error":{"message":"overloaded","type":"server_error","code":"busy"}}\n\n'
    outcome, error, sent = Line("openai-chat").run([chunk() + said + end], failure)
    assert outcome is Outcome.UPSTREAM_FAILED
    assert error is not None
    assert (error.code, error.message, error.provider_code) == ("upstream_error", "overloaded", "busy")
    assert [name for name, _ in typed_events(sent)][-2:] == ["error", "done"]


@pytest.mark.parametrize("dialect", ["raw", "opaque-sse", "opaque-ndjson", "opaque-aws-event-stream"])
@pytest.mark.parametrize(
    ("proves_end", "failure", "expected"),
    [(True, None, None), (False, None, "upstream_truncated"), (True, RESET, "upstream_reset")],
)
def test_streams_without_marks_complete_where_their_body_proves_its_end(
    dialect: str, proves_end: bool, failure: Failure | None, expected: str | None
) -> None:
    bodies = {"raw": b"words", "opaque-sse": b"data: 1\n\n", "opaque-ndjson": b"1\n"}
    body = bodies.get(dialect, event("x", b"1"))
    assert ending(dialect, body, failure, proves_end=proves_end)[1] == expected


@pytest.mark.parametrize("format_name", ["native", "typed"])
@pytest.mark.parametrize(("failure", "code"), [(None, "upstream_truncated"), (RESET, "upstream_reset")])
def test_a_frame_cut_behind_the_finish_mark_fails_however_the_body_ends(
    format_name: str, failure: Failure | None, code: str
) -> None:
    array = b'[{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}'
    outcome, said, _ = Line("gemini", format_name, framing_name="json-array").run([array], failure)
    assert (outcome, code_of(said)) == (Outcome.UPSTREAM_BROKEN, code)
    told = event("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"a"}}')
    told += event("messageStop", b'{"stopReason":"end_turn"}') + event("metadata", b'{"usage":{}}')[:20]
    outcome, said, _ = Line("bedrock-converse", format_name).run([told], failure)
    assert (outcome, code_of(said)) == (Outcome.UPSTREAM_BROKEN, code)


def test_a_whole_body_in_another_framing_is_not_lost_to_a_native_client() -> None:
    lines = b'{"event_type":"text-generation","text":"a"}\n' * 3
    outcome, said, sent = Line("cohere", "native").run([lines[:50], lines[50:]])
    assert (outcome, code_of(said)) == (Outcome.UPSTREAM_BROKEN, "upstream_truncated")
    assert sent.startswith(lines)


GEMINI_CHUNK = b'data: {"candidates":[{"content":{"parts":[{"text":"a"}]}%b}]}\r\n\r\n'
GEMINI_END = GEMINI_CHUNK % b',"finishReason":"STOP"'


@pytest.mark.parametrize(
    ("body", "failure", "code"),
    [
        (GEMINI_CHUNK % b"" + GEMINI_END, None, None),
        (GEMINI_CHUNK % b"" + GEMINI_END, RESET, None),
        (GEMINI_CHUNK % b"" + GEMINI_END + b"data: {", None, "upstream_truncated"),
        (GEMINI_CHUNK % b"" + GEMINI_END + b"data: {", RESET, "upstream_reset"),
        (GEMINI_CHUNK % b"", None, "upstream_truncated"),
    ],
)
def test_without_a_terminator_the_finish_marks_end_a_stream(
    body: bytes, failure: Failure | None, code: str | None
) -> None:
    outcome, said, done = ending("gemini", body, failure)
    assert (outcome is Outcome.COMPLETED, said) == (code is None, code)
    assert "warnings" not in done


@pytest.mark.parametrize(
    ("proves_end", "failure", "code"),
    [(True, None, None), (False, None, "upstream_truncated"), (True, RESET, "upstream_reset")],
)
def test_finish_marks_that_content_followed_leave_it_to_the_body(
    proves_end: bool, failure: Failure | None, code: str | None
) -> None:
    assert ending("gemini", GEMINI_END * 3, failure, proves_end=proves_end)[1] == code


def test_marks_count_whatever_ends_the_body() -> None:
    assert ending("openai-chat", chunk() + DONE, proves_end=False)[0] is Outcome.COMPLETED


# What the client is sent.


def test_native_is_the_upstreams_bytes() -> None:
    body = b": hello\n\n" + chunk() + b"event: x\r\ndata: {}\r\n\r\n" + DONE + b"\n: after\n\n"
    outcome, _, sent = Line("openai-chat", "native").run([body])
    assert (outcome, sent) == (Outcome.COMPLETED, body)


def test_native_keeps_the_tail_of_a_whole_stream() -> None:
    body = chunk() + DONE + b": no line end"
    assert Line("openai-chat", "native").run([body])[2] == body


def test_native_drops_a_partial_frame_and_says_the_dialects_own_error() -> None:
    outcome, said, sent = Line("openai-chat", "native").run([chunk() + chunk()[:30]], RESET)
    assert outcome is Outcome.UPSTREAM_BROKEN
    assert said is not None
    assert sent == chunk() + error_frame("openai-chat", said)
    assert b"[DONE]" not in sent


def test_nothing_after_the_terminator_is_an_event() -> None:
    line = Line("openai-chat")
    line.relay.feed(chunk("a") + DONE + chunk("b"), 1.0)
    assert line.relay.is_terminated
    assert [data["text"] for name, data in typed_events(line.finish()[2]) if name == "token"] == ["a"]


def test_typed_stops_at_an_oversized_frame_and_native_does_not() -> None:
    big = chunk("x" * 500)
    with pytest.raises(FrameTooLargeError):
        Line("openai-chat", max_frame=300).relay.feed(big, 1.0)
    outcome, _, sent = Line("openai-chat", "native", max_frame=300).run([big, DONE])
    assert (outcome, sent) == (Outcome.COMPLETED, big + DONE)


def test_broken_json_and_broken_utf8_pass_on() -> None:
    body = b"data: {broken\n\ndata: \xff\xfe\n\n" + chunk("\u00e9") + DONE
    outcome, _, sent = Line("openai-chat").run([body])
    assert outcome is Outcome.COMPLETED
    extensions = [data for name, data in typed_events(sent) if name == "extension"]
    assert extensions == [{"type": "unparsed", "data": "{broken"}, {"type": "unparsed", "data": "\ufffd\ufffd"}]


def test_pending_is_the_partial_frame() -> None:
    line = Line("openai-chat")
    line.relay.feed(chunk() + b"data: 12", 1.0)
    assert line.relay.pending == 8


# The other relays.


@pytest.mark.parametrize("passes_raw", [True, False])
def test_a_compressed_stream_is_read_beside_or_before_the_relay(passes_raw: bool) -> None:
    body = chunk() + chunk("", "stop") + DONE
    gzip = zlib.compressobj(wbits=31)
    squeezed = gzip.compress(body) + gzip.flush()
    line = Line("openai-chat", "native" if passes_raw else "typed", inflater=Inflater("gzip"))
    outcome, _, sent = line.run([squeezed[:9], squeezed[9:]])
    assert outcome is Outcome.COMPLETED
    assert line.session.content_events == 1
    if passes_raw:
        assert sent == squeezed
    else:
        assert [name for name, _ in typed_events(sent)] == ["start", "token", "done"]


def test_nothing_plain_is_put_into_a_compressed_body() -> None:
    gzip = zlib.compressobj(wbits=31)
    squeezed = gzip.compress(chunk()) + gzip.flush(zlib.Z_SYNC_FLUSH)
    outcome, said, sent = Line("openai-chat", "native", inflater=Inflater("gzip")).run([squeezed])
    assert (outcome, code_of(said), sent) == (Outcome.UPSTREAM_BROKEN, "upstream_truncated", squeezed)


def test_a_native_body_that_cannot_be_inflated_passes_unobserved() -> None:
    line = Line("openai-chat", "native", inflater=Inflater("gzip"))
    body = b"this was never gzip"
    assert line.run([body, body]) == (Outcome.COMPLETED, None, body + body)
    assert line.session.warnings == ("unobserved",)


@pytest.mark.parametrize(
    ("status", "failure", "outcome", "code"),
    [
        (200, None, Outcome.COMPLETED, None),
        (200, RESET, Outcome.UPSTREAM_BROKEN, "upstream_reset"),
        (404, None, Outcome.UPSTREAM_REJECTED, "upstream_status"),
        (500, RESET, Outcome.UPSTREAM_BROKEN, "upstream_reset"),
    ],
)
def test_a_plain_body_is_judged_by_its_transport(
    status: int, failure: Failure | None, outcome: Outcome, code: str | None
) -> None:
    client = Client()
    client.start(b"head", is_chunked=False)
    relay = PlainRelay(Log(client), status)
    relay.feed(b"bytes", 1.0)
    verdict, said = relay.finish(failure, 1.0)
    assert relay.close(verdict, said, 1.0) == b""
    assert (verdict, code_of(said), client.body, relay.pending) == (outcome, code, b"bytes", 0)


def test_a_collector_keeps_a_bounded_rejection() -> None:
    relay = Collector(429, 40)
    relay.feed(b'{"error":{"message":"slow down"}}', 1.0)
    assert not relay.is_terminated
    assert relay.pending == 33
    outcome, said = relay.finish(None, 1.0)
    assert said is not None
    assert (outcome, said.message, said.http_status, said.retryable) == (
        Outcome.UPSTREAM_REJECTED,
        "slow down",
        429,
        True,
    )
    relay.feed(b"x" * 100, 1.0)
    assert (relay.is_terminated, relay.pending) == (True, 40)


# Whole streams, cut and split.


def check_splits(dialect: str, body: bytes) -> None:
    """The same bytes go out however the body came in, times aside."""
    for format_name in ("typed", "native"):
        splits = [
            [body],
            [body[at : at + 1] for at in range(len(body))],
            random_split(body, random.Random(3)),
            random_split(body, random.Random(4)),
        ]
        ends = []
        for pieces in splits:
            outcome, said, sent = Line(dialect, format_name, framing_name=framing_in(dialect, body)).run(pieces)
            ends.append((outcome, code_of(said), TIMES.sub(b"", sent)))
        assert ends == ends[:1] * len(ends)


def check_cuts(dialect: str, body: bytes, shard: int = 0, shards: int = 1) -> None:
    """Cut after any byte: one done, last; `completed` only where the bytes before the cut say so."""
    framing = framing_in(dialect, body)
    whole_from = min(end_offsets(dialect, body))
    for cut in range(shard, len(body), shards):
        # Any split gives the same, so the cheapest will do.
        line = Line(dialect, framing_name=framing)
        outcome, said, sent = line.run([body[:cut]] if cut else [])
        names = re.findall(rb"^event: (\w+)$", sent, re.MULTILINE)
        assert names.count(b"done") == names.count(b"start") == 1
        assert (names[0], names[-1]) == (b"start", b"done")
        if outcome is Outcome.COMPLETED:
            assert said is None
            if line.dialect.completes_on_clean_end:
                # Nothing but the end of the HTTP body says so: it has to be a proven one, and lie between two frames.
                assert body[:cut].endswith(b"\n\n") or body[:cut].rstrip(b"\r\n").endswith((b"}", b"]"))
                again = Line(dialect, framing_name=framing)
                assert code_of(again.run([body[:cut]], RESET)[1]) == "upstream_reset"
                unproven = Line(dialect, framing_name=framing, proves_end=False)
                assert code_of(unproven.run([body[:cut]])[1]) == "upstream_truncated"
            else:
                assert cut > whole_from
                has_warned = line.session.warnings == ("terminator_missing",)
                assert line.dialect.terminated or has_warned or not line.dialect.has_terminator
        else:
            assert code_of(said) in {"upstream_truncated", "upstream_error"}


def recorded(streams_dir: Path) -> list[tuple[str, Path]]:
    synthetic = [("openai-chat", streams_dir / "synthetic" / f"{stem}.sse") for stem in SYNTHETIC_OPENAI]
    return synthetic + [
        (dialect, path)
        for dialect, globs in RECORDED.items()
        for glob in globs
        for path in sorted(streams_dir.glob(glob))
    ]


@pytest.mark.parametrize("check", [check_splits, check_cuts])
@pytest.mark.parametrize(("dialect", "path"), HANDMADE, ids=HANDMADE_IDS)
def test_handmade_streams(check: Any, dialect: str, path: Path) -> None:
    check(dialect, path.read_bytes())


def test_recorded_streams_split_anywhere(streams_dir: Path) -> None:
    for_each_recording(streams_dir, check_splits)


@pytest.mark.parametrize("shard", range(CUT_SHARDS))
def test_recorded_streams_cut_anywhere(shard: int, streams_dir: Path) -> None:
    for_each_recording(streams_dir, lambda dialect, body: check_cuts(dialect, body, shard, CUT_SHARDS))


def for_each_recording(streams_dir: Path, check: Callable[[str, bytes], None]) -> None:
    found = recorded(streams_dir)
    assert len(found) > 50
    for dialect, path in found:
        try:
            check(dialect, body_of(dialect, path))
        except AssertionError as error:
            error.add_note(f"in {path.name}")
            raise


@pytest.mark.parametrize(("dialect", "body"), [("raw", "né à\n".encode()), ("opaque-sse", b"event: a\ndata: 1\n\n")])
def test_streams_without_marks_end_as_their_body_does_after_every_byte(dialect: str, body: bytes) -> None:
    for cut in range(len(body) + 1):
        assert ending(dialect, body[:cut])[0] is Outcome.COMPLETED
        assert ending(dialect, body[:cut], RESET)[1] == "upstream_reset"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_bytes_have_one_ending(data: st.DataObject) -> None:
    dialect = data.draw(st.sampled_from(sorted(DIALECTS)))
    pieces: Sequence[bytes] = data.draw(st.lists(st.binary(min_size=1, max_size=60), max_size=8))
    failure = data.draw(st.sampled_from([None, RESET]))
    sent = Line(dialect).run(pieces, failure)[2]
    names = re.findall(rb"^event: (\w+)$", sent, re.MULTILINE)
    assert names[0] == b"start"
    assert names.count(b"done") == 1
    assert names[-1] == b"done"
    outcome, said, native = Line(dialect, "native").run(pieces, failure)
    body = b"".join(pieces)
    if said is None:
        assert (outcome, native) == (Outcome.COMPLETED, body)
    else:
        error = error_frame(dialect, said)
        assert native.endswith(error)
        assert body.startswith(native.removesuffix(error).rstrip(b"\n"))
