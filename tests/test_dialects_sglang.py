"""SGLang: growing texts and pieces told apart without losing or repeating a character, batches, ends and errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, Start, Token, UpstreamError, Usage
from sidecar.settings import Timeouts
from tests.core_support import Rig
from tests.dialect_reading import decode_payloads, error_frame, read
from tests.test_relay import ending

STOP = {"type": "stop", "matched": 2}


def out(text: Any, completion: int, ids: int | None = None, finish: Any = None, **extra: Any) -> dict[str, Any]:
    meta = {"id": "r-1", "finish_reason": finish, "prompt_tokens": 5, "completion_tokens": completion}
    numbers = {} if ids is None else {"output_ids": list(range(ids))}
    return {"text": text, **numbers, "meta_info": {**meta, **extra.pop("meta", {})}, **extra}


def decode(*payloads: Any) -> list[Event]:
    start, *events = decode_payloads("sglang", payloads)
    assert start == Start("r-1")
    return events


def tokens(events: Iterable[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Token)]


# Which text is new


def test_a_growing_text_proven_by_its_ids() -> None:
    assert tokens(decode(out("a", 1, 1), out("ab", 2, 2), out("ab", 3, 3), out("abc", 4, 4, STOP))) == ["a", "b", "c"]


def test_a_growing_text_of_servers_that_send_no_ids() -> None:
    assert tokens(decode(out("a", 1), out("ab", 2), out("abc", 3))) == ["a", "b", "c"]


def test_a_growing_text_whose_ids_come_in_pieces() -> None:
    events = decode(out("a", 1, 1), out("ab", 2, 1), out("abc", 3, 1), out("abcd", 4, 1, STOP))
    assert tokens(events) == ["a", "bc", "d"]


def test_pieces() -> None:
    assert tokens(decode(out("a", 1, 1), out("b", 2, 1), out("bb", 3, 1), out("", 4, 1, STOP))) == ["a", "b", "bb"]
    assert tokens(decode(out("a", 1), out("b", 2), out("", 3, None, STOP))) == ["a", "b"]


@pytest.mark.parametrize(
    ("pieces", "ids"),
    [
        (["ha", "ha", "ha", "!"], 1),
        (["ha", "ha", "ha", "!"], None),
        (["1", "10", "x"], 1),
        (["\n", "\n\n", "\n\n", "a"], 1),
        (["a", "ab", "b", ""], 1),
        (["a", "a", ""], None),
    ],
)
def test_pieces_that_look_like_a_growing_text(pieces: list[str], ids: int | None) -> None:
    """A server that sends no ids sends no pieces, but for repetitions that is not taken for granted."""
    frames = [out(text, number, ids) for number, text in enumerate(pieces, start=1)]
    frames[-1]["meta_info"]["finish_reason"] = STOP
    assert "".join(tokens(decode(*frames))) == "".join(pieces)


def test_what_is_held_back_is_told_where_the_stream_breaks_off() -> None:
    assert tokens(decode(out("a", 1, 1), out("ab", 2, 1))) == ["a", "b"]
    assert tokens(decode(out("a", 1, 1), out("a", 2, 1))) == ["a"]


def test_a_text_that_does_not_extend_what_was_told() -> None:
    """Some of it was taken back (a stop string, say): what lies beyond is new, and the whole is told beside it."""
    events = decode(out("a", 1, 1), out("abc", 3, 3), out("aXcd", 4, 4), out("a", 5, 5, STOP))
    assert [event for event in events if not isinstance(event, Usage)] == [
        Token(0, "a"),
        Token(0, "bc"),
        Extension("text", {"index": 0, "text": "aXcd"}),
        Token(0, "d"),
        Extension("text", {"index": 0, "text": "a"}),
        Finish(0, "stop", "stop"),
    ]


TEXTS = st.lists(st.sampled_from(["a", "ab", "b", "", "\n", "\n\n", "😄", "a b"]), min_size=1, max_size=8)


@given(pieces=TEXTS, sends_ids=st.booleans(), ends_in_done=st.booleans())
def test_no_growing_text_loses_or_repeats_anything(pieces: list[str], sends_ids: bool, ends_in_done: bool) -> None:
    frames = [
        out("".join(pieces[:number]), number, number if sends_ids else None) for number in range(1, len(pieces) + 1)
    ]
    if ends_in_done:
        frames[-1]["meta_info"]["finish_reason"] = STOP
    assert "".join(tokens(decode(*frames))) == "".join(pieces)


@given(pieces=TEXTS)
def test_pieces_that_never_look_like_a_growing_text_are_told_as_they_come(pieces: list[str]) -> None:
    """The first repetition decides; until then each piece must differ from the beginning of the next."""
    frames = [out(text, number, 1) for number, text in enumerate(["x", "y", *pieces], start=1)]
    assert tokens(decode(*frames)) == ["x", "y", *filter(None, pieces)]


# The rest of a frame


def test_logprobs_are_those_not_told_yet() -> None:
    probabilities = [[-0.1, 1, "a"], [-0.2, 2, "b"], [-0.3, 3, "c"]]
    grown = decode(
        out("a", 1, 1, meta={"output_token_logprobs": probabilities[:1]}),
        out("a", 2, 2, meta={"output_token_logprobs": probabilities[:2]}),
        out("abc", 3, 3, meta={"output_token_logprobs": probabilities, "output_top_logprobs": []}),
    )
    assert [event for event in grown if isinstance(event, Token)] == [
        Token(0, "a", {"output_token_logprobs": probabilities[:1]}),
        Token(0, "bc", {"output_token_logprobs": probabilities[1:]}),
    ]
    pieces = decode(
        out("a", 1, 1, meta={"output_token_logprobs": probabilities[:1]}),
        out("b", 2, 1, meta={"output_token_logprobs": probabilities[1:2]}),
    )
    assert pieces[2] == Token(0, "b", {"output_token_logprobs": probabilities[1:2]})


@pytest.mark.parametrize(
    ("finish", "event"),
    [
        ({"type": "stop", "matched": 2}, Finish(0, "stop", "stop")),
        ({"type": "length", "length": 8}, Finish(0, "length", "length")),
        ({"type": "abort", "message": "Aborted"}, Finish(0, "error", "abort")),
        ("stop", Finish(0, "stop", "stop")),
        ({"type": "new"}, Finish(0, "stop", "new")),
    ],
)
def test_finish_reasons(finish: Any, event: Finish) -> None:
    assert event in decode(out("a", 1, 1, finish))
    assert not any(isinstance(other, UpstreamError) for other in decode(out("a", 1, 1, finish)))


def test_an_abort_with_a_status_is_an_error() -> None:
    finish = {"type": "abort", "message": "the queue is full", "status_code": 503, "err_type": "ServiceUnavailable"}
    assert decode(out("", 0, 0, finish))[-1] == UpstreamError("the queue is full", finish, "abort", 503, retryable=True)


def test_counts() -> None:
    counts = {"prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 2}
    usage = next(event for event in decode(out("a", 1, 1, meta={"cached_tokens": 2})) if isinstance(event, Usage))
    assert usage == Usage(5, 1, 6, 2, None, counts)


def test_a_server_without_a_tokenizer_sends_ids_alone() -> None:
    fields = {"output_ids": [1, 2], "meta_info": {"id": "r-1", "finish_reason": STOP, "completion_tokens": 2}}
    assert decode(fields) == [
        Extension("output_ids", fields, is_output=True),
        Finish(0, "stop", "stop"),
        Usage(None, 2, native={"completion_tokens": 2}),
    ]


@pytest.mark.parametrize("format_name", ["typed", "native"])
def test_ids_alone_are_not_out_of_time_while_they_come(format_name: str) -> None:
    timeouts = Timeouts(first_token_s=2.0, idle_s=3.0)
    rig = Rig(dialect="sglang", format=format_name, timeouts=timeouts).open(content_type="text/event-stream")
    for _ in range(5):
        rig.feed(b'data: {"output_ids":[1],"meta_info":{"id":"r-1","completion_tokens":1}}\n\n').pass_time(1.5)
    assert rig.outcome is None
    assert rig.end().code == "upstream_truncated"
    rig = Rig(dialect="sglang", format=format_name, timeouts=timeouts).open(content_type="text/event-stream")
    for _ in range(2):
        rig.feed(b'data: {"meta_info":{"id":"r-1","completion_tokens":1}}\n\n').pass_time(1.5)
    assert rig.code == "first_token_timeout"


def test_a_batch_is_told_apart_by_index() -> None:
    first, second = out("a", 1, 1, index=0), out("x", 1, 1, index=1)
    events = decode(first, second, out("ab", 2, 2, index=0), out("xy", 2, 2, STOP, index=1))
    assert [event for event in events if isinstance(event, Token)] == [
        Token(0, "a"),
        Token(1, "x"),
        Token(0, "b"),
        Token(1, "y"),
    ]
    assert Finish(1, "stop", "stop") in events
    usage = [event for event in events if isinstance(event, Usage)][-1]
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (10, 4, 14)


def test_a_list_is_a_batch_too() -> None:
    events = decode([out("a", 1), out("x", 1)], [out("ab", 2, None, STOP), out("xy", 2, None, STOP)])
    assert [(event.index, event.text) for event in events if isinstance(event, Token)] == [
        (0, "a"),
        (1, "x"),
        (0, "b"),
        (1, "y"),
    ]
    assert decode_payloads("sglang", [[1, {"type": "t"}]]) == [
        Start(),
        Extension("unknown", 1),
        Extension("t", {"type": "t"}),
    ]
    assert decode_payloads("sglang", [b"[1", b"[]"]) == [Start(), Extension("unparsed", "[1")]


# Ends and errors


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"error": {"message": "m"}}, UpstreamError("m", {"message": "m"})),
        (
            {"error": {"message": "m", "type": "t", "code": 503, "retryable": False}},
            UpstreamError("m", {"message": "m", "type": "t", "code": 503, "retryable": False}, "t", 503),
        ),
        (
            {"error": {"message": "m", "code": 400, "retryable": True}},
            UpstreamError("m", {"message": "m", "code": 400, "retryable": True}, "400", 400, retryable=True),
        ),
        ({"error": "text"}, UpstreamError("text", {"error": "text"})),
    ],
)
def test_errors(fields: dict[str, Any], error: UpstreamError) -> None:
    assert decode_payloads("sglang", [fields]) == [Start(), error]
    assert decode(out("a", 1), fields)[-1] == error


def test_every_choice_has_to_finish_or_the_mark_to_come() -> None:
    one = b'data: {"text":"a","index":0,"meta_info":{"id":"r","finish_reason":{"type":"stop"}}}\n\n'
    other = b'data: {"text":"x","index":1,"meta_info":{"id":"r","finish_reason":null}}\n\n'
    assert ending("sglang", one + other)[1] == "upstream_truncated"
    assert ending("sglang", one)[2]["warnings"] == ["terminator_missing"]
    assert ending("sglang", one + other + b"data: [DONE]\n\n")[1] is None


def test_nothing_follows_the_mark() -> None:
    events, dialect = read("sglang", [b"data: [DONE]\n\ndata: [1]\n\n"])
    assert (events, dialect.terminated) == ([], True)


def test_error_frame() -> None:
    frame = error_frame("sglang", Failure("idle_timeout", "why"))
    assert frame == b'data: {"error":{"message":"why","type":"idle_timeout","code":504}}\n\n'
