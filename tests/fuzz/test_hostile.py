"""Bodies made to be slow or large: time stays linear in the bytes, and what is held does not grow with the stream.

Linear is told by a ratio: sixteen times the bytes may take four times longer than in proportion, where quadratic ones
take sixteen times longer. The least of several measurements of processor time is what counts, and only a ratio that
looks bad is measured again.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from sidecar.dialects import DIALECTS, numbered
from sidecar.errors import FrameTooLargeError
from sidecar.events import Event, Extension, Finish, Frame, ToolCall
from sidecar.framing import FRAMINGS, make_framing
from sidecar.session import Session, Signal
from tests.fuzz.budget import IS_LONG
from tests.fuzz.mutations import SPOKEN, STREAMS
from tests.fuzz.test_bodies import NO_LIMIT, frames_of, relayed

FACTOR = 16
MOST = FACTOR * 4
ATTEMPTS = 6
WHOLE_BYTES = 64_000 if IS_LONG else 16_000
"""The smaller of two bodies that come in one read; those in small reads are an eighth of it."""
LIMIT = 1000
FEW = 50
"""The numbers a stream may have in use here, so that not many frames are needed to use them up."""
MANY = 1_000_000 if IS_LONG else 32_000
"""Of one tiny thing after another."""

BEGINNINGS = {
    "a line": b"",
    "data": b"data: ",
    "an event": b"event: ",
    "a comment": b": ",
    "a JSON string": b'{"a":"',
    "a JSON string in an array": b'[{"a":"',
    "a JSON string in data": b'data: {"a":"',
    "bare JSON": b'{\n"a":1,\n',
}
PATTERNS = [
    b"x",
    b"\n",
    b"\r",
    b"\r\n",
    b" ",
    b",",
    b"[",
    b"{",
    b'"',
    b'"\n',
    b"\\",
    b"\x00",
    b"\xff",
    b"\xe2\x80",
    b"1\n",
    b"{}\n",
    b"{},",
    b'{"a":[]},\n',
    b":\n",
    b"data\n",
    b"data:\n\n",
    b"data: 1\r\n\r\n",
    b"data: {}\n\n",
    b"data: x\n",
    b"event: a\n",
    b"{\n",
    b"}\n\n",
    b"\x00\x00\x00\x10\x00\x00\x00\x00\x05\xc2\x48\xeb\x7d\x98\xc8\xff",
]


def in_pieces(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def seconds(act: Callable[[], object]) -> float:
    begin = time.process_time()
    act()
    return time.process_time() - begin


def assert_linear(make: Callable[[int], Callable[[], object]], size: int) -> None:
    """``make(n)`` gives an act over n bytes. The acts of ``size`` bytes and of FACTOR times as many are compared."""
    small, large = make(size), make(size * FACTOR)
    least_small = least_large = float("inf")
    for _ in range(ATTEMPTS):
        least_small = min(least_small, seconds(small))
        least_large = min(least_large, seconds(large))
        if least_large <= least_small * MOST:
            return
    raise AssertionError(f"{FACTOR} times the bytes take {least_large / least_small:.0f} times as long")


def feed_all(name: str, limit: int, pieces: Sequence[bytes], *, strict: bool) -> None:
    framing = make_framing(name, limit, strict=strict)
    try:
        for piece in pieces:
            framing.feed(piece)
        framing.flush()
    except FrameTooLargeError:
        assert strict


def hostile(beginning: bytes, pattern: bytes, size: int) -> bytes:
    return beginning + pattern * (size // len(pattern))


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("name", FRAMINGS)
def test_no_body_takes_a_framing_more_than_linear_time(name: str, beginning: bytes) -> None:
    for pattern in PATTERNS:
        for piece_bytes in (NO_LIMIT, 3):
            for limit in (NO_LIMIT, LIMIT):

                def act(size: int) -> Callable[[], object]:
                    pieces = in_pieces(hostile(beginning, pattern, size), piece_bytes)  # noqa: B023 - called at once
                    return lambda: feed_all(name, limit, pieces, strict=False)  # noqa: B023 - within this turn

                size = WHOLE_BYTES if piece_bytes == NO_LIMIT else WHOLE_BYTES // 8
                try:
                    assert_linear(act, size)
                except AssertionError as error:
                    error.add_note(
                        f"{beginning!r}, then {pattern!r} again and again, {piece_bytes} bytes a read, {limit=}"
                    )
                    raise


@pytest.mark.parametrize("pattern", [b"x", b"\n", b"data:\n\n", b"1\n", b"{},"])
@pytest.mark.parametrize("name", FRAMINGS)
def test_a_million_tiny_things_take_linear_time(name: str, pattern: bytes) -> None:
    """One huge line, empty lines, tiny frames."""

    def act(size: int) -> Callable[[], object]:
        pieces = in_pieces(hostile(b"[" if pattern == b"{}," else b"", pattern, size), 65_536)
        return lambda: feed_all(name, NO_LIMIT, pieces, strict=True)

    assert_linear(act, MANY * len(pattern) // FACTOR)


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("name", FRAMINGS)
def test_no_body_makes_a_framing_hold_more_than_its_bound(name: str, beginning: bytes) -> None:
    for pattern in PATTERNS:
        for strict in (True, False):
            framing = make_framing(name, LIMIT, strict=strict)
            try:
                for piece in in_pieces(hostile(beginning, pattern, 20 * LIMIT), 150):
                    framing.feed(piece)
                    assert framing.pending <= LIMIT
                    assert deep_size(framing) <= deep_size(make_framing(name, LIMIT, strict=strict)) + 4 * LIMIT
            except FrameTooLargeError:
                assert strict


# Through everything


def spoken_frames() -> Iterator[tuple[str, str, list[Frame]]]:
    """The frames of every handmade stream that ends nothing, so that they can come again and again."""
    for name, framing, body in STREAMS:
        dialect = DIALECTS[name]()
        frames = []
        for frame in frames_of(framing, body):
            dialect.decode(frame)
            if dialect.terminated:
                break
            frames.append(frame)
        if frames:
            yield name, framing, frames


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "native"])
@pytest.mark.parametrize(("name", "framing"), SPOKEN, ids=lambda part: part)
def test_tiny_frames_without_end_take_linear_time(name: str, framing: str, typed: bool) -> None:
    bodies = [b"".join(frame.raw for frame in frames) for other, framed, frames in spoken_frames() if other == name]
    body = max(bodies, key=len)

    def act(size: int) -> Callable[[], object]:
        pieces = in_pieces(body * max(1, size // len(body)), 4096)
        return lambda: relayed(name, framing, pieces, typed=typed, limit=NO_LIMIT, failure=None)

    assert_linear(act, WHOLE_BYTES // 2)


def parts_of_ever_new_types(size: int) -> list[bytes]:
    parts = [{"type": f"x{at}"} for at in range(size // 16)]
    item = {"type": "message", "id": "m", "content": parts}
    kinds = ("added", "done")
    return [
        msgspec.json.encode({"type": f"response.output_item.{kind}", "output_index": 0, "item": item}) for kind in kinds
    ]


def candidates_that_say_nothing(size: int) -> list[bytes]:
    first = {"candidates": [{"index": at} for at in range(size // 40)]}
    return [msgspec.json.encode(first), *[b"{}"] * (size // 40)]


@pytest.mark.parametrize(
    ("name", "payloads_of"),
    [("openai-responses", parts_of_ever_new_types), ("gemini", candidates_that_say_nothing)],
)
def test_what_the_wire_numbers_takes_linear_time(name: str, payloads_of: Callable[[int], list[bytes]]) -> None:
    def act(size: int) -> Callable[[], object]:
        body = b"".join(b"data: " + payload + b"\n\n" for payload in payloads_of(size))
        return lambda: relayed(name, "sse", [body], typed=True, limit=NO_LIMIT, failure=None)

    assert_linear(act, 8000)


@pytest.mark.parametrize(("name", "framing"), SPOKEN, ids=lambda part: part)
@pytest.mark.parametrize("is_renumbered", [False, True], ids=["the same", "ever new"])
def test_no_stream_makes_a_dialect_keep_more_as_it_goes_on(
    name: str, framing: str, is_renumbered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbered, "MAX_NUMBERED", FEW)
    for other, framed, frames in spoken_frames():
        if (other, framed) == (name, framing):
            first, second = sizes_held(name, frames, is_renumbered=is_renumbered)
            # Numbers have grown by a few bytes, and a text that is held for a moment is one or another.
            assert second <= first + 500


def sizes_held(name: str, frames: list[Frame], *, is_renumbered: bool) -> list[int]:
    """What a dialect and its session hold when ``frames`` have come a hundred times, and again as often."""
    dialect, session = DIALECTS[name](), Session(0.0)
    session.move(Signal.REQUEST_SENT)
    sizes = []
    for half in range(2):
        for at in range(100):
            for frame in frames:
                session.advance(
                    dialect.decode(renumbered(frame, 1000 + half * 100 + at) if is_renumbered else frame), 0.0
                )
        sizes.append(deep_size(dialect) + deep_size(session))
    return sizes


def renumbered(frame: Frame, by: int) -> Frame:
    """``frame`` with other numbers and ids than any frame had; Bedrock's wrapped frames within their wrapping."""
    try:
        value = json.loads(frame.data or b"")
    except ValueError:
        return frame
    wrapped = value.get("bytes") if isinstance(value, dict) and frame.name == b"chunk" else None
    if wrapped:
        inner = renumbered(Frame(base64.b64decode(wrapped), b""), by).data or b""
        value["bytes"] = base64.b64encode(inner).decode()
    return Frame(json.dumps(_renumbered(value, by)).encode(), frame.raw, frame.name)


