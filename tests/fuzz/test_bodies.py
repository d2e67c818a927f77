"""Whatever an upstream sends: no exception but the documented ones, and one ending, the same however it was cut."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from sidecar.dialects import DIALECTS, OPAQUE, make_dialect
from sidecar.errors import CODES, Failure, FrameTooLargeError, Outcome
from sidecar.events import Event, Frame, Start
from sidecar.formats import NativeFormat, TypedFormat
from sidecar.framing import FRAMINGS, make_framing
from sidecar.log import Log
from sidecar.ports import Dialect
from sidecar.relay import Relay
from sidecar.session import Session, UpstreamState
from tests.core_support import Client
from tests.fuzz.budget import explore
from tests.fuzz.mutations import SCALARS, SPOKEN, STEPS, STREAMS, changed_json, mutated, pieces_of

NO_LIMIT = 1 << 30
LEAST_HELD = {"aws-event-stream": 12}
"""By framing, what it has to hold before it can know how long a frame is, whatever the limit."""
AUTO = "auto"
TIMES = re.compile(rb'"(?:ttft|duration)_ms":[^,}]+')
RESET = Failure("upstream_reset", "reset")

LINES = [*SPOKEN, *((AUTO, framing) for framing in OPAQUE)]
"""Every dialect in every framing it has streams in, and, where the first frame decides, none at all."""
SHARE = 1 / (2 * len(LINES) + 2 * len(FRAMINGS))


@dataclass
class Ending:
    """How one stream ended and what its client had been sent by then."""

    outcome: Outcome
    failure: Failure | None
    sent: bytes


def dialect_of(name: str, framing: str) -> Dialect:
    fallback = OPAQUE[framing].name if name == AUTO else name
    return make_dialect(fallback, framing, is_certain=name != AUTO)


def relayed(
    name: str, framing_name: str, pieces: list[bytes], *, typed: bool, limit: int, failure: Failure | None
) -> Ending:
    """One stream through the relay as a stream uses it."""
    client, session = Client(), Session(0.0)
    client.start(b"head", is_chunked=True)
    session.upstream = UpstreamState.WAITING
    framing, dialect = make_framing(framing_name, limit, strict=typed), dialect_of(name, framing_name)
    native = NativeFormat(lambda said: dialect.error_frame(said, framing_name), framing.joint)
    format_: Any = TypedFormat("s", "all", "llm", "m", 1) if typed else native
    relay = Relay(framing, dialect, format_, session, Log(client))
    try:
        for piece in pieces:
            relay.feed(piece, 1.0)
            assert relay.pending <= max(limit, LEAST_HELD.get(framing_name, 0))
    except FrameTooLargeError:
        failure = Failure("frame_too_large", "a frame exceeds the bound")
    except Failure as said:
        failure = said
    outcome, verdict = relay.finish(failure, 2.0)
    return Ending(outcome, verdict, client.body + relay.close(outcome, verdict, 2.0))


def bodies_of(name: str, framing: str) -> st.SearchStrategy[bytes]:
    if name != AUTO:
        return mutated(name, framing)
    return st.sampled_from([spoken for spoken in SPOKEN if spoken[1] == framing]).flatmap(
        lambda spoken: mutated(*spoken)
    )


@pytest.mark.parametrize(("name", "framing"), LINES, ids=lambda part: part)
def test_mutated_streams_through_the_relay(name: str, framing: str) -> None:
    endings = st.sampled_from([None, RESET])
    limits = st.sampled_from([NO_LIMIT, NO_LIMIT, 200, 7])
    cases = st.tuples(pieces_of(bodies_of(name, framing)), endings, limits)
    explore(cases, lambda case: check_line(name, framing, *case), SHARE)


def check_line(name: str, framing: str, pieces: list[bytes], failure: Failure | None, limit: int) -> None:
    body = b"".join(pieces)
    typed = relayed(name, framing, pieces, typed=True, limit=limit, failure=failure)
    check_typed(typed)
    native = relayed(name, framing, pieces, typed=False, limit=limit, failure=failure)
    check_native(native, framing, body)
    if limit == NO_LIMIT:
        whole = relayed(name, framing, [body] if body else [], typed=True, limit=limit, failure=failure)
        if framing != "raw":  # whose frames are the reads themselves
            assert TIMES.sub(b"", typed.sent) == TIMES.sub(b"", whole.sent)
        assert (typed.outcome, native.outcome) == (whole.outcome, whole.outcome)


def check_typed(ending: Ending) -> None:
    """One start, first; one done, last; data that is JSON; and a failure that is told once, by a known code."""
    names = re.findall(rb"^event: (\w+)$", ending.sent, re.MULTILINE)
    assert names.count(b"start") == names.count(b"done") == 1
    assert (names[0], names[-1]) == (b"start", b"done")
    datas = [json.loads(data) for data in re.findall(rb"^data: (.*)$", ending.sent, re.MULTILINE)]
    assert (datas[-1]["status"] == "completed") == (ending.outcome is Outcome.COMPLETED)
    errors = [data for name, data in zip(names, datas, strict=True) if name == b"error"]
    if ending.failure is None:
        assert errors == []
    else:
        assert ending.failure.code in CODES
        assert [error["code"] for error in errors] == [ending.failure.code]


def check_native(ending: Ending, framing: str, body: bytes) -> None:
    """The body as it is, or as far as it was whole, and then the dialect's own error."""
    if ending.failure is None:
        assert ending.sent == body
        return
    said = b"" if ending.failure.code == "upstream_error" else error_behind(ending, framing)
    sent = ending.sent.removesuffix(said)
    # What joins the two is ours as well: a line's or an element's end, or another array behind a closed one.
    assert body.startswith((sent, sent.rstrip(b"\r\n,"), sent.removesuffix(b"["), sent.removesuffix(b"\n[")))


