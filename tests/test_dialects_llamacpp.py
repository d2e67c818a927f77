"""llama.cpp's own completions: pieces, stops of several choices, and errors old and new."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.dialects.recognition import dialect_of_path
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, Start, Token, UpstreamError, Usage
from tests.dialect_reading import decode_payloads, error_frame, read
from tests.test_relay import ending


def piece(content: Any = "", index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"index": index, "content": content, "stop": False, **fields}


def last(stop_type: str = "eos", index: int = 0, **fields: Any) -> dict[str, Any]:
    return piece("", index, **{"stop": True, "stop_type": stop_type, **fields})


def decode(*payloads: Any) -> list[Event]:
    start, *events = decode_payloads("llamacpp", payloads)
    assert start == Start()
    return events


def test_text_and_its_probabilities() -> None:
    probabilities = [{"id": 1, "token": "a", "logprob": -0.5, "top_logprobs": []}]
    assert decode(piece("a", completion_probabilities=probabilities), piece("b")) == [
        Token(0, "a", probabilities),
        Token(0, "b"),
    ]


@pytest.mark.parametrize(
    ("word", "reason"), [("eos", "stop"), ("word", "stop"), ("limit", "length"), ("none", "error"), ("new", "stop")]
)
def test_stop_types(word: str, reason: Any) -> None:
    assert decode(last(word)) == [Finish(0, reason, word)]


@pytest.mark.parametrize(
    ("flag", "reason"), [("stopped_eos", "stop"), ("stopped_word", "stop"), ("stopped_limit", "length")]
)
def test_flags_of_older_servers(flag: str, reason: Any) -> None:
    flags = {"stopped_eos": False, "stopped_word": False, "stopped_limit": False, flag: True}
    assert decode({"content": "", "stop": True, "slot_id": 0, **flags}) == [Finish(0, reason, flag)]


def test_a_stop_without_a_word_ends_its_choice_all_the_same() -> None:
    events, dialect = read("llamacpp", [b'data: {"content":"","stop":true}\n\n'])
    assert (events, dialect.is_finished) == ([Start()], True)


def test_counts_include_what_the_cache_saved() -> None:
    fields: dict[str, Any] = {
        "tokens_evaluated": 6,
        "tokens_predicted": 2,
        "timings": {"cache_n": 4},
        "tokens_cached": 8,
    }
    assert decode(last(**fields))[1] == Usage(6, 2, 8, 4, None, fields)
    assert decode(piece("a", tokens_predicted=1))[1] == Usage(None, 1, native={"tokens_predicted": 1})


def test_counts_of_several_choices_are_added_up() -> None:
    events = decode(
        piece("a", 0, tokens_evaluated=6, tokens_predicted=1),
        piece("x", 1, tokens_evaluated=4, tokens_predicted=1),
        piece("b", 0, tokens_evaluated=6, tokens_predicted=2),
    )
    counts = [event for event in events if isinstance(event, Usage)]
    assert [(usage.input_tokens, usage.output_tokens, usage.total_tokens) for usage in counts] == [
        (6, 1, 7),
        (10, 2, 12),
        (10, 3, 13),
    ]
    assert counts[-1].native == {"tokens_evaluated": 6, "tokens_predicted": 2}


def test_progress_is_an_extension() -> None:
    progress = {"total": 6, "cache": 0, "processed": 3, "time_ms": 5}
    assert decode(piece(prompt_progress=progress)) == [Extension("prompt_progress", progress)]


def test_every_choice_that_began_has_to_stop() -> None:
    bodies = [frames(piece("a", 0), piece("x", 1)), frames(last(index=1)), frames(last(index=0))]
    assert [ending("llamacpp", b"".join(bodies[:count]))[1] for count in (1, 2, 3)] == [
        "upstream_truncated",
        "upstream_truncated",
        None,
    ]
    _, _, done = ending("llamacpp", b"".join(bodies))
    assert "warnings" not in done
    assert [reason["index"] for reason in done["finish_reasons"]] == [0, 1]


def frames(*payloads: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(payload).encode() + b"\n\n" for payload in payloads)


def test_errors_of_today() -> None:
    error = {"code": 500, "message": "m", "type": "server_error"}
    assert decode(piece("a"), {"error": error})[1] == UpstreamError("m", error, "server_error", 500, retryable=True)


def test_errors_of_older_servers_are_a_field_of_their_own() -> None:
    """``error: {…}`` instead of ``data: {"error": {…}}``."""
    body = b'data: {"content":"a","stop":false}\n\nerror: {"code":500,"message":"m","type":"server_error"}\n\n'
    for size in (1, 7, len(body)):
        events, _ = read("llamacpp", [body[at : at + size] for at in range(0, len(body), size)])
        assert events[-1] == UpstreamError(
            "m", {"code": 500, "message": "m", "type": "server_error"}, "server_error", 500, retryable=True
        )
    assert ending("llamacpp", body)[1] == "upstream_error"


def test_other_objects_are_extensions() -> None:
    assert decode({"type": "novel"}) == [Extension("novel", {"type": "novel"})]


def test_error_frame() -> None:
    frame = error_frame("llamacpp", Failure("idle_timeout", "why"))
    assert frame == b'data: {"error":{"code":504,"message":"why","type":"server_error"}}\n\n'


@pytest.mark.parametrize(
    ("path", "dialect"),
    [("/completion", "llamacpp"), ("/infill", "llamacpp"), ("/slot/completion/", "llamacpp"), ("/xcompletion", None)],
)
def test_paths(path: str, dialect: str | None) -> None:
    assert dialect_of_path(path) == dialect


def test_openais_path_is_not_its() -> None:
    assert dialect_of_path("/completions") != "llamacpp"
    assert dialect_of_path("/v1/completions") != "llamacpp"
