"""AWS event streams: messages however they are split, both checksums, every header, and all that can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer, ParserError
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import FrameTooLargeError
from sidecar.events import Frame
from sidecar.framing.aws_event_stream import ERROR, EXCEPTION, MAX_HEADERS_BYTES, AwsEventStreamFraming, encode_message
from tests import aws_messages as aws
from tests.framing_feeds import NO_LIMIT, joined, observed, read_all, splits

HELLO = aws.event("hello", {"a": 1})
BYE = aws.event("bye", b"")


def framing(*, limit: int = NO_LIMIT, strict: bool = True) -> AwsEventStreamFraming:
    return AwsEventStreamFraming(limit, strict=strict)


def code_of(reader: AwsEventStreamFraming) -> str | None:
    return reader.flaw.code if reader.flaw is not None else None


def collect(reader: AwsEventStreamFraming, pieces: Iterable[bytes], frames: list[Frame]) -> None:
    for piece in pieces:
        frames += reader.feed(piece)


def by_botocore(body: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """Headers and payload of every message, until the package raises or wants more."""
    buffer = EventStreamBuffer()
    buffer.add_data(body)
    return [(message.headers, message.payload) for message in buffer]


def test_messages_are_read_alike_however_they_are_split() -> None:
    body = HELLO + aws.exception("throttlingException", {"message": "slow"}) + aws.error("Boom", "so\nit is") + BYE
    for pieces in splits(body):
        reader = framing()
        frames = read_all(reader, pieces)
        assert observed(frames) == [
            (b"hello", b'{"a":1}'),
            (EXCEPTION + b"throttlingException", b'{"message":"slow"}'),
            (ERROR + b"Boom\nso\nit is", b""),
            (b"bye", b""),
        ]
        assert joined(frames) == body
        assert (reader.flaw, reader.pending, reader.is_settled, reader.is_passing) == (None, 0, True, False)


def test_one_message_a_read_keeps_its_bytes() -> None:
    assert list(framing().feed(HELLO)) == [Frame(b'{"a":1}', HELLO, b"hello")]


def test_recorded_streams_are_read_as_botocore_reads_them(streams_dir: Path) -> None:
    paths = [path for path in sorted(streams_dir.glob("*/*.bin")) if "bad" not in path.name]
    assert len(paths) >= 9
    for path in paths:
        body = path.read_bytes()
        expected = [payload for _, payload in by_botocore(body)]
        for pieces in splits(body):
            reader = framing()
            frames = read_all(reader, pieces)
            assert [frame.data for frame in frames] == expected
            assert joined(frames) + reader.take_pending() == body


EVERY_HEADER = b"".join(
    [
        aws.header(b"yes", aws.TRUE),
        aws.header(b"no", aws.FALSE),
        aws.header(b"byte", aws.BYTE, b"\xff"),
        aws.header(b"short", aws.SHORT, b"\xff\xfe"),
        aws.header(b"integer", aws.INTEGER, b"\0\0\1\0"),
        aws.header(b"long", aws.LONG, b"\0" * 8),
        aws.header(b"bytes", aws.BYTES, b"\0\3\xff\xfe\xfd"),
        aws.header(":événement".encode(), aws.STRING, aws.text("é")),
        aws.header(b"timestamp", aws.TIMESTAMP, b"\0\0\1\x8c\0\0\0\0"),
        aws.header(b"uuid", aws.UUID, b"0123456789abcdef"),
        aws.header(b":event-type", aws.STRING, aws.text("all")),
    ]
)


def test_every_type_of_header_is_stepped_over() -> None:
    body = aws.message(EVERY_HEADER, b"{}")
    assert len(by_botocore(body)[0][0]) == 11
    assert observed(framing().feed(body)) == [(b"all", b"{}")]


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (b"", None),
        (aws.header(b":message-type", aws.STRING, aws.text("event")), None),
        (aws.header(b":event-type", aws.BYTES, aws.text("x")), None),
        (aws.header(b":event-type", aws.STRING, aws.text("x")), b"x"),
        (aws.header(b":event-type", aws.STRING, aws.text(":exception x")), b"::exception x"),
        (aws.header(b":event-type", aws.STRING, aws.text("")), None),
        (aws.header(b":message-type", aws.STRING, aws.text("exception")), EXCEPTION),
        (aws.header(b":message-type", aws.STRING, aws.text("error")), ERROR + b"\n"),
    ],
)
def test_no_event_can_be_mistaken_for_an_error(block: bytes, name: bytes | None) -> None:
    (frame,) = framing().feed(aws.message(block, b"{}"))
    assert frame.name == name


def test_headers_that_change_are_read_each_time() -> None:
    frames = framing().feed(HELLO + BYE + HELLO + HELLO)
    assert [frame.name for frame in frames] == [b"hello", b"bye", b"hello", b"hello"]


NAMED = aws.header(b"a", aws.TRUE)
MALFORMED = {
    "prelude checksum": aws.message(b"", b"{}", prelude_crc=1),
    "message checksum": aws.message(b"", b"{}", message_crc=1),
    "payload changed": HELLO.replace(b'"a":1', b'"a":2'),
    "length below the least": aws.prelude(15, 0) + b"xxx",
    "length zero": aws.prelude(0, 0),
    "headers beyond the message": aws.prelude(40, 25) + b"x" * 28,
    "headers beyond all bounds": aws.prelude(1 << 20, MAX_HEADERS_BYTES + 1),
    "header twice": aws.message(NAMED + NAMED, b""),
    "header twice, of another type": aws.message(NAMED + aws.header(b"a", aws.FALSE), b""),
    "no such type": aws.message(aws.header(b"a", 10), b""),
    "name beyond the headers": aws.message(b"\x05ab", b""),
    "no type": aws.message(b"\x01a", b""),
    "no length": aws.message(aws.header(b"a", aws.STRING, b"\0"), b""),
    "value beyond the headers": aws.message(aws.header(b"a", aws.STRING, b"\0\5abc"), b"payload"),
    "number beyond the headers": aws.message(aws.header(b"a", aws.LONG, b"\0"), b"payload"),
    "name is no UTF-8": aws.message(aws.header(b"\xff", aws.TRUE), b""),
    "value is no UTF-8": aws.message(aws.header(b"a", aws.STRING, b"\0\1\xff"), b""),
    "other bytes": b"data: {}\n\ndata: {}\n\n",
}


@pytest.mark.parametrize("broken", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_malformed_is_a_flaw_and_passes_raw(broken: bytes, strict: bool) -> None:
    body = HELLO + broken + HELLO
    for pieces in splits(body):
        reader = framing(strict=strict)
        frames = read_all(reader, pieces)
        assert observed(frames) == [(b"hello", b'{"a":1}')]
        assert joined(frames) == body
        assert (code_of(reader), reader.pending, reader.is_settled) == ("malformed_upstream", 0, False)


def test_the_longest_headers_are_read() -> None:
    most = MAX_HEADERS_BYTES - len(aws.header(b"a", aws.BYTES, aws.text("")) * 2)
    first, second = aws.text("x" * 0xFFFF), aws.text("x" * (most - 0xFFFF))
    block = aws.header(b"a", aws.BYTES, first) + aws.header(b"b", aws.BYTES, second)
    assert len(block) == MAX_HEADERS_BYTES
    assert observed(framing().feed(aws.message(block, b"{}"))) == [(None, b"{}")]


def test_a_body_cut_anywhere_else_than_between_messages_is_truncated() -> None:
    body = HELLO + BYE
    for cut in range(len(body) + 1):
        for pieces in ([body[:cut]], [body[at : at + 1] for at in range(cut)]):
            reader = framing()
            frames = read_all(reader, [piece for piece in pieces if piece])
            is_whole = cut in {0, len(HELLO), len(body)}
            assert code_of(reader) == (None if is_whole else "upstream_truncated")
            assert joined(frames) + reader.take_pending() == body[:cut]
            assert reader.pending == 0


def test_a_malformed_stream_is_not_also_truncated() -> None:
    reader = framing()
    read_all(reader, [MALFORMED["prelude checksum"], b"tail"])
    assert code_of(reader) == "malformed_upstream"


def test_a_strict_framing_refuses_a_message_by_its_prelude_alone() -> None:
    big = aws.event("big", b"x" * 200)
    for pieces in splits(HELLO + big):
        reader = framing(limit=len(HELLO))
        frames: list[Frame] = []
        with pytest.raises(FrameTooLargeError) as caught:
            collect(reader, pieces, frames)
        assert observed([*frames, *caught.value.frames]) == [(b"hello", b'{"a":1}')]


def test_a_message_of_just_the_bound_is_read() -> None:
    assert len(framing(limit=len(HELLO)).feed(HELLO)) == 1
    with pytest.raises(FrameTooLargeError):
        framing(limit=len(HELLO) - 1).feed(HELLO)


def test_a_lenient_framing_passes_a_large_message_in_pieces_and_goes_on() -> None:
    body = HELLO + aws.event("big", b"x" * 200) + HELLO + aws.event("big", b"y" * 100) + HELLO
    for pieces in splits(body):
        reader = framing(limit=len(HELLO), strict=False)
        frames = read_all(reader, pieces)
        assert observed(frames) == [(b"hello", b'{"a":1}')] * 3
        assert joined(frames) == body
        assert (reader.flaw, reader.is_passing, reader.is_settled) == (None, False, True)


def test_within_a_large_message_nothing_is_held() -> None:
    reader = framing(limit=20, strict=False)
    for piece in (HELLO[:12], HELLO[12:20]):
        assert joined(reader.feed(piece)) == piece
        assert (reader.is_passing, reader.is_settled, reader.pending) == (True, False, 0)
    assert list(reader.flush()) == []
    assert code_of(reader) == "upstream_truncated"


def test_a_huge_message_in_many_small_pieces() -> None:
    body = aws.event("huge", b"x" * 1_000_000)
    for limit, strict in ((NO_LIMIT, True), (1000, False)):
        frames = read_all(framing(limit=limit, strict=strict), [body[at : at + 10] for at in range(0, len(body), 10)])
        assert joined(frames) == body


def test_many_messages_too_large_in_one_read() -> None:
    body = HELLO * 50_000
    assert joined(framing(limit=16, strict=False).feed(body)) == body
    assert len(framing().feed(body)) == 50_000


def test_nothing_stands_between_messages() -> None:
    assert AwsEventStreamFraming.joint(HELLO) == AwsEventStreamFraming.joint(b"") == b""


def test_what_is_written_is_read_by_botocore() -> None:
    headers = {":message-type": "exception", ":exception-type": "é", "empty": ""}
    written = encode_message(headers, b'{"message":"m"}')
    assert by_botocore(written) == [(headers, b'{"message":"m"}')]
    assert observed(framing().feed(written)) == [(EXCEPTION + "é".encode(), b'{"message":"m"}')]


def outcome_of(read: Any) -> Any:
    """What a reader gives, or that it refuses."""
    try:
        return read()
    except (ParserError, KeyError, UnicodeDecodeError, struct.error):
        return "refused"


@given(st.data())
def test_whatever_bytes_come_none_are_lost_and_botocore_agrees(data: st.DataObject) -> None:
    body = bytearray(HELLO + aws.message(EVERY_HEADER, b"{}") + BYE)
    for _ in range(data.draw(st.integers(0, 2))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    whole = bytes(body[: data.draw(st.integers(0, len(body)))])
    readings: list[Iterable[Any]] = []
    for pieces in splits(whole):
        reader = framing(strict=False)
        frames = read_all(reader, pieces)
        assert joined(frames) + reader.take_pending() == whole
        readings.append((observed(frames), code_of(reader)))
    assert readings == readings[:1] * len(readings)
    told, code = readings[0]
    theirs = outcome_of(lambda: [payload for _, payload in by_botocore(whole)])
    assert theirs == ("refused" if code == "malformed_upstream" else [payload for _, payload in told])
