"""JSON array framing: elements in any layout, every split, hostile sizes, and what is no array."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import FrameTooLargeError
from sidecar.events import Frame
from sidecar.framing import framing_of
from sidecar.framing.json_array import JsonArrayFraming
from tests.framing_feeds import NO_LIMIT, joined, observed, read_all, splits

WHITE_SPACE = st.sampled_from([b"", b" ", b"\n", b"\r\n", b"\t \r\n"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def framing(*, limit: int = NO_LIMIT, strict: bool = True) -> JsonArrayFraming:
    return JsonArrayFraming(limit, strict=strict)


def values_of(frames: list[Frame]) -> list[bytes]:
    return [data for _, data in observed(frames)]


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b'[{"a":1}\n,\n{"b":2}\n]', [b'{"a":1}', b'{"b":2}']),
        (b'[{"a":1},\r\n{"b":2}\r\n]\r\n', [b'{"a":1}', b'{"b":2}']),
        (b'\xef\xbb\xbf \n[{"a":1}]', [b'{"a":1}']),
        (b'{"error":{"code":400}}\n', [b'{"error":{"code":400}}']),
        (b'[{"error":{"code":400}}\n]\n', [b'{"error":{"code":400}}']),
        (b"[]", []),
        (b" [ \n ] \n", []),
        (b'[{"a":"]},[{\\"\\\\"},{"b":"\\\\"}]', [b'{"a":"]},[{\\"\\\\"}', b'{"b":"\\\\"}']),
        (b'[[1,[2]],"a]\\"",1.5e-3,true,null,{}]', [b"[1,[2]]", b'"a]\\""', b"1.5e-3", b"true", b"null", b"{}"]),
        (b"[1 ,{} , 2\n]", [b"1", b"{}", b"2"]),
        (b'[,{"a":1},,{"b":2},]', [b'{"a":1}', b'{"b":2}']),
        (b'[{"a":1}{"b":2}]', [b'{"a":1}', b'{"b":2}']),
        ('[{"a":"秋\u2028😄"}]'.encode(), ['{"a":"秋\u2028😄"}'.encode()]),
    ],
)
def test_elements_are_read_alike_however_they_are_split(body: bytes, values: list[bytes]) -> None:
    for pieces in splits(body):
        reader = framing()
        frames = read_all(reader, pieces)
        assert values_of(frames) == values
        assert joined(frames) == body
        assert (reader.pending, reader.flaw) == (0, None)


@given(st.lists(st.tuples(VALUES, WHITE_SPACE, WHITE_SPACE, st.booleans())), WHITE_SPACE)
def test_any_array_gives_its_elements(elements: list[tuple[Any, bytes, bytes, bool]], after: bytes) -> None:
    texts = [json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "replace") for value, _, _, is_ascii in elements]
    spaced = [before + text + behind for text, (_, before, behind, _) in zip(texts, elements, strict=True)]
    body = b"[" + b",".join(spaced) + b"]" + after
    for pieces in splits(body):
        reader = framing()
        frames = read_all(reader, pieces)
        assert values_of(frames) == texts
        assert joined(frames) == body
        assert (reader.pending, reader.flaw) == (0, None)


TOKENS = st.sampled_from(
    [b"[", b"]", b"{", b"}", b",", b'"', b"\\", b" ", b"\r\n", b"1", b"nu", b"ll", b"x", b":", b"\xef", b"\xbb\xbf"]
)


@given(body=st.lists(TOKENS).map(b"".join), limit=st.integers(1, 12))
def test_any_bytes_pass_whole_through_a_lenient_framing(body: bytes, limit: int) -> None:
    first = framing(limit=limit, strict=False)
    whole = observed(read_all(first, [body]))
    for pieces in splits(body):
        reader = framing(limit=limit, strict=False)
        frames = read_all(reader, pieces)
        assert observed(frames) == whole
        assert joined(frames) + reader.take_pending() == body
        assert str(reader.flaw) == str(first.flaw)


@given(body=st.lists(TOKENS).map(b"".join), limit=st.integers(1, 12))
def test_a_strict_framing_refuses_the_same_bytes_however_they_are_split(body: bytes, limit: int) -> None:
    ends = []
    for pieces in splits(body):
        reader = framing(limit=limit)
        frames: list[Frame] = []
        try:
            for piece in pieces:
                frames += reader.feed(piece)
            ends.append((values_of(frames), reader.flaw is not None))
        except FrameTooLargeError as error:
            ends.append((values_of([*frames, *error.frames]), True))
    assert ends == ends[:1] * len(ends)


def test_recorded_arrays_are_read_alike_however_they_are_split(streams_dir: Path) -> None:
    paths = sorted(streams_dir.glob("gemini/*.json"))
    assert paths
    for path in paths:
        body = path.read_bytes()
        elements = json.loads(body)
        for pieces in splits(body):
            frames = read_all(framing(), pieces)
            assert [json.loads(value) for value in values_of(frames)] == elements
            assert joined(frames) == body


def test_an_element_belongs_to_one_frame_with_what_came_before_it() -> None:
    reader = framing()
    assert reader.feed(b'[{"a":1}') == [Frame(b'{"a":1}', b'[{"a":1}')]
    assert reader.feed(b"\n,\r\n") == []
    assert reader.pending == 4
    assert reader.feed(b'{"b":2}') == [Frame(b'{"b":2}', b'\n,\r\n{"b":2}')]
    assert reader.feed(b"\n]") == [Frame(None, b"\n]")]
    assert reader.feed(b"\n") == [Frame(None, b"\n")]
    assert reader.flush() == ()
    assert reader.flaw is None


def test_one_element_a_read_is_handed_on_without_a_copy() -> None:
    reader = framing()
    reader.feed(b"[{}")
    piece = b',{"a":1}'
    (frame,) = reader.feed(piece)
    assert frame.raw is piece


# What is no array, and what is none yet.


@pytest.mark.parametrize(
    ("body", "values", "what"),
    [
        (b"<html>", [], "the upstream sent no JSON array"),
        (b"data: {}\n\n", [], "the upstream sent no JSON array"),
        (b"12", [], "the upstream sent no JSON array"),
        (b'[{"a":1},oops,{"b":2}]', [b'{"a":1}'], "the upstream sent something that is no JSON value in its array"),
        (b'[{"a":1}:{"b":2}]', [b'{"a":1}'], "the upstream sent something that is no JSON value in its array"),
        (b"[{}}]", [b"{}"], "the upstream sent something that is no JSON value in its array"),
        (b"[01,{}]", [], "the upstream sent something that is no JSON value in its array"),
        (b"[{}]\n[{}]", [b"{}"], "the upstream sent something behind its JSON array"),
        (b'{"a":1}\n{"b":2}', [b'{"a":1}'], "the upstream sent something behind its JSON array"),
    ],
)
def test_garbage_is_a_flaw_and_passes_unread(body: bytes, values: list[bytes], what: str) -> None:
    for pieces in splits(body):
        reader = framing()
        frames = read_all(reader, pieces)
        assert values_of(frames) == values
        assert joined(frames) == body
        assert reader.flaw is not None
        assert (reader.flaw.code, reader.flaw.message) == ("malformed_upstream", what)


@pytest.mark.parametrize("body", [b"", b"\n", b"[", b'[{"a":1}', b'[{"a":1}\n,\n{"b":"', b'{"error":', b"[1", b'["a'])
def test_an_array_that_never_closes_is_cut(body: bytes) -> None:
    for pieces in splits(body):
        reader = framing()
        frames = read_all(reader, pieces)
        assert reader.flaw is not None
        assert reader.flaw.code == "upstream_truncated"
        assert joined(frames) + reader.take_pending() == body
        assert reader.pending == 0


ERROR = b'{"error":1}]'


@pytest.mark.parametrize(
    ("relayed", "whole"),
    [
        (b"", b'[{"error":1}]'),
        (b'[{"a":1}', b'[{"a":1},\n{"error":1}]'),
        (b'[{"a":1}\n,\r\n{"b":', b'[{"a":1},\n{"error":1}]'),
        (b'[{"a":1},', b'[{"a":1},\n{"error":1}]'),
        (b"[[1]", b'[[1],\n{"error":1}]'),
        (b"[{}]", b'[{}]\n[{"error":1}]'),
        (b"[{}\n]\r\n", b'[{}\n]\r\n\n[{"error":1}]'),
        (b"[ ]", b'[ ]\n[{"error":1}]'),
    ],
)
def test_an_error_is_an_element_behind_the_last(relayed: bytes, whole: bytes) -> None:
    frames = framing().feed(relayed)
    last = frames[-1].raw if frames else b""
    assert joined(frames) + JsonArrayFraming.joint(last) + ERROR == whole


# Sizes.


@pytest.mark.parametrize("body", [b'[{"a":"' + b"x" * 100 + b'"}]', b"[" + b"," * 100 + b"{}]", b"[" + b"9" * 100])
def test_strict_framing_refuses_a_frame_over_its_bound(body: bytes) -> None:
    for pieces in splits(body):
        with pytest.raises(FrameTooLargeError):
            read_all(framing(limit=50), pieces)


def test_lenient_framing_observes_again_after_an_oversized_element() -> None:
    body = b'[{"a":1},\n{"a":"' + b'x\\"' * 50 + b'"},{"a":2},[' + b"[]," * 50 + b'],{"a":3}]\n'
    for pieces in splits(body):
        frames = read_all(framing(limit=50, strict=False), pieces)
        assert values_of(frames) == [b'{"a":1}', b'{"a":2}', b'{"a":3}']
        assert joined(frames) == body


def test_a_passing_element_says_so_until_its_end() -> None:
    reader = framing(limit=10, strict=False)
    assert reader.feed(b'[{"a":"xxxxxxxx') == [Frame(None, b'[{"a":"xxxxxxxx')]
    assert reader.is_passing
    assert reader.feed(b"yy") == [Frame(None, b"yy")]
    assert reader.feed(b'"},{') == [Frame(None, b'"}')]
    assert not reader.is_passing
    assert reader.pending == 2


@pytest.mark.parametrize(
    "element",
    [b'{"a":"' + b"x" * 1_000_000 + b'"}', b'["' + b'\\"\\\\' * 250_000 + b'"]', b'"' + b"\\\\" * 500_000 + b'"'],
)
def test_huge_element_in_many_small_pieces(element: bytes) -> None:
    body = b"[" + element + b"]"
    for size in (1, 10, len(body)):
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        assert values_of(read_all(framing(), pieces)) == [element]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b"[" + b"{}," * 300_000 + b"]", 300_000),
        (b"[" + b"1," * 300_000 + b"]", 300_000),
        (b"[" + b"," * 1_000_000 + b"{}]", 1),
        (b" " * 1_000_000 + b"[{}]" + b"\n" * 1_000_000, 1),
        (b"[" * 500_000 + b"]" * 500_000, 1),
        (b'[{"a' + b'":"' * 300_000 + b'"}]', 1),
    ],
    ids=["elements", "numbers", "commas", "white_space", "depth", "strings"],
)
def test_many_of_anything_in_one_read_or_in_many(body: bytes, count: int) -> None:
    for size in (len(body), 1000):
        frames = read_all(framing(), [body[at : at + size] for at in range(0, len(body), size)])
        assert len(values_of(frames)) == count
        assert joined(frames) == body


def test_plain_json_has_this_type() -> None:
    assert framing_of("application/json; charset=UTF-8") == "json-array"
