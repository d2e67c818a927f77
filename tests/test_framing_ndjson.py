"""NDJSON framing: lines, the missing last LF, every split, hostile sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import FrameTooLargeError
from sidecar.events import Frame
from sidecar.framing.ndjson import NdjsonFraming
from tests.framing_feeds import NO_LIMIT, joined, observed, read_all, splits


def framing(*, limit: int = NO_LIMIT, strict: bool = True) -> NdjsonFraming:
    return NdjsonFraming(limit, strict=strict)


@pytest.mark.parametrize(
    ("body", "values", "pending"),
    [
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}'], 0),
        (b'{"a":1}\r\n\r\n\n  \n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}'], 0),
        (b'{"a":1}\n{"b":2}', [b'{"a":1}', b'{"b":2}'], 0),
        (b'{"a":1}\r', [b'{"a":1}'], 0),
        (b'{"a":1}\n{"b":', [b'{"a":1}'], 5),
        (b"1\n12", [b"1"], 2),
        (b"not json\n", [b"not json"], 0),
        ('{"a":"\u2028\u0085"}\n'.encode(), ['{"a":"\u2028\u0085"}'.encode()], 0),
        (b"", [], 0),
    ],
)
def test_lines_are_read_alike_however_they_are_split(body: bytes, values: list[bytes], pending: int) -> None:
    for pieces in splits(body):
        reader = framing()
        frames = read_all(reader, pieces)
        assert observed(frames) == [(None, value) for value in values]
        assert reader.pending == pending
        assert joined(frames) + reader.take_pending() == body
        assert reader.pending == 0


def test_recorded_streams_are_read_alike_however_they_are_split(streams_dir: Path) -> None:
    paths = sorted(streams_dir.glob("*/*.ndjson"))
    assert paths
    for path in paths:
        body = path.read_bytes()
        whole = observed(read_all(framing(), [body]))
        assert [value for _, value in whole] == [line.strip() for line in body.split(b"\n") if line.strip()]
        for pieces in splits(body):
            frames = read_all(framing(), pieces)
            assert observed(frames) == whole
            assert joined(frames) == body


@given(
    body=st.lists(st.sampled_from([b"{}", b"\n", b"\r\n", b" ", b"[1", b"]"])).map(b"".join), limit=st.integers(1, 9)
)
def test_any_bytes_pass_whole_through_a_lenient_framing(body: bytes, limit: int) -> None:
    whole = observed(read_all(framing(limit=limit, strict=False), [body]))
    for pieces in splits(body):
        reader = framing(limit=limit, strict=False)
        frames = read_all(reader, pieces)
        assert observed(frames) == whole
        assert joined(frames) + reader.take_pending() == body


def test_one_line_a_read_is_handed_on_without_a_copy() -> None:
    line = b'{"a":1}\n'
    (frame,) = framing().feed(line)
    assert frame.raw is line


def test_blank_line_is_a_frame_of_its_own() -> None:
    assert list(framing().feed(b"\r\n")) == [Frame(None, b"\r\n")]


def test_strict_framing_refuses_a_line_over_its_bound() -> None:
    for pieces in splits(b'{"a":"' + b"x" * 100 + b'"}\n'):
        with pytest.raises(FrameTooLargeError):
            read_all(framing(limit=50), pieces)


def test_lenient_framing_observes_again_after_an_oversized_line() -> None:
    body = b'{"a":1}\n{"a":"' + b"x" * 100 + b'"}\n\n{"a":2}\n'
    for pieces in splits(body):
        frames = read_all(framing(limit=50, strict=False), pieces)
        assert observed(frames) == [(None, b'{"a":1}'), (None, b'{"a":2}')]
        assert joined(frames) == body


def test_huge_line_in_many_small_pieces() -> None:
    line = b'{"a":"' + b"x" * 1_000_000 + b'"}'
    pieces = [line[at : at + 10] for at in range(0, len(line), 10)]
    assert observed(read_all(framing(), pieces)) == [(None, line)]


def test_empty_lines_without_end() -> None:
    assert joined(framing().feed(b"\n" * 200_000)) == b"\n" * 200_000
