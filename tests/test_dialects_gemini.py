"""Gemini's generateContent streams: parts, calls, finish reasons, sources, errors, and when such a stream has ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import (
    Annotation,
    Event,
    Extension,
    Finish,
    Frame,
    Media,
    Reasoning,
    Start,
    Token,
    ToolCall,
    UpstreamError,
    Usage,
)
from tests.dialect_reading import decode_payloads, error_frame, read, summarise
from tests.official_google import read_gemini

START = Start("r1", "g")


def chunk(*parts: Any, finish: Any = None, index: int | None = None, **candidate: Any) -> dict[str, Any]:
    """A response of one candidate."""
    fields: dict[str, Any] = dict(candidate)
    if parts:
        fields["content"] = {"role": "model", "parts": list(parts)}
    if finish is not None:
        fields["finishReason"] = finish
    if index is not None:
        fields["index"] = index
    return {"candidates": [fields], "responseId": "r1", "modelVersion": "g"}


def call(**fields: Any) -> dict[str, Any]:
    return {"functionCall": fields}


def events_of(*payloads: Any) -> list[Event]:
    """What the payloads mean, behind `Start`."""
    start, *events = decode_payloads("gemini", payloads)
    assert isinstance(start, Start)
    return events


# Text, thoughts, media, sources.


def test_start_names_the_response_and_the_model_version() -> None:
    assert decode_payloads("gemini", [chunk({"text": "a"})]) == [START, Token(0, "a")]
    assert decode_payloads("gemini", [{"candidates": [{"content": {"parts": [{"text": "a"}]}}]}])[0] == Start()
    usage = {"usageMetadata": {"trafficType": "ON_DEMAND"}, "responseId": "r1", "modelVersion": "g"}
    assert decode_payloads("gemini", [usage])[0] == START


def test_thoughts_are_reasoning_and_signatures_stand_on_any_part() -> None:
    parts = [
        {"text": "hm", "thought": True},
        {"text": "aha", "thought": True, "thoughtSignature": "s1"},
        {"text": "", "thought": True},
        {"text": "a", "thoughtSignature": "s2"},
        {"text": "", "thoughtSignature": "s3"},
        {**call(name="f", args={}), "thoughtSignature": "s4"},
        {"thoughtSignature": "s5"},
    ]
    assert events_of(chunk(*parts)) == [
        Reasoning(0, "hm"),
        Reasoning(0, "aha", "s1"),
        Reasoning(0, "", "s2"),
        Token(0, "a"),
        Reasoning(0, "", "s3"),
        Reasoning(0, "", "s4"),
        ToolCall(0, 0, "{}", None, "f"),
        Reasoning(0, "", "s5"),
    ]


def test_what_the_server_ran_passes_as_extensions() -> None:
    parts: list[dict[str, Any]] = [
        {"executableCode": {"language": "PYTHON", "code": "1"}, "thoughtSignature": "s"},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": ""}},
        {"toolCall": {"id": "t", "toolType": "URL_CONTEXT"}},
        {"toolResponse": {"id": "t"}},
        {"functionResponse": {"name": "f"}},
        {"unheardOf": 1},
    ]
    told = events_of(chunk(*parts, index=2))
    assert told[0] == Reasoning(2, "", "s")
    names = ["executableCode", "codeExecutionResult", "toolCall", "toolResponse", "functionResponse", "unheardOf"]
    assert told[1:] == [Extension(name, {"index": 2, **part}) for name, part in zip(names, parts, strict=True)]


def test_text_beside_an_unknown_key_is_text_too() -> None:
    part = {"text": "a", "partMetadata": {"source": "x"}}
    assert events_of(chunk(part)) == [Extension("partMetadata", {"index": 0, **part}), Token(0, "a")]
    assert events_of(chunk("odd", None)) == [
        Extension("part", {"index": 0, "part": "odd"}),
        Extension("part", {"index": 0, "part": None}),
    ]


@pytest.mark.parametrize(
    ("part", "event"),
    [
        ({"inlineData": {"mimeType": "image/png", "data": "AA=="}}, Media(0, "image", "image/png", "AA==")),
        (
            {"inlineData": {"mimeType": "audio/L16;rate=8", "data": "AA=="}},
            Media(0, "audio", "audio/L16;rate=8", "AA=="),
        ),
        ({"inlineData": {"mimeType": "text/csv", "data": "AA=="}}, Media(0, "file", "text/csv", "AA==")),
        ({"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a"}}, Media(0, "video", "video/mp4", "gs://a")),
        ({"inlineData": {}}, Extension("inlineData", {"index": 0, "inlineData": {}})),
        (
            {"inlineData": {"mimeType": "image/png", "data": "AA=="}, "thought": True},
            Extension(
                "thought", {"index": 0, "inlineData": {"mimeType": "image/png", "data": "AA=="}, "thought": True}
            ),
        ),
    ],
)
def test_media(part: dict[str, Any], event: Event) -> None:
    assert events_of(chunk(part)) == [event]


@pytest.mark.parametrize("key", ["citationMetadata", "groundingMetadata", "urlContextMetadata"])
def test_sources_are_annotations_each_time_they_change(key: str) -> None:
    values: list[Any] = [{"a": [1]}, {"a": [1]}, {"a": [1, 2]}, {}, {"a": [1, 2]}]
    told = events_of(*(chunk({"text": "x"}, **{key: value}) for value in values))
    assert [event for event in told if not isinstance(event, Token)] == [
        Annotation(0, {key: {"a": [1]}}),
        Annotation(0, {key: {"a": [1, 2]}}),
    ]


def test_ratings_and_the_like_are_told_when_they_change() -> None:
    low, high = [{"probability": "LOW"}], [{"probability": "HIGH"}]
    told = events_of(
        chunk({"text": "x"}, safetyRatings=low),
        chunk({"text": "y"}, safetyRatings=low, avgLogprobs=-0.5),
        chunk(finish="SAFETY", safetyRatings=high, finishMessage="no", unheardOf={"a": 1}),
    )
    assert [event for event in told if isinstance(event, Extension)] == [
        Extension("safetyRatings", {"index": 0, "safetyRatings": low}),
        Extension("avgLogprobs", {"index": 0, "avgLogprobs": -0.5}),
        Extension("safetyRatings", {"index": 0, "safetyRatings": high}),
        Extension("finishMessage", {"index": 0, "finishMessage": "no"}),
        Extension("unheardOf", {"index": 0, "unheardOf": {"a": 1}}),
    ]


def test_logprobs_go_with_their_text() -> None:
    result = {"chosenCandidates": [{"token": "a"}]}
    assert events_of(chunk({"text": "a"}, {"text": "b"}, logprobsResult=result)) == [
        Token(0, "a", result),
        Token(0, "b"),
    ]
    assert events_of(chunk(call(name="f"), logprobsResult=result))[1:] == [
        Extension("logprobsResult", {"index": 0, "logprobsResult": result})
    ]


def test_a_response_of_nothing_known_is_an_extension() -> None:
    assert events_of({"somethingNew": {"a": 1}}) == [Extension("unknown", {"somethingNew": {"a": 1}})]
    assert events_of({**chunk({"text": "a"}), "modelStatus": {"m": 1}}, {**chunk(), "modelStatus": {"m": 1}}) == [
        Token(0, "a"),
        Extension("modelStatus", {"m": 1}),
    ]
    assert decode_payloads("gemini", [{}, {"candidates": []}, {"responseId": "r1"}]) == [Start("r1", "")]
    assert events_of(b"not json") == [Extension("unparsed", "not json")]
    assert events_of(b"[1]") == [Extension("unknown", [1])]


# Calls.


def test_whole_calls() -> None:
    parts = [call(name="f", args={"a": [1]}, id="c1"), call(name="g"), call(name="h", args={})]
    assert events_of(chunk(*parts, finish="STOP")) == [
        ToolCall(0, 0, '{"a":[1]}', "c1", "f"),
        ToolCall(0, 1, "", None, "g"),
        ToolCall(0, 2, "{}", None, "h"),
        Finish(0, "tool_calls", "STOP"),
    ]


def partial(path: str, **value: Any) -> dict[str, Any]:
    return {"jsonPath": path, **value}


def test_a_call_in_pieces_is_told_as_it_comes() -> None:
    assert events_of(
        chunk(call(name="f", id="c1", willContinue=True)),
        chunk(call(partialArgs=[partial("$.city", stringValue="Bos", willContinue=True)], willContinue=True)),
        chunk(call(partialArgs=[partial("$.city", stringValue="ton", willContinue=True)], willContinue=True)),
        chunk(call(partialArgs=[partial("$.city", stringValue="")], willContinue=True)),
        chunk(call(partialArgs=[partial("$.days[0]", numberValue=3)], willContinue=True)),
        chunk(call()),
        chunk(finish="STOP"),
    ) == [
        ToolCall(0, 0, "", "c1", "f"),
        ToolCall(0, 0, '{"city":"Bos'),
        ToolCall(0, 0, "ton"),
        ToolCall(0, 0, '","days":[3'),
        ToolCall(0, 0, "]}"),
        Finish(0, "tool_calls", "STOP"),
    ]


@pytest.mark.parametrize(
    ("pieces", "arguments"),
    [
        ([call(name="f", willContinue=True), call()], {}),
        ([call(name="f", partialArgs=[partial("$.a", boolValue=False)])], {"a": False}),
        ([call(name="f", partialArgs=[partial("$.a", nullValue=None)])], {"a": None}),
        ([call(name="f", partialArgs=[partial("$.a", nullValue="NULL_VALUE")]), call(), call()], {"a": None}),
        ([call(name="f", willContinue=True), call(args={"a": 1})], {"a": 1}),
        ([call(name="f", willContinue=True), call(args={"a": 1}, willContinue=True), call()], {"a": 1}),
        ([call(name="f", partialArgs=[partial("$.a", stringValue="x"), partial("$.a")])], {"a": "x"}),
        ([call(name="f", partialArgs=[partial("$.a.b", numberValue="NaN")])], {"a": {"b": "NaN"}}),
    ],
)
def test_ways_to_end_a_call_in_pieces(pieces: list[dict[str, Any]], arguments: Any) -> None:
    told = events_of(*(chunk(piece) for piece in pieces), chunk(finish="STOP"))
    assert not any(isinstance(event, Extension) for event in told)
    ((call_id, name, text),) = summarise(told).calls.values()
    assert (call_id, name, json.loads(text)) == ("", "f", arguments)


def test_calls_in_pieces_close_where_another_begins_or_the_candidate_ends() -> None:
    open_call = chunk(
        call(name="f", partialArgs=[partial("$.a", stringValue="x", willContinue=True)], willContinue=True)
    )
    told = events_of(open_call, open_call, chunk(call(name="g", args={})), open_call, chunk(finish="MAX_TOKENS"))
    calls = [(name, json.loads(text)) for _, name, text in summarise(told).calls.values()]
    assert calls == [("f", {"a": "x"}), ("f", {"a": "x"}), ("g", {}), ("f", {"a": "x"})]
    assert told[-2:] == [ToolCall(0, 3, '"}'), Finish(0, "length", "MAX_TOKENS")]


def test_pieces_that_belong_nowhere_are_not_dropped() -> None:
    stray, late = partial("$.a", stringValue="x"), partial("$.a", numberValue=2)
    told = events_of(
        chunk(call(partialArgs=[stray])),
        chunk(call(name="f", partialArgs=[partial("$.a", numberValue=1), late], willContinue=True)),
        chunk(call(args={"b": 1})),
    )
    assert [event for event in told if isinstance(event, Extension)] == [
        Extension("functionCall", {"index": 0, "functionCall": {"partialArgs": [stray]}}),
        Extension("partialArgs", {"index": 0, "call": 0, "partialArgs": [late]}),
        Extension("functionCall", {"index": 0, "call": 0, "args": {"b": 1}}),
    ]
    assert [json.loads(text) for _, _, text in summarise(told).calls.values()] == [{"a": 1}]


# How candidates finish.


@pytest.mark.parametrize(
    ("sent", "reason", "native"),
    [
        ("STOP", "stop", "STOP"),
        ("MAX_TOKENS", "length", "MAX_TOKENS"),
        ("SAFETY", "content_filter", "SAFETY"),
        ("IMAGE_RECITATION", "content_filter", "IMAGE_RECITATION"),
        ("MODEL_ARMOR", "content_filter", "MODEL_ARMOR"),
        ("CONTINUATION", "paused", "CONTINUATION"),
        ("MALFORMED_FUNCTION_CALL", "error", "MALFORMED_FUNCTION_CALL"),
        ("OTHER", "error", "OTHER"),
        ("SOMETHING_NEW", "error", "SOMETHING_NEW"),
        (1, "stop", "STOP"),
        (2, "length", "MAX_TOKENS"),
        (3, "content_filter", "SAFETY"),
        (4, "content_filter", "RECITATION"),
        (5, "error", "OTHER"),
        (11, "content_filter", "IMAGE_SAFETY"),
        (7, "content_filter", "7"),  # BLOCKLIST of the developer API, PROHIBITED_CONTENT of Vertex
        (10, "error", "10"),  # MALFORMED_FUNCTION_CALL of one, MODEL_ARMOR of the other
        (99, "error", "99"),
    ],
)
def test_finish_reasons(sent: Any, reason: Any, native: str) -> None:
    assert events_of(chunk({"text": "a"}, finish=sent))[-1] == Finish(0, reason, native)


@pytest.mark.parametrize("sent", ["FINISH_REASON_UNSPECIFIED", 0, "", None, [], True])
def test_no_finish_reason(sent: Any) -> None:
    assert events_of(chunk({"text": "a"}, finish=sent)) == [Token(0, "a")]


def test_every_candidate_has_its_own_end() -> None:
    dialect = DIALECTS["gemini"]()
    payloads = [
        chunk({"text": "a"}),
        chunk({"text": "b"}, index=1),
        chunk(finish="STOP"),
        chunk(index=1, finish="SAFETY"),
    ]
    finished = []
    for payload in payloads:
        data = json.dumps(payload).encode()
        dialect.decode(Frame(data, data))
        finished.append(dialect.is_finished)
    assert finished == [False, False, False, True]
    assert not dialect.terminated
    assert not dialect.has_terminator


@pytest.mark.parametrize(
    ("reason", "native"),
    [("SAFETY", "SAFETY"), ("JAILBREAK", "JAILBREAK"), (1, "SAFETY"), (4, "PROHIBITED_CONTENT"), (6, "6")],
)
def test_a_blocked_prompt_is_finished_by_a_filter(reason: Any, native: str) -> None:
    feedback = {"blockReason": reason, "safetyRatings": []}
    body = b"data: " + json.dumps({"promptFeedback": feedback}).encode() + b"\r\n"
    events, dialect = read("gemini", [body])
    assert events == [Start(), Extension("promptFeedback", feedback), Finish(0, "content_filter", native)]
    assert dialect.is_finished


def test_feedback_on_a_prompt_that_was_not_blocked() -> None:
    feedback = {"safetyRatings": [{"probability": "LOW"}]}
    both = {**chunk({"text": "a"}), "promptFeedback": feedback}
    assert events_of(both, both) == [Token(0, "a"), Extension("promptFeedback", feedback), Token(0, "a")]
    assert events_of({"promptFeedback": {"blockReason": "BLOCK_REASON_UNSPECIFIED"}}) == [
        Extension("promptFeedback", {"blockReason": "BLOCK_REASON_UNSPECIFIED"})
    ]


def test_a_finish_reason_on_every_chunk_says_nothing_of_the_end() -> None:
    dialect = DIALECTS["gemini"]()
    ends: list[tuple[bool, bool]] = []
    for text in ("a", "b", "c"):
        data = json.dumps(chunk({"text": text}, finish="STOP")).encode()
        told = dialect.decode(Frame(data, data))
        assert [event for event in told if isinstance(event, Finish)] == ([] if ends else [Finish(0, "stop", "STOP")])
        ends.append((dialect.is_finished, dialect.completes_on_clean_end))
    assert ends == [(True, False), (False, True), (False, True)]


# Counts and errors.


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        (
            {"promptTokenCount": 34, "candidatesTokenCount": 469, "thoughtsTokenCount": 787, "totalTokenCount": 1290},
            (34, 1256, 1290, None, 787),
        ),
        (
            {
                "promptTokenCount": 147,
                "toolUsePromptTokenCount": 360,
                "candidatesTokenCount": 108,
                "thoughtsTokenCount": 168,
                "cachedContentTokenCount": 40,
                "totalTokenCount": 783,
            },
            (507, 276, 783, 40, 168),
        ),
        ({"promptTokenCount": 15, "totalTokenCount": 15}, (15, None, 15, None, None)),
        ({"promptTokenCount": 2, "candidatesTokenCount": 3}, (2, 3, 5, None, None)),
        ({"trafficType": "ON_DEMAND"}, (None, None, None, None, None)),
    ],
)
def test_usage(native: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    (usage,) = events_of({"usageMetadata": native})
    assert isinstance(usage, Usage)
    assert usage.native == native
    counts = (usage.input_tokens, usage.output_tokens, usage.total_tokens)
    assert (*counts, usage.cached_input_tokens, usage.reasoning_tokens) == expected


ERROR = {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}
PRETTY = json.dumps({"error": ERROR}, indent=2).encode()
TEXT = b"data: " + json.dumps(chunk({"text": "a"})).encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    "body",
    [
        TEXT + PRETTY.replace(b"\n", b"\r\n"),
        TEXT + PRETTY + b"\n\n",
        TEXT + b"[" + PRETTY + b"\n]\n",
        TEXT + b"data: " + json.dumps({"error": ERROR}).encode() + b"\r\n\r\n",
        TEXT + b"data: " + json.dumps([{"error": ERROR}]).encode() + b"\r\n\r\n",
        TEXT + b"event: error\ndata: " + json.dumps(ERROR).encode() + b"\n\n",
    ],
    ids=["bare_cut", "bare", "bare_list", "event", "event_list", "named"],
)
def test_errors_in_every_shape_of_an_event_stream(body: bytes) -> None:
    events, dialect = read("gemini", [body])
    assert events == [START, Token(0, "a"), UpstreamError("overloaded", ERROR, "UNAVAILABLE", 503, retryable=True)]
    assert not dialect.is_finished


@pytest.mark.parametrize(
    "body",
    [
        b"[" + json.dumps(chunk({"text": "a"})).encode() + b",\r\n" + PRETTY + b"]",
        b"[" + json.dumps(chunk({"text": "a"})).encode() + b",\r\n[" + PRETTY + b"]]",
    ],
)
def test_an_error_may_be_the_last_element(body: bytes) -> None:
    events, _ = read("gemini", [body], "json-array")
    assert events == [START, Token(0, "a"), UpstreamError("overloaded", ERROR, "UNAVAILABLE", 503, retryable=True)]


def test_an_error_beside_content_does_not_hide_it() -> None:
    told = events_of({**chunk({"text": "a"}), "error": ERROR})
    assert [type(event) for event in told] == [Token, UpstreamError]
    assert events_of({"error": "plain words"}) == [UpstreamError("plain words", "plain words")]


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        ("upstream_reset", 502, "UNAVAILABLE"),
        ("idle_timeout", 504, "DEADLINE_EXCEEDED"),
        ("shutting_down", 503, "UNAVAILABLE"),
        ("internal", 500, "INTERNAL"),
    ],
)
def test_our_own_error_in_both_framings(code: str, status: int, word: str) -> None:
    error = {"error": {"code": status, "message": "m", "status": word}}
    event = error_frame("gemini", Failure(code, "m"))
    assert event.endswith(b"\r\n\r\n")
    assert json.loads(event.removeprefix(b"data: ")) == error
    assert json.loads(b"[" + error_frame("gemini", Failure(code, "m"), "json-array")) == [error]
    assert read_gemini(TEXT + event).error == "m"
    assert summarise(read("gemini", [TEXT + event])[0]).error == "m"
