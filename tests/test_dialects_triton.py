"""Triton and KServe: pieces or all of the text, and the care it takes to call such a stream complete."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.dialects.recognition import Spoken, detect, dialect_of_path
from sidecar.errors import Failure, Outcome
from sidecar.events import Event, Extension, Finish, Start, Token, UpstreamError, Usage
from sidecar.settings import Timeouts
from tests.core_support import RESET, Rig
from tests.dialect_reading import decode_payloads, error_frame, read
from tests.test_relay import Line, code_of, ending

NAMES = ["triton", "triton-accumulated"]


def output(text: Any, **fields: Any) -> dict[str, Any]:
    return {"model_name": "m", "model_version": "1", "text_output": text, **fields}


def decode(*payloads: Any, name: str = "triton") -> list[Event]:
    start, *events = decode_payloads(name, payloads)
    assert start == Start("", "m")
    return events


# What frames mean


def test_pieces_are_told_as_they_come() -> None:
    assert decode(output(""), output("a"), output("ab")) == [Token(0, "a"), Token(0, "ab")]


def test_of_a_growing_text_only_the_new_part_is_told() -> None:
    events = decode(output("a"), output("ab"), output("ab"), output("ab😄"), name="triton-accumulated")
    assert events == [Token(0, "a"), Token(0, "b"), Token(0, "😄")]


def test_a_growing_text_that_was_taken_back_is_told_in_full_beside_what_is_new() -> None:
    events = decode(output("abc"), output("aXcd"), output("aXcde"), output("a"), name="triton-accumulated")
    assert events == [
        Token(0, "abc"),
        Extension("text_output", {"index": 0, "text_output": "aXcd"}),
        Token(0, "d"),
        Token(0, "e"),
        Extension("text_output", {"index": 0, "text_output": "a"}),
    ]


def test_several_texts_are_several_choices() -> None:
    assert decode(output(["a", "x"]), output(["b", ""])) == [Token(0, "a"), Token(1, "x"), Token(0, "b")]
    grown = decode(output(["a", "x"]), output(["ab", "xy"]), name="triton-accumulated")
    assert grown[2:] == [Token(0, "b"), Token(1, "y")]
    assert decode(output("a", sequence_index=2)) == [Token(2, "a")]


def test_vllm_tells_reasons_counts_and_logprobs_where_it_is_asked() -> None:
    counts = {"num_input_tokens": 4, "num_output_tokens": 1}
    events = decode(
        output("a", finish_reason="None", logprobs='[{"1":{}}]', **counts),
        output("b", finish_reason="length", logprobs="null", **counts),
    )
    assert events == [
        Token(0, "a", '[{"1":{}}]'),
        Usage(4, 1, 5, native=counts),
        Token(0, "b"),
        Finish(0, "length", "length"),
        Usage(4, 2, 6, native={"num_input_tokens": 4, "num_output_tokens": 2}),
    ]
    two = decode(output(["a", "b"], num_output_tokens=[2, 3]))
    assert two[2] == Usage(None, 5, None, native={"num_input_tokens": None, "num_output_tokens": 5})


def test_kserve_tells_its_reason_among_details() -> None:
    token = {"id": 1, "text": "a", "logprob": -0.5, "special": False}
    events = decode(
        output("a", details={"token": token}), output("", done=True, details={"finish_reason": "eos_token"})
    )
    assert events == [Token(0, "a", token), Finish(0, "stop", "eos_token")]


def test_output_of_another_kind_is_an_extension() -> None:
    fields = {"model_name": "m", "embedding": [0.5]}
    assert decode(fields) == [Extension("unknown", fields)]


@pytest.mark.parametrize("name", NAMES)
def test_errors_under_status_200(name: str) -> None:
    fields = {"error": "the engine stopped"}
    assert decode(output("a"), fields, name=name)[-1] == UpstreamError("the engine stopped", fields)
    assert decode_payloads(name, [fields]) == [Start(), UpstreamError("the engine stopped", fields)]
    assert error_frame(name, Failure("upstream_reset", "why")) == b'data: {"error":"why"}\n\n'


# When a stream is complete


def frame(text: str, **fields: Any) -> bytes:
    return b"data: " + json.dumps(output(text, **fields)).encode() + b"\n\n"


PIECES = frame("a") + frame("b")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("body", "failure", "proves_end", "code"),
    [
        (PIECES, None, True, None),
        (PIECES, RESET, True, "upstream_reset"),
        (PIECES, None, False, "upstream_truncated"),
        (PIECES + PIECES[:30], None, True, "upstream_truncated"),
        (PIECES + frame("c")[:-2], None, True, None),
        (b"", None, True, "upstream_truncated"),
        (b": ping\n\n", None, True, "upstream_truncated"),
        (b"data: nonsense\n\n", None, True, "upstream_truncated"),
        (PIECES + b'data: {"error":"e"}\n\n', None, True, "upstream_error"),
        (PIECES + b'data: {"error":"e"}\n\n', RESET, True, "upstream_error"),
        (b'data: {"error":"e"}\n\n', None, True, "upstream_error"),
        # A mark that was promised has to come.
        (frame("a", done=False), None, True, "upstream_truncated"),
        (frame("a", done=False) + frame("", done=True), None, True, None),
        (frame("a", done=False) + frame("", done=True), RESET, False, None),
        (frame("a", finish_reason="None"), None, True, "upstream_truncated"),
        (frame("a", finish_reason="None") + frame("", finish_reason="stop"), None, True, None),
        (frame("a", finish_reason="None") + frame("", finish_reason="stop"), None, False, None),
    ],
)
def test_only_a_proven_end_completes(
    name: str, body: bytes, failure: Failure | None, proves_end: bool, code: str | None
) -> None:
    assert ending(name, body, failure, proves_end=proves_end)[1] == code


def test_a_promised_mark_that_is_missing_is_warned_of_where_reasons_came() -> None:
    body = frame("a", done=False, finish_reason="stop")
    outcome, _, done = ending("triton", body)
    assert (outcome, done["warnings"]) == (Outcome.COMPLETED, ["terminator_missing"])


def test_a_native_stream_cut_within_an_object_is_closed_with_an_error() -> None:
    outcome, said, sent = Line("triton", "native").run([PIECES + PIECES[:30]])
    assert (outcome, code_of(said)) == (Outcome.UPSTREAM_BROKEN, "upstream_truncated")
    assert sent == PIECES + b'data: {"error":"the upstream\'s stream ended before its end mark"}\n\n'


def test_nothing_is_complete_before_it_began() -> None:
    _, dialect = read("triton", [b""])
    assert not dialect.completes_on_clean_end
    assert not dialect.has_terminator


def test_outputs_without_text_do_not_satisfy_first_token() -> None:
    """Only the body's end completes such a stream, yet it is not one of unknown meaning."""
    rig = Rig(dialect="triton", timeouts=Timeouts(first_token_s=2.0, idle_s=3.0)).open(content_type="text/event-stream")
    for _ in range(3):
        rig.feed(frame("")).pass_time(1.0)
    assert (rig.code, rig.outcome) == ("first_token_timeout", Outcome.TIMED_OUT)
    rig.assert_settled()


# Where it is spoken


@pytest.mark.parametrize(
    "path",
    ["/v2/models/m/generate_stream", "/v2/models/m/versions/3/generate_stream", "/p/v2/models/a.b/generate_stream"],
)
def test_its_path_goes_before_tgis(path: str) -> None:
    assert dialect_of_path(path) == "triton"
    assert dialect_of_path("/generate_stream") == "tgi"


def test_growing_texts_have_to_be_configured() -> None:
    path = "/v2/models/m/generate_stream"
    assert detect(path, "text/event-stream", "auto") == Spoken("triton", "sse")
    assert detect(path, "text/event-stream", "triton-accumulated") == Spoken("triton-accumulated", "sse")