def error_behind(ending: Ending, framing: str) -> bytes:
    """The error frame the client was sent last, of whichever dialect the first frame chose."""
    assert ending.failure is not None
    frames = [kind().error_frame(ending.failure, framing) for kind in DIALECTS.values() if framing in kind.framings]
    return max((frame for frame in frames if ending.sent.endswith(frame)), key=len)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_mutated_bodies_through_the_framing(framing: str) -> None:
    spoken = [each for each in SPOKEN if each[1] == framing]
    assert spoken, "a framing without handmade streams"
    bodies = st.sampled_from(spoken).flatmap(lambda each: mutated(*each)) | st.binary(max_size=200)
    cases = st.tuples(pieces_of(bodies), st.sampled_from([NO_LIMIT, 300, 20, 5]))
    explore(cases, lambda case: check_framing(framing, *case), SHARE)


def check_framing(name: str, pieces: list[bytes], limit: int) -> None:
    body = b"".join(pieces)
    lenient = make_framing(name, limit, strict=False)
    frames: list[Frame] = []
    for piece in pieces:
        frames += lenient.feed(piece)
        assert lenient.pending <= max(limit, LEAST_HELD.get(name, 0))
    frames += lenient.flush()
    assert b"".join(frame.raw for frame in frames) + lenient.take_pending() == body
    assert lenient.pending == 0
    strict = make_framing(name, limit, strict=True)
    told: list[Frame] = []
    try:
        for piece in pieces:
            told += strict.feed(piece)
        told += strict.flush()
    except FrameTooLargeError as error:
        told += error.frames
        assert limit < NO_LIMIT
    if name != "raw":
        assert observed(told) == observed(frames)[: len(observed(told))]


def observed(frames: list[Frame]) -> list[tuple[bytes | None, bytes]]:
    return [(frame.name, frame.data) for frame in frames if frame.data is not None]


@pytest.mark.parametrize(("name", "framing"), SPOKEN, ids=lambda part: part)
def test_mutated_frames_through_the_dialect(name: str, framing: str) -> None:
    """Beyond the framing's own checks: any value anywhere in a frame, at any place of the stream."""
    frames = [frames_of(framing, body) for other, framed, body in STREAMS if (other, framed) == (name, framing)]
    changes = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), STEPS, SCALARS), max_size=6)
    cases = st.tuples(st.sampled_from(frames), changes)
    explore(cases, lambda case: check_dialect(name, *case), SHARE)


def frames_of(framing_name: str, body: bytes) -> list[Frame]:
    framing = make_framing(framing_name, NO_LIMIT, strict=True)
    return [frame for frame in (*framing.feed(body), *framing.flush()) if frame.data is not None]


def check_dialect(name: str, frames: list[Frame], changes: list[tuple[int, int, list[int], Any]]) -> None:
    mutated_frames = list(frames)
    for which, where, steps, value in changes:
        frame = mutated_frames[which % len(mutated_frames)]
        data = changed_json(frame.data or b"", steps, value)
        mutated_frames.insert(where % (len(mutated_frames) + 1), Frame(data, frame.raw, frame.name))
    dialect = DIALECTS[name]()
    events: list[Event] = []
    for frame in mutated_frames:
        DIALECTS[name].recognises(frame)
        was_terminated = dialect.terminated
        told = dialect.decode(frame)
        assert not (was_terminated and told)
        events += told
    events += dialect.finish()
    assert [isinstance(event, Start) for event in events] == [at == 0 for at in range(len(events))]
    assert msgspec.json.decode(msgspec.json.encode(events)) is not None
