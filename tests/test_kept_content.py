"""What is said is kept only where that was asked for, bounded, and in no other way than it was said."""

from __future__ import annotations

import json

import pytest

from sidecar.dialects import DIALECTS
from sidecar.events import Reasoning, Refusal, Token
from sidecar.kept_content import KeptContent, Overheard
from sidecar.record import Content
from tests.core_support import DONE, Rig, chunk

FORMATS = pytest.mark.parametrize("format_name", ["typed", "native"])
BODY = b'{"messages":[{"role":"user","content":"What?"}]}'
WORDS = [f" w\u00f6rd{number}" for number in range(50)]
FRAMES = [chunk(word) for word in WORDS]


@FORMATS
def test_all_that_was_said_is_kept(format_name: str) -> None:
    rig = Rig(format=format_name, body=BODY, content_bytes=64 * 1024).open()
    rig.feed([*FRAMES, chunk("", "stop"), DONE]).end()
    assert rig.record.content == Content(BODY.decode(), "".join(WORDS), is_cut=False)
    silent = Rig(format=format_name, body=BODY).open().feed([*FRAMES, chunk("", "stop"), DONE]).end()
    assert silent.record.content is None
    assert (silent.client.body, silent.client.pieces) == (rig.client.body, rig.client.pieces)
    assert silent.record.content_events == rig.record.content_events


def test_kept_bytes_count_as_held() -> None:
    silent, rig = Rig(body=BODY), Rig(body=BODY, content_bytes=1000)
    assert rig.stream.buffered_bytes - silent.stream.buffered_bytes == len(BODY)
    for each in (silent, rig):
        each.open().feed(FRAMES[:3])
    said = len("".join(WORDS[:3]).encode())
    assert rig.stream.buffered_bytes - silent.stream.buffered_bytes == len(BODY) + said


def test_what_is_too_long_is_cut_within_its_bound() -> None:
    kept = KeptContent(10)
    kept.keep_request(b"0123456789")
    kept.hear([Token(0, "abc"), Token(0, "defg")])
    assert (kept.content, kept.size) == (Content("0123456789", "abcdefg", is_cut=False), 17)
    kept.hear([Token(0, "h\u00e9\u00e9"), Token(0, "i")])
    assert (kept.content, kept.size) == (Content("0123456789", "abcdefgh\u00e9", is_cut=True), 20)
    long = KeptContent(4)
    long.keep_request("a\u00e9\u00e9b".encode())
    assert long.content == Content("a\u00e9\ufffd", "", is_cut=True)


def test_choices_stand_one_after_the_other_and_thoughts_are_not_kept() -> None:
    kept = KeptContent(100)
    kept.hear([Token(1, "B"), Reasoning(0, "thought"), Token(0, "A"), Refusal(1, "no")])
    assert kept.content.answer == "A\n\nBno"


def test_half_a_character_is_kept_as_what_it_is_shown_as() -> None:
    kept = KeptContent(100)
    kept.hear([Token(0, "\ud83d"), Token(0, "!")])
    assert kept.size == 2
    assert json.dumps(kept.content.answer)


def test_a_dialect_that_is_overheard_is_the_same_to_everybody_else() -> None:
    for kind in DIALECTS.values():
        actual = kind()
        heard = Overheard(actual, KeptContent(10))
        for name in ("name", "has_terminator", "completes_on_clean_end", "tolerates_partial_frame"):
            assert getattr(heard, name) == getattr(actual, name)
        assert (heard.terminated, heard.is_finished, heard.plain_start) == (
            actual.terminated,
            actual.is_finished,
            actual.plain_start,
        )
        assert heard.decode_plain(b"{}") is None
