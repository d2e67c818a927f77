"""SSE framing: the standard's rules, our liberties, every split, hostile sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import FrameTooLargeError
from sidecar.events import Frame
from sidecar.framing import make_framing
from sidecar.framing.sse import UNFRAMED, SseFraming
from tests.framing_feeds import NO_LIMIT, joined, observed, read_all, splits

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "fixtures" / "framing" / "sse_vectors.json").read_text(encoding="utf-8")
)

LINES = st.sampled_from(
    [b"data: {}", b"data:x", b"data", b"event: e", b": c", b"", b"", b"{", b"}", b'{"a":1}', b"id: 1", b"\xef\xbb\xbf"]
)
BODIES = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"]))).map(
    lambda lines: b"".join([line + end for line, end in lines])
)


def framing(*, limit: int = NO_LIMIT, strict: bool = True) -> SseFraming:
    return SseFraming(limit, strict=strict)


def settled() -> SseFraming:
    """A framing in mid-stream, where the short cuts for whole events apply."""
    fresh = framing()
    fresh.feed(b": begin\n\n")
    return fresh


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector_is_read_alike_however_it_is_split(vector: dict[str, Any]) -> None:
    body = vector["input"].encode()
    expected = [(None if name is None else name.encode(), data.encode()) for name, data in vector["events"]]
    for pieces in splits(body):
        reader = framing()
        frames = read_all(reader, pieces)
        assert observed(frames) == expected
        assert reader.pending == vector.get("pending", 0)
        assert joined(frames) + reader.take_pending() == body
        assert reader.pending == 0


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS if not vector["input"].startswith("\ufeff")],
    ids=lambda vector: vector["name"],
)
def test_vector_is_read_alike_in_mid_stream(vector: dict[str, Any]) -> None:
    expected = [(None if name is None else name.encode(), data.encode()) for name, data in vector["events"]]
    for pieces in splits(vector["input"].encode()):
        assert observed(read_all(settled(), pieces)) == expected


def test_whatwg_vectors(streams_dir: Path) -> None:
    vectors = json.loads((streams_dir / "sse-parsing" / "whatwg_vectors.json").read_text(encoding="utf-8"))
    for vector in vectors:
        given_pieces = [piece.encode() for piece in vector.get("chunks", [vector.get("input")])]
        expected = [(name.encode(), data.encode()) for name, data, _ in vector["events"]]
        for pieces in (given_pieces, *splits(b"".join(given_pieces))):
            frames = read_all(framing(), pieces)
            assert [(name or b"message", data) for name, data in observed(frames)] == expected, vector["name"]


def test_recorded_streams_are_read_alike_however_they_are_split(streams_dir: Path) -> None:
    paths = sorted(streams_dir.glob("*/*.sse"))
    assert paths
    for path in paths:
        body = path.read_bytes()[:100_000]
        whole = observed(read_all(framing(), [body]))
        assert whole, path
        for pieces in splits(body):
            reader = framing()
            frames = read_all(reader, pieces)
            assert observed(frames) == whole, path
            assert joined(frames) + reader.take_pending() == body, path


@given(body=BODIES, cuts=st.lists(st.integers(min_value=1, max_value=9)))
def test_any_lines_are_read_alike_however_they_are_split(body: bytes, cuts: list[int]) -> None:
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(body[at : at + cut])
        at += cut
    pieces.append(body[at:])
    reader = framing()
    frames = read_all(reader, pieces)
    assert observed(frames) == observed(read_all(framing(), [body]))
    assert joined(frames) + reader.take_pending() == body


@given(body=st.binary(), limit=st.integers(min_value=1, max_value=20))
def test_any_bytes_pass_whole_through_a_lenient_framing(body: bytes, limit: int) -> None:
    for pieces in splits(body):
        reader = framing(limit=limit, strict=False)
        frames = read_all(reader, pieces)
        assert joined(frames) + reader.take_pending() == body


@pytest.mark.parametrize(
    "event",
    [b"data: {}\n\n", b"event: a\ndata: {}\n\n", b"data: {}\r\n\r\n", b"id: 1\ndata: {}\n\n", b"data:{}\n\n"],
)
def test_one_event_a_read_is_handed_on_without_a_copy(event: bytes) -> None:
    (frame,) = settled().feed(event)
    assert frame.raw is event
    assert frame.data == b"{}"


def test_many_events_of_one_read_keep_their_own_bytes() -> None:
    events = [b"data: 1\n\n", b"event: a\ndata: 2\n\n", b": ping\n\n", b"data:3\ndata: 4\n\n", b"event: b\n\n"]
    frames = settled().feed(b"".join(events))
    assert [frame.raw for frame in frames] == events
    assert observed(frames) == [(None, b"1"), (b"a", b"2"), (None, b"3\n4")]


def test_comment_between_events_is_not_held_back() -> None:
    reader = settled()
    assert reader.feed(b": ping\n") == [Frame(None, b": ping\n")]
    assert reader.feed(b": pi") == []
    assert reader.feed(b"ng\r") == [Frame(None, b": ping\r")]
    assert reader.feed(b"\n") == [Frame(None, b"\n")]


def test_comment_inside_an_event_belongs_to_it() -> None:
    reader = settled()
    assert reader.feed(b"event: a\n: ping\n") == []
    assert reader.feed(b"data: x\n\n") == [Frame(b"x", b"event: a\n: ping\ndata: x\n\n", b"a")]


def test_event_is_complete_at_its_last_carriage_return() -> None:
    reader = settled()
    assert reader.feed(b"data: x\r\n\r") == [Frame(b"x", b"data: x\r\n\r")]
    assert reader.feed(b"\ndata: y\r\n\r\n") == [Frame(None, b"\n"), Frame(b"y", b"data: y\r\n\r\n")]


def test_bare_json_glued_to_an_event_takes_no_bytes_of_it() -> None:
    body = b'{"error":1}\ndata: [DONE]\n\n'
    assert list(settled().feed(body)) == [Frame(b'{"error":1}', b"", UNFRAMED), Frame(b"[DONE]", body)]


def test_bare_json_is_read_though_the_event_after_it_was_cut() -> None:
    reader = framing()
    frames = read_all(reader, [b'{"error":1}\ndata: {"a'])
    assert frames == [Frame(b'{"error":1}', b"", UNFRAMED)]
    assert reader.take_pending() == b'{"error":1}\ndata: {"a'


def test_part_of_a_byte_order_mark_waits_for_the_rest() -> None:
    reader = framing()
    assert reader.feed(b"\xef\xbb") == ()
    assert reader.pending == 2
    assert observed(reader.feed(b"\xbfdata: x\n\n")) == [(None, b"x")]


@pytest.mark.parametrize("body", [b"data: " + b"x" * 100, b"data: " + b"x" * 100 + b"\n\n", b": " + b"x" * 100])
def test_strict_framing_refuses_a_frame_over_its_bound(body: bytes) -> None:
    for pieces in splits(body):
        with pytest.raises(FrameTooLargeError):
            read_all(framing(limit=50), pieces)


def test_frame_of_exactly_the_bound_is_read() -> None:
    event = b"data: 1234\n\n"
    for pieces in splits(event * 3):
        frames = read_all(framing(limit=len(event)), pieces)
        assert observed(frames) == [(None, b"1234")] * 3


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_lenient_framing_observes_again_after_an_oversized_frame(end: bytes) -> None:
    body = b"data: 1" + end + b"event: big\ndata: " + b"x" * 100 + b"\ndata: y" + end + b": c\n\ndata: 2" + end
    for pieces in splits(body):
        reader = framing(limit=50, strict=False)
        frames = read_all(reader, pieces)
        assert observed(frames) == [(None, b"1"), (None, b"2")]
        assert joined(frames) == body


def test_lenient_framing_holds_no_more_than_its_bound() -> None:
    reader = framing(limit=1000, strict=False)
    for _ in range(1000):
        reader.feed(b"data: " + b"x" * 100)
        assert reader.pending <= 1000


def test_huge_line_in_many_small_pieces() -> None:
    text = b"x" * 1_000_000
    pieces = [b"data: ", *[text[at : at + 10] for at in range(0, len(text), 10)], b"\n\n"]
    assert observed(read_all(framing(), pieces)) == [(None, text)]


def test_empty_lines_without_end() -> None:
    body = b"\n" * 300_000
    assert joined(read_all(framing(), [body])) == body
    assert observed(read_all(framing(), [body, b"data: x\n\n"])) == [(None, b"x")]


def test_tiny_frames_without_end_in_one_read() -> None:
    assert observed(settled().feed(b"data:\n\n" * 100_000)) == [(None, b"")] * 100_000


def test_lines_without_end_in_one_event() -> None:
    (frame,) = settled().feed(b"data:\n" * 100_000 + b"\n")
    assert frame.data == b"\n" * 99_999


def test_framing_is_made_by_its_name() -> None:
    assert make_framing("sse", 10, strict=True).name == "sse"
    with pytest.raises(KeyError):
        make_framing("morse", 10, strict=True)
