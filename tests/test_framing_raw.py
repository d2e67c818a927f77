"""Raw framing: no frame ends inside a character, and broken UTF-8 still passes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.events import Frame
from sidecar.framing.raw import RawFraming
from tests.framing_feeds import joined, read_all, splits


def framing() -> RawFraming:
    return RawFraming(10, strict=True)


def test_each_read_is_one_frame_without_a_copy() -> None:
    piece = b"hello"
    (frame,) = framing().feed(piece)
    assert frame.raw is piece
    assert frame.data is piece


def test_character_split_over_reads_is_held_until_whole() -> None:
    reader = framing()
    assert list(reader.feed(b"a\xf0\x9f")) == [Frame(b"a", b"a")]
    assert reader.pending == 2
    assert list(reader.feed(b"\x98")) == []
    assert list(reader.feed(b"\x80b")) == [Frame("😀b".encode(), "😀b".encode())]
    assert reader.pending == 0


def test_end_hands_out_a_character_that_never_became_whole() -> None:
    reader = framing()
    assert list(reader.feed(b"\xe2\x82")) == []
    assert list(reader.flush()) == [Frame(b"\xe2\x82", b"\xe2\x82")]
    assert list(reader.flush()) == []


def test_pending_bytes_can_be_taken() -> None:
    reader = framing()
    reader.feed(b"\xe2\x82")
    assert reader.take_pending() == b"\xe2\x82"
    assert reader.pending == 0


@given(body=st.one_of(st.binary(), st.text().map(str.encode)))
def test_text_is_the_same_however_it_is_split(body: bytes) -> None:
    for pieces in splits(body):
        frames = read_all(framing(), pieces)
        assert joined(frames) == body
        text = "".join([(frame.data or b"").decode("utf-8", "replace") for frame in frames])
        assert text == body.decode("utf-8", "replace")
