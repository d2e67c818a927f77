"""The response reader with bytes alone: the same at every split, and never surprised."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.ports import ResponseHead
from sidecar.upstream.response import ResponseReader

ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nT: t\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\r\n",
    b"HTTP/1.0 200 Fine by me\r\n\r\nuntil the end\r\n\r\nof it",
    b"\r\nHTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\nno",
]
READABLE = st.lists(
    st.sampled_from([*ANSWERS, b"HTTP/1.1 ", b"200", b"\r\n", b"\n", b":", b"X: y", b"zz"]) | st.binary()
)


def read(
    reader: ResponseReader, pieces: list[bytes], *, is_head_request: bool = False
) -> tuple[ResponseHead | None, bytes, bool]:
    """One response from these reads: its head, its body, whether it is whole."""
    reader.start(is_head_request=is_head_request)
    head: ResponseHead | None = None
    body = b""
    for piece in pieces:
        rest = piece
        if head is None:
            head = reader.read_head(piece)
            rest = reader.rest
        if head is not None and rest and not reader.message.is_over:
            body += reader.feed(rest)
        if reader.failure is not None:
            break
    return head, body, reader.message.is_complete and head is not None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("answer", ANSWERS)
def test_byte_by_byte_is_the_same_as_whole(answer: bytes) -> None:
    reader = ResponseReader(4096)
    whole = read(reader, [answer])
    assert whole[0] is not None
    assert reader.failure is None
    assert read(ResponseReader(4096), [answer[at : at + 1] for at in range(len(answer))]) == whole


@given(answer=st.sampled_from(ANSWERS), places=st.lists(st.integers(0, 200), max_size=6))
def test_any_split_is_the_same_as_whole(answer: bytes, places: list[int]) -> None:
    assert read(ResponseReader(4096), cut(answer, places)) == read(ResponseReader(4096), [answer])


@pytest.mark.parametrize("answer", [ANSWERS[0], ANSWERS[1], ANSWERS[2], ANSWERS[4]])
def test_cut_anywhere_is_never_whole(answer: bytes) -> None:
    for length in range(len(answer)):
        _, _, is_whole = read(ResponseReader(4096), [answer[:length]])
        assert not is_whole


@given(pieces=READABLE)
def test_no_input_raises(pieces: list[bytes]) -> None:
    reader = ResponseReader(256)
    head, body, is_whole = read(reader, pieces)
    if reader.failure is not None:
        assert reader.failure.code == ("upstream_not_http" if head is None else "malformed_upstream")
        assert not is_whole
    assert len(body) <= sum(map(len, pieces))


def test_one_reader_reads_answer_after_answer() -> None:
    reader = ResponseReader(4096)
    for _ in range(3):
        for answer in (ANSWERS[0], ANSWERS[1], ANSWERS[2], ANSWERS[4]):
            assert read(reader, [answer]) == read(ResponseReader(4096), [answer])
            assert reader.is_kept_alive
        head, body, is_whole = read(reader, [ANSWERS[1].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"], is_head_request=True)
        assert head is not None
        assert (body, is_whole, reader.is_kept_alive) == (b"", True, True)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\n\r"])
def test_the_bound_counts_the_head_and_nothing_else(first: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
    for bound, is_refused in ((len(head), False), (len(head) - 1, True)):
        reader = ResponseReader(bound)
        read(reader, [piece for piece in (first, head[len(first) :] + b"x" * 1000) if piece])
        assert (reader.failure is not None) is is_refused


def test_endless_framing_without_a_body_is_refused_and_a_long_body_is_not() -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    reader = ResponseReader(1000)
    read(reader, [start, b"5;", *[b"x" * 100] * 11])
    assert reader.failure is not None
    assert reader.failure.code == "malformed_upstream"
    reader = ResponseReader(1000)
    _, body, _ = read(reader, [start, *[b"1\r\n", b"x", b"\r\n"] * 5000])
    assert reader.failure is None
    assert body == b"x" * 5000


def test_messages_quote_nothing_of_the_input() -> None:
    for answer in (
        b"secret\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nsecret\x00: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: secret\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret",
    ):
        reader = ResponseReader(4096)
        read(reader, [answer])
        assert reader.failure is not None
        assert "secret" not in reader.failure.message
