"""Bodies that no server would send, made from those that the handmade streams say one would."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from sidecar.dialects.table import streams_in
from tests.dialect_reading import FIXTURES

STREAMS = list(streams_in(FIXTURES))
"""Dialect, framing and body of every handmade stream, of whatever dialects there are."""
SPOKEN = sorted({(name, framing) for name, framing, _ in STREAMS})

PIECES = [
    b"",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\x00",
    b"\xff",
    b"\xe2\x80",
    b"\xef\xbb\xbf",
    b" ",
    b",",
    b":",
    b'"',
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"1e999",
    b"data: ",
    b"event: error\n",
    b": c\n\n",
    b"data: [DONE]\n\n",
    b'{"error":{"message":"m"}}\n',
    b"\x00\x00\x00\x10\x00\x00\x00\x00",
]
SCALARS: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, -1, 3, 1 << 70, 0.5, 1e300, "", "a", "\ud83d", "😄", "\u2028", "stop", "error", [], {}, [[]]]
)
LINE = re.compile(rb"^(data: ?)?(\{.*\})(\r?)$", re.MULTILINE)

Mutation = Callable[[bytes], bytes]


def _at(body: bytes, permille: int) -> int:
    return len(body) * permille // 1000


def _splice(start: int, length: int, piece: bytes) -> Mutation:
    def splice(body: bytes) -> bytes:
        at = _at(body, start)
        return body[:at] + piece + body[at + length :]

    return splice


def _repeat(start: int, length: int, times: int) -> Mutation:
    def repeat(body: bytes) -> bytes:
        at = _at(body, start)
        return body[:at] + body[at : at + length] * times + body[at:]

    return repeat


def _flip(start: int, bit: int) -> Mutation:
    def flip(body: bytes) -> bytes:
        if not body:
            return body
        at = min(_at(body, start), len(body) - 1)
        return body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :]

    return flip


def _cut(start: int) -> Mutation:
    return lambda body: body[: _at(body, start)]


def _end_lines(end: bytes) -> Mutation:
    return lambda body: body.replace(b"\n", end)


def _blend(other: bytes, start: int, end: int) -> Mutation:
    return lambda body: body[: _at(body, start)] + other[_at(other, end) :]


def _change_value(which: int, steps: list[int], value: Any) -> Mutation:
    """Another value somewhere within one of the body's JSON lines."""

    def change(body: bytes) -> bytes:
        lines = list(LINE.finditer(body))
        if not lines:
            return body
        line = lines[which % len(lines)]
        changed = changed_json(line[2], steps, value)
        return body[: line.start(2)] + changed + body[line.end(2) :]

    return change


def changed_json(data: bytes, steps: list[int], value: Any) -> bytes:
    """The JSON of ``data`` with ``value`` at the end of the path that ``steps`` choose; ``data`` where it is none."""
    try:
        root = json.loads(data)
    except ValueError:
        return data
    node, holder, key = root, None, None
    for step in steps:
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        if not keys:
            break
        holder, key = node, keys[step % len(keys)]
        node = node[key]
    if holder is None:
        root = value
    else:
        holder[key] = value
    return json.dumps(root, separators=(",", ":")).encode()


SHARE = st.integers(0, 1000)
STEPS = st.lists(st.integers(0, 20), max_size=6)


def mutations() -> st.SearchStrategy[Mutation]:
    """Any one change to a body."""
    return st.one_of(
        st.builds(_change_value, st.integers(0, 50), STEPS, SCALARS),
        st.builds(_splice, SHARE, st.integers(0, 40), st.sampled_from(PIECES) | st.binary(max_size=6)),
        st.builds(_repeat, SHARE, st.integers(1, 300), st.integers(1, 3)),
        st.builds(_flip, SHARE, st.integers(0, 7)),
        st.builds(_cut, SHARE),
        st.builds(_end_lines, st.sampled_from([b"\r\n", b"\r"])),
        st.builds(_blend, st.sampled_from([body for _, _, body in STREAMS]), SHARE, SHARE),
    )


@st.composite
def mutated(draw: st.DrawFn, name: str, framing: str) -> bytes:
    """A body near one of this dialect's."""
    bodies = [body for other, framed, body in STREAMS if (other, framed) == (name, framing)]
    body = draw(st.sampled_from(bodies))
    for mutation in draw(st.lists(mutations(), max_size=5)):
        body = mutation(body)
    return body


@st.composite
def pieces_of(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> list[bytes]:
    """A body in the reads it came in."""
    body = draw(bodies)
    if draw(st.booleans()):
        size = draw(st.sampled_from([1, 2, 3, 7, 64]))
        return [body[at : at + size] for at in range(0, len(body), size)]
    marks = sorted({0, len(body), *(_at(body, share) for share in draw(st.lists(SHARE, max_size=12)))})
    return [body[start:end] for start, end in itertools.pairwise(marks)]
