"""The native format: bytes unchanged, and an error frame that is never read as the rest of a cut one."""

from __future__ import annotations

import pytest

from sidecar.errors import Failure
from sidecar.events import Frame, Token
from sidecar.formats import FORMATS, NativeFormat, TypedFormat, make_format
from sidecar.framing import make_framing
from sidecar.framing.ndjson import NdjsonFraming
from sidecar.framing.sse import SseFraming
from sidecar.ports import Ended

SSE_ERROR = b'data: {"error":"it broke"}\n\n'
NDJSON_ERROR = b'{"error":"it broke"}\n'


def ended(failure: Failure | None = None) -> Ended:
    return Ended("failed" if failure else "completed", [], None, 1.0, 0, [], failure=failure)


BROKEN = ended(Failure("upstream_reset", "it broke"))


def test_frames_pass_unchanged() -> None:
    frame = Frame(b"{}", b"data: {}\n\n")
    assert NativeFormat(lambda _: SSE_ERROR, SseFraming.joint).encode(frame, [Token(0, "a")]) is frame.raw


def test_whole_stream_has_no_last_words() -> None:
    assert NativeFormat(lambda _: SSE_ERROR, SseFraming.joint).close(ended()) == b""


def test_dialect_without_error_frames_stays_silent() -> None:
    native = NativeFormat(lambda _: b"", SseFraming.joint)
    native.encode(Frame(b"a", b"a"), [])
    assert native.close(BROKEN) == b""


def test_error_frame_is_told_the_failure() -> None:
    assert NativeFormat(lambda failure: failure.code.encode(), SseFraming.joint).close(BROKEN) == b"upstream_reset"


@pytest.mark.parametrize(
    "last", [b"data: 1\n\n", b"data: 1\r\n\r\n", b"data: 1\r\r", b"data: 1\n", b"data: 1\r\n", b"data: 1"]
)
def test_sse_error_is_an_event_of_its_own(last: bytes) -> None:
    native = NativeFormat(lambda _: SSE_ERROR, SseFraming.joint)
    body = native.encode(Frame(b"1", last), []) + native.encode(Frame(b"{}", b""), []) + native.close(BROKEN)
    data = [frame.data for frame in make_framing("sse", 100, strict=True).feed(body) if frame.data is not None]
    assert data == [b"1", b'{"error":"it broke"}']
    assert body.startswith(last)


@pytest.mark.parametrize("last", [b"1\n", b"1\r\n", b"1"])
def test_ndjson_error_is_a_line_of_its_own(last: bytes) -> None:
    native = NativeFormat(lambda _: NDJSON_ERROR, NdjsonFraming.joint)
    body = native.encode(Frame(b"1", last), []) + native.close(BROKEN)
    assert [line.strip() for line in body.split(b"\n")] == [b"1", b'{"error":"it broke"}', b""]


def test_error_alone_needs_nothing_before_it() -> None:
    assert NativeFormat(lambda _: SSE_ERROR, SseFraming.joint).close(BROKEN) == SSE_ERROR


def test_heartbeat_only_where_asked() -> None:
    assert NativeFormat(lambda _: b"", SseFraming.joint).heartbeat == b""
    assert NativeFormat(lambda _: b"", SseFraming.joint, heartbeat=True).heartbeat == b": keep-alive\n\n"
    assert NativeFormat(lambda _: b"", SseFraming.joint).content_type is None


@pytest.mark.parametrize(("name", "kind"), [("native", NativeFormat), ("typed", TypedFormat)])
def test_formats_are_made_by_name(name: str, kind: type) -> None:
    format_ = make_format(
        name,
        error_frame=lambda _: b"",
        joint=SseFraming.joint,
        native_heartbeat=True,
        stream_id="s1",
        route="r",
        upstream="u",
        model="m",
        created=1,
    )
    assert isinstance(format_, kind)
    assert FORMATS[name] is kind
    assert format_.heartbeat == b": keep-alive\n\n"