def _renumbered(value: Any, by: int, key: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _renumbered(each, by, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_renumbered(each, by) for each in value]
    if type(value) is int and key.lower().endswith("index"):
        return value + by * 100
    return f"{value}-{by}" if isinstance(value, str) and key.lower().endswith("id") else value


EVER_NEW: dict[str, list[dict[str, Any]]] = {
    "openai-chat": [{"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}],
    "openai-completions": [{"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}],
    "openai-responses": [
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "m", "delta": "a"},
        {
            "type": "response.output_item.added",
            "item": {"type": "function_call", "id": "a", "call_id": "b", "name": "f"},
        },
    ],
    "anthropic": [
        {
            "type": "content_block_start",
            "index": at,
            "content_block": {"type": kind, "id": "a", "name": "f", "input": {"a": 1}},
        }
        for at, kind in enumerate(("tool_use", "server_tool_use"))
    ],
    "gemini": [{"candidates": [{"index": 0, "content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}]}],
    "gemini-interactions": [
        {
            "event_type": "step.start",
            "index": 0,
            "step": {"type": "function_call", "id": "a", "name": "f", "arguments": {"a": 1}},
        }
    ],
    "cohere": [
        {
            "type": "tool-call-start",
            "index": 0,
            "delta": {"message": {"tool_calls": {"id": "a", "function": {"name": "f"}}}},
        }
    ],
    "sglang": [{"index": 0, "text": "a", "meta_info": {"completion_tokens": 1, "finish_reason": {"type": "stop"}}}],
    "llamacpp": [{"index": 0, "content": "a", "stop": True, "stop_type": "eos", "tokens_predicted": 1}],
    "triton": [{"model_name": "m", "sequence_index": 0, "text_output": "a", "finish_reason": "stop"}],
    "triton-accumulated": [{"model_name": "m", "sequence_index": 0, "text_output": "a", "finish_reason": "stop"}],
}
"""By dialect, what keeps a note of each number it tells."""


@pytest.mark.parametrize("name", EVER_NEW)
def test_numbers_beyond_the_bound_pass_as_they_are_and_leave_nothing_behind(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Frame(msgspec.json.encode(payload), b"") for payload in EVER_NEW[name]]
    unbounded = sizes_held(name, frames, is_renumbered=True)
    assert unbounded[1] > unbounded[0] + 3000
    monkeypatch.setattr(numbered, "MAX_NUMBERED", FEW)
    bounded = sizes_held(name, frames, is_renumbered=True)
    assert bounded[1] <= bounded[0] + 100
    dialect = DIALECTS[name]()
    for at in range(FEW + 1):
        for frame in frames:
            dialect.decode(renumbered(frame, 1000 + at))
    last = [event for frame in frames for event in dialect.decode(renumbered(frame, 2000))]
    assert isinstance(last[-1], Extension)
    assert not any(isinstance(event, Finish | ToolCall) for event in last)


def test_members_of_arguments_are_numbered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbered, "MAX_NUMBERED", FEW)
    dialect = DIALECTS["gemini"]()

    def call(at: int) -> list[Event]:
        pieces = [{"jsonPath": f"$.a{at}", "stringValue": "x"}]
        fields = {"willContinue": True, "partialArgs": pieces, **({} if at else {"name": "f"})}
        data = msgspec.json.encode({"candidates": [{"content": {"parts": [{"functionCall": fields}]}}]})
        return list(dialect.decode(Frame(data, b"")))

    for at in range(FEW):
        call(at)
    held = deep_size(dialect)
    assert [type(event) for event in call(FEW)] == [Extension]
    assert deep_size(dialect) <= held


def deep_size(thing: Any) -> int:
    """Bytes of an object and of all that it alone leads to: slots, containers, text."""
    seen: set[int] = set()
    waiting = [thing]
    total = 0
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type) or callable(each):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        waiting += _parts(each)
    return total


def _parts(each: Any) -> list[Any]:
    if isinstance(each, dict):
        return [*each, *each.values()]
    if isinstance(each, list | tuple | set | frozenset):
        return list(each)
    names = [name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
    names += getattr(each, "__struct_fields__", ())
    held = [getattr(each, name) for name in names if isinstance(name, str) and hasattr(each, name)]
    return [*held, *getattr(each, "__dict__", {}).values()]


def test_the_measures_notice() -> None:
    """A reader that goes over its whole buffer with every read is quadratic, and one that keeps it grows."""

    def rereading(size: int) -> Callable[[], object]:
        def act() -> None:
            held = b""
            for _ in range(size):
                held += b"x" * 20
                held.count(b"y")

        return act

    with pytest.raises(AssertionError, match="times as long"):
        assert_linear(rereading, 200)
    framing = make_framing("sse", NO_LIMIT, strict=True)
    before = deep_size(framing)
    framing.feed(b"data: " + b"x" * 5000)
    assert deep_size(framing) >= before + 5000
