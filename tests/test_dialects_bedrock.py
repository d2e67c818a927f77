"""Bedrock's two streams: what each event means, whose words are in a chunk, and every way to fail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from botocore.exceptions import EventStreamError

from sidecar.dialects import DIALECTS, make_dialect
from sidecar.dialects.converse_message import FINISH_REASONS
from sidecar.dialects.recognition import Spoken, detect, streams_by_target
from sidecar.errors import CODES, Failure, Outcome
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
from sidecar.framing import make_framing
from sidecar.settings import Limits, Timeouts
from tests import aws_messages as aws
from tests.core_support import Rig
from tests.dialect_reading import error_frame, read
from tests.official_bedrock import answered_with, bedrock_client, converse_stream, invoke_stream

METRICS = "amazon-bedrock-invocationMetrics"
ACTION = "amazon-bedrock-guardrailAction"
COUNTED = {"inputTokenCount": 9, "outputTokenCount": 3, "invocationLatency": 300}


def converse(*messages: bytes) -> list[Event]:
    """The events behind `Start`."""
    events, _ = read("bedrock-converse", messages)
    assert events[0] == Start()
    return events[1:]


def invoke(*messages: bytes) -> list[Event]:
    events, _ = read("bedrock-invoke", messages)
    assert [event for event in events if isinstance(event, Start)] == events[:1]
    return events[1:]


def delta(member: str, value: Any, index: int = 0) -> bytes:
    return aws.event("contentBlockDelta", {"contentBlockIndex": index, "delta": {member: value}}, padding="abc")


def begin(member: str, value: Any, index: int = 0) -> bytes:
    return aws.event("contentBlockStart", {"contentBlockIndex": index, "start": {member: value}}, padding="abc")


def end(index: int = 0) -> bytes:
    return aws.event("contentBlockStop", {"contentBlockIndex": index}, padding="abc")


def stop(reason: str = "end_turn", **more: Any) -> bytes:
    return aws.event("messageStop", {"stopReason": reason, **more}, padding="abc")


def metadata(**fields: Any) -> bytes:
    return aws.event("metadata", fields, padding="abc")


# Converse.


def test_structure_and_padding_say_nothing() -> None:
    role = aws.event("messageStart", {"role": "assistant"}, padding="abc")
    empty = [delta("text", ""), delta("reasoningContent", {"text": ""}), aws.event("contentBlockDelta", {})]
    assert converse(role, *empty, aws.event("contentBlockStart", {"contentBlockIndex": 0}), end()) == []


def test_each_kind_of_delta() -> None:
    assert converse(delta("text", "Hi"), delta("reasoningContent", {"text": "Hm"})) == [
        Token(0, "Hi"),
        Reasoning(0, "Hm"),
    ]
    assert converse(delta("reasoningContent", {"signature": "s"})) == [Reasoning(0, "", "s")]
    redacted = {"contentBlockIndex": 0, "delta": {"reasoningContent": {"redactedContent": "QQ=="}}}
    assert converse(aws.event("contentBlockDelta", redacted)) == [Extension("redactedContent", redacted)]
    citation = {"title": "t", "location": {"web": {"url": "u"}}}
    assert converse(delta("citation", citation)) == [Annotation(0, citation)]
    result = {"contentBlockIndex": 0, "delta": {"toolResult": [{"text": "2"}]}}
    assert converse(aws.event("contentBlockDelta", result)) == [Extension("toolResult", result)]


def test_calls_are_numbered_from_0_whatever_their_block() -> None:
    assert converse(
        begin("toolUse", {"toolUseId": "a", "name": "f"}, 3),
        delta("toolUse", {"input": ""}, 3),
        delta("toolUse", {"input": '{"x"'}, 3),
        begin("toolUse", {"toolUseId": "b", "name": "g", "type": "tool_use"}, 5),
        delta("toolUse", {"input": ":1}"}, 3),
        delta("toolUse", {"input": "{}"}, 5),
    ) == [
        ToolCall(0, 0, "", "a", "f"),
        ToolCall(0, 0, '{"x"'),
        ToolCall(0, 1, "", "b", "g"),
        ToolCall(0, 0, ":1}"),
        ToolCall(0, 1, "{}"),
    ]


def test_a_call_whose_start_is_missing_is_still_one() -> None:
    assert converse(delta("toolUse", {"input": "{}"}, 2), delta("toolUse", {"input": {"a": 1}}, 4)) == [
        ToolCall(0, 0, "{}"),
        ToolCall(0, 1, '{"a":1}'),
    ]


def test_what_the_service_does_itself_is_no_call() -> None:
    events = converse(
        begin("toolUse", {"toolUseId": "s", "name": "code", "type": "server_tool_use"}),
        delta("toolUse", {"input": "{}"}),
        end(),
        begin("toolUse", {"toolUseId": "a", "name": "f"}),
        delta("toolUse", {"input": "{}"}),
    )
    kinds = [event.type for event in events if isinstance(event, Extension)]
    assert kinds == ["server_tool_use", "server_tool_use"]
    assert events[2:] == [ToolCall(0, 0, "", "a", "f"), ToolCall(0, 0, "{}")]


@pytest.mark.parametrize(
    ("start", "source", "media"),
    [
        ({"format": "webp"}, {"bytes": "QUI="}, Media(0, "image", "image/webp", "QUI=")),
        ({}, {"s3Location": {"uri": "s3://b/k"}}, Media(0, "image", "image/*", "s3://b/k")),
    ],
)
def test_images(start: Any, source: Any, media: Media) -> None:
    assert converse(begin("image", start), delta("image", {"source": source})) == [media]
    other = {"contentBlockIndex": 0, "delta": {"image": {"error": {"message": "no"}}}}
    assert converse(aws.event("contentBlockDelta", other)) == [Extension("image", other)]


@pytest.mark.parametrize(
    ("kind", "payload", "extension"),
    [
        ("somethingNew", {"a": 1}, Extension("somethingNew", {"a": 1})),
        ("somethingNew", b"", Extension("somethingNew", {})),
        ("message", {"a": 1}, Extension("message", {"a": 1})),
        ("contentBlockDelta", b"[1]", Extension("contentBlockDelta", [1])),
        ("contentBlockDelta", b"{", Extension("unparsed", "{")),
        ("contentBlockDelta", {"delta": {"video": 1}}, Extension("video", {"delta": {"video": 1}})),
        ("contentBlockStart", {"start": {"video": {}}}, Extension("video", {"start": {"video": {}}})),
    ],
)
def test_what_has_no_other_name_is_an_extension(kind: str, payload: Any, extension: Extension) -> None:
    assert converse(aws.event(kind, payload)) == [extension]


def test_a_message_that_is_no_kind_of_event_is_an_extension() -> None:
    assert converse(aws.message(b"", b'{"a":1}')) == [Extension("unknown", {"a": 1})]


@pytest.mark.parametrize("native", [*FINISH_REASONS, "", "something_new"])
def test_every_stop_reason_is_a_finish_mark_but_not_the_end(native: str) -> None:
    events, dialect = read("bedrock-converse", [stop(native)])
    assert events[1:] == [Finish(0, FINISH_REASONS.get(native, "stop"), native)]
    assert (dialect.is_finished, dialect.terminated) == (True, False)


def test_the_reasons_are_mapped_as_the_closed_list_wants() -> None:
    assert [FINISH_REASONS[word] for word in ("end_turn", "max_tokens", "tool_use")] == ["stop", "length", "tool_calls"]
    assert FINISH_REASONS["guardrail_intervened"] == FINISH_REASONS["content_filtered"] == "content_filter"
    assert FINISH_REASONS["malformed_model_output"] == FINISH_REASONS["malformed_tool_use"] == "error"
    assert FINISH_REASONS["model_context_window_exceeded"] == "length"


def test_metadata_behind_the_stop_ends_it_and_is_told_apart() -> None:
    usage = {"inputTokens": 9, "outputTokens": 3, "totalTokens": 12}
    beside = {"metrics": {"latencyMs": 1}, "trace": {"guardrail": {}}}
    events, dialect = read("bedrock-converse", [stop(), metadata(usage=usage, **beside), delta("text", "late")])
    assert events[2:] == [Usage(9, 3, 12, native=usage), Extension("metadata", beside)]
    assert dialect.terminated


def test_metadata_before_the_stop_ends_it_there() -> None:
    counted = metadata(usage={"inputTokens": 9})
    assert converse(counted, stop()) == [Usage(9, native={"inputTokens": 9}), Finish(0, "stop", "end_turn")]
    rig = Rig(dialect="bedrock-converse").open().feed([HELLO, counted, stop()]).end()
    assert (rig.outcome, rig.stream.session.warnings) == (Outcome.COMPLETED, ())


def test_metadata_alone_ends_nothing() -> None:
    events, dialect = read("bedrock-converse", [metadata(), delta("text", "more")])
    assert events[1:] == [Token(0, "more")]
    assert (dialect.is_finished, dialect.terminated) == (False, False)


def test_fields_a_model_adds_to_its_stop_are_kept() -> None:
    assert converse(stop(additionalModelResponseFields={"a": 1}))[1] == Extension(
        "additionalModelResponseFields", {"a": 1}
    )


@pytest.mark.parametrize(
    ("native", "counts"),
    [
        ({"inputTokens": 9, "outputTokens": 3, "totalTokens": 12}, (9, 3, 12, None)),
        ({"inputTokens": 9, "outputTokens": 3}, (9, 3, 12, None)),
        ({"inputTokens": 4, "outputTokens": 3, "totalTokens": 107, "cacheReadInputTokens": 100}, (104, 3, 107, 100)),
        (
            {
                "inputTokens": 4,
                "outputTokens": 3,
                "totalTokens": 37,
                "cacheReadInputTokens": 10,
                "cacheWriteInputTokens": 20,
            },
            (34, 3, 37, 10),
        ),
        ({"inputTokens": 104, "outputTokens": 3, "totalTokens": 107, "cacheReadInputTokens": 100}, (104, 3, 107, 100)),
        ({"inputTokens": 4, "outputTokens": 3, "cacheReadInputTokens": 100}, (4, 3, 7, 100)),
        ({"inputTokens": 9, "cacheReadInputTokens": 0}, (9, None, None, 0)),
        ({"inputTokens": 9, "outputTokens": 3, "cacheReadInputTokenCount": 5}, (9, 3, 12, 5)),
        ({"inputTokens": 9.0, "outputTokens": "3"}, (9, 3, 12, None)),
    ],
)
def test_usage(native: Any, counts: tuple[int | None, ...]) -> None:
    (usage,) = converse(metadata(usage=native))
    assert isinstance(usage, Usage)
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens, usage.cached_input_tokens) == counts
    assert usage.native == native


# Errors, alike in both and in streams nobody knows.

ERRORS = [
    ("throttlingException", {"message": "slow down"}, "slow down", None, True),
    ("internalServerException", {"message": "m"}, "m", None, True),
    ("serviceUnavailableException", {"message": "m"}, "m", None, True),
    ("modelTimeoutException", {"message": "m"}, "m", None, True),
    ("validationException", {"message": "m"}, "m", None, False),
    ("modelStreamErrorException", {"message": "m", "originalStatusCode": 500, "originalMessage": "x"}, "m", 500, True),
    ("modelStreamErrorException", {"message": "m", "originalStatusCode": 400}, "m", 400, False),
    ("somethingNewException", {"Message": "m"}, "m", None, False),
    ("somethingNewException", {}, "somethingNewException", None, False),
    ("", {}, "the upstream failed without a word", None, False),
]


@pytest.mark.parametrize(("kind", "payload", "message", "status", "retryable"), ERRORS)
@pytest.mark.parametrize("name", ["bedrock-converse", "bedrock-invoke", "opaque-aws-event-stream"])
def test_an_exception_is_an_error(
    name: str, kind: str, payload: Any, message: str, status: int | None, retryable: bool
) -> None:
    events, dialect = read(name, [aws.exception(kind, payload)])
    native = {**payload, ":exception-type": kind}
    assert events == [Start(), UpstreamError(message, native, kind, status, retryable)]
    assert (dialect.is_finished, dialect.terminated) == (False, False)


@pytest.mark.parametrize(("payload", "words"), [(b"", {}), (b"oops", {"message": "oops"}), (b"[1]", {"message": [1]})])
def test_an_exception_without_an_object_is_one_too(payload: bytes, words: Any) -> None:
    (error,) = converse(aws.exception("validationException", payload))
    assert isinstance(error, UpstreamError)
    assert error.native == {**words, ":exception-type": "validationException"}
    assert error.message == ("oops" if payload == b"oops" else "validationException")


@pytest.mark.parametrize("name", ["bedrock-converse", "bedrock-invoke", "opaque-aws-event-stream"])
@pytest.mark.parametrize(
    ("code", "words", "message", "retryable"),
    [
        ("InternalFailure", "it broke\nbadly", "it broke\nbadly", True),
        ("ThrottlingException", "", "ThrottlingException", True),
        ("AccessDenied", "no", "no", False),
    ],
)
def test_an_unmodeled_error_is_an_error(name: str, code: str, words: str, message: str, retryable: bool) -> None:
    events, _ = read(name, [aws.error(code, words)])
    native = {":error-code": code, ":error-message": words}
    assert events == [Start(), UpstreamError(message, native, code, None, retryable)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("name", "ask"), [("bedrock-converse", converse_stream), ("bedrock-invoke", invoke_stream)])
def test_boto3_raises_on_our_own_error_frame(name: str, ask: Any, code: str) -> None:
    frame = error_frame(name, Failure(code, "what went wrong"))
    with bedrock_client("http://upstream") as client:
        client.meta.events.register("before-send.bedrock-runtime.*", lambda **_: answered_with(frame))
        with pytest.raises(EventStreamError) as caught:
            list(ask(client))
    error = caught.value.response["Error"]
    assert error["Message"] == "what went wrong"
    # Only an exception that the operation's own model knows has its type for a code.
    assert error["Code"].endswith("Exception")


def test_the_kind_of_exception_follows_the_outcome() -> None:
    kinds = {code: read_exception("bedrock-invoke", code) for code in ("internal", "shutting_down", "idle_timeout")}
    assert kinds == {
        "internal": "internalServerException",
        "shutting_down": "serviceUnavailableException",
        "idle_timeout": "modelTimeoutException",
    }
    assert read_exception("bedrock-converse", "idle_timeout") == "modelStreamErrorException"
    assert read_exception("bedrock-invoke", "upstream_truncated") == "modelStreamErrorException"


def read_exception(name: str, code: str) -> str:
    (_, error), _ = read(name, [error_frame(name, Failure(code, "m"))])
    assert isinstance(error, UpstreamError)
    return error.provider_code


# InvokeModel.


def test_a_chunk_in_anthropics_words_is_anthropics() -> None:
    message = {"id": "msg_1", "model": "claude", "usage": {"input_tokens": 9, "output_tokens": 1}}
    messages = [
        aws.chunk({"type": "message_start", "message": message}, p="abc"),
        aws.chunk({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        aws.chunk({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}),
        aws.chunk({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}),
        aws.chunk({"type": "message_stop", METRICS: COUNTED}),
        aws.chunk({"type": "ping"}),
    ]
    events, dialect = read("bedrock-invoke", messages)
    assert events == [
        Start("msg_1", "claude"),
        Usage(9, 1, 10, native={"input_tokens": 9, "output_tokens": 1}),
        Token(0, "Hi"),
        Finish(0, "stop", "end_turn"),
        Usage(9, 3, 12, native={"input_tokens": 9, "output_tokens": 3}),
        Extension(METRICS, COUNTED),
    ]
    assert (dialect.is_finished, dialect.terminated, dialect.has_terminator) == (True, True, True)


def test_an_error_in_a_models_own_words_is_an_error() -> None:
    events = invoke(
        aws.chunk({"type": "message_start", "message": {"id": "m"}}),
        aws.chunk({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
    )
    (error,) = events
    assert isinstance(error, UpstreamError)
    assert (error.message, error.provider_code, error.retryable) == ("busy", "overloaded_error", True)


def test_a_chunk_in_openais_words_is_openais() -> None:
    choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    body = {"id": "c", "object": "chat.completion.chunk", "model": "gpt-oss"}
    events, dialect = read(
        "bedrock-invoke",
        [aws.chunk({**body, "choices": [choice]}), aws.chunk({**body, "choices": [last], METRICS: COUNTED})],
    )
    assert events[:3] == [Start("c", "gpt-oss"), Token(0, "Hi"), Finish(0, "stop", "stop")]
    assert events[3:] == [Usage(9, 3, 12, native=COUNTED)]
    assert (dialect.is_finished, dialect.terminated, dialect.has_terminator) == (True, False, False)


def test_nova_speaks_of_converses_events() -> None:
    events, dialect = read(
        "bedrock-invoke",
        [
            aws.chunk({"messageStart": {"role": "assistant"}}),
            aws.chunk({"contentBlockDelta": {"delta": {"text": "Hi"}, "contentBlockIndex": 0}}),
            aws.chunk({"messageStop": {"stopReason": "end_turn"}}),
            aws.chunk({"metadata": {"usage": {"inputTokens": 9, "outputTokens": 3}}, METRICS: COUNTED}),
        ],
    )
    usage = Usage(9, 3, 12, native={"inputTokens": 9, "outputTokens": 3})
    assert events == [Start(), Token(0, "Hi"), Finish(0, "stop", "end_turn"), usage, Extension(METRICS, COUNTED)]
    assert (dialect.is_finished, dialect.terminated, dialect.has_terminator) == (True, True, True)


@pytest.mark.parametrize(
    ("word", "reason"),
    [("FINISHED", "stop"), ("LENGTH", "length"), ("CONTENT_FILTERED", "content_filter"), ("X", "stop")],
)
def test_titan(word: str, reason: Any) -> None:
    piece = {"outputText": "Hi", "index": 0, "inputTextTokenCount": 9.0, "completionReason": None}
    last = {"outputText": "", "index": 1, "totalOutputTextTokenCount": 3, "completionReason": word}
    events = invoke(aws.chunk(piece), aws.chunk(last))
    assert events[0] == Token(0, "Hi")
    assert events[-2] == Finish(0, reason, word)
    counts = {"inputTextTokenCount": 9.0, "totalOutputTextTokenCount": 3}
    assert events[-1] == Usage(9, 3, 12, native=counts)


def test_llama_counts_its_prompt_once() -> None:
    keys = ("generation", "prompt_token_count", "generation_token_count", "stop_reason")
    rows = [("Hi", 9, 1, None), ("", None, 2, "length")]
    events = invoke(*(aws.chunk(dict(zip(keys, row, strict=True))) for row in rows))
    assert [event for event in events if not isinstance(event, Usage)] == [
        Token(0, "Hi"),
        Finish(0, "length", "length"),
    ]
    assert events[-1] == Usage(9, 2, 11, native={"prompt_token_count": 9, "generation_token_count": 2})


def test_the_old_claude() -> None:
    pieces = [{"completion": " Hi", "stop_reason": None}, {"completion": "", "stop_reason": "max_tokens", "stop": None}]
    assert invoke(*map(aws.chunk, pieces)) == [Token(0, " Hi"), Finish(0, "length", "max_tokens")]


def test_mistral_finishes_each_output() -> None:
    first = aws.chunk({"outputs": [{"text": "a", "stop_reason": "stop"}, {"text": "b", "stop_reason": None}]})
    events, dialect = read("bedrock-invoke", [first])
    assert events[1:] == [Token(0, "a"), Finish(0, "stop", "stop"), Token(1, "b")]
    assert not dialect.is_finished
    (frame,) = frames(aws.chunk({"outputs": [{"text": None}, {"text": "", "stop_reason": "length"}]}))
    assert list(dialect.decode(frame)) == [Finish(1, "length", "length")]
    assert dialect.is_finished


@pytest.mark.parametrize("key", ["stop_reason", "finish_reason"])
@pytest.mark.parametrize("said", [{}, {"object": "chat.completion.chunk"}])
@pytest.mark.parametrize(
    ("first", "last"),
    [
        ({"message": {"role": "assistant", "content": "Hi"}}, {"message": {"role": "assistant", "content": ""}}),
        ({"text": "Hi"}, {"text": None}),
    ],
)
def test_mistral_and_deepseek_speak_of_whole_choices(key: str, said: Any, first: Any, last: Any) -> None:
    events, dialect = read("bedrock-invoke", [aws.chunk({**said, "choices": [{"index": 0, **first, key: None}]})])
    assert events == [Start(), Token(0, "Hi")]
    assert (dialect.is_finished, dialect.completes_on_clean_end) == (False, False)
    (frame,) = frames(aws.chunk({**said, "choices": [{**last, key: "length"}], METRICS: COUNTED}))
    assert list(dialect.decode(frame)) == [Finish(0, "length", "length"), Usage(9, 3, 12, native=COUNTED)]
    assert (dialect.is_finished, dialect.terminated, dialect.has_terminator) == (True, False, False)


def test_whole_choices_call_count_and_end_as_openais_do() -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": '{"x":1}'}}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert invoke(
        aws.chunk({"choices": [{"text": "Hi", "stop_reason": 7}, {"message": {"tool_calls": [call]}}]}),
        aws.chunk({"choices": [{"index": 1, "message": {}, "stop_reason": "tool_calls"}]}),
        aws.chunk({"choices": [{"index": 0, "text": "", "stop_reason": "something_new"}]}),
        aws.chunk({"choices": [], "usage": usage, METRICS: COUNTED}),
    ) == [
        Token(0, "Hi"),
        ToolCall(1, 0, '{"x":1}', "a", "f"),
        Finish(1, "tool_calls", "tool_calls"),
        Finish(0, "stop", "something_new"),
        Usage(9, 3, 12, native=usage),
        Extension(METRICS, COUNTED),
    ]


def test_choices_of_another_shape_are_not_taken_for_these() -> None:
    bodies: list[Any] = [{"choices": [{"text": {}}]}, {"choices": ["a"]}, {"choices": []}, {"choices": {"text": "a"}}]
    assert invoke(*map(aws.chunk, bodies)) == [Extension("chunk", body) for body in bodies]


def frames(*messages: bytes) -> Iterable[Frame]:
    return make_framing("aws-event-stream", 1 << 20, strict=True).feed(b"".join(messages))


def test_a_body_nobody_knows_is_an_extension_and_ends_with_its_stream() -> None:
    bodies: list[Any] = [
        {"text": "Hi", "is_finished": False},
        {"generation": {"role": "assistant"}},
        {"outputs": [{"image": "QUI="}]},
        {"event_type": "text-generation", "text": "Hi"},
    ]
    events, dialect = read("bedrock-invoke", [aws.chunk(body) for body in bodies])
    assert events[:4] == [Start(), *(Extension("chunk", body) for body in bodies[:3])]
    assert events[4:] == [Extension("text-generation", bodies[3])]
    assert (dialect.completes_on_clean_end, dialect.is_finished, dialect.terminated) == (True, False, False)


KNOWN: list[Any] = [
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"delta": {"text": "half an ans"}, "contentBlockIndex": 0}},
    {"outputText": "half an ans"},
    {"choices": [{"text": "half an ans", "stop_reason": None}]},
    {"choices": [{"delta": {"content": "half an ans"}}]},
]


@pytest.mark.parametrize("known", KNOWN)
def test_one_chunk_nobody_knows_makes_no_clean_end_whole(known: dict[str, Any]) -> None:
    unknown = {"newEvent": {"x": 1}}
    for bodies in ((known, unknown), (unknown, known)):
        rig = Rig(dialect="bedrock-invoke").open().feed([aws.chunk(body) for body in bodies]).end()
        assert rig.code == "upstream_truncated"


def test_metrics_end_a_body_nobody_knows_and_count_it() -> None:
    events, dialect = read("bedrock-invoke", [aws.chunk({"text": "Hi", METRICS: COUNTED})])
    assert events[1:] == [Extension("chunk", {"text": "Hi"}), Usage(9, 3, 12, native=COUNTED)]
    assert dialect.is_finished


def test_metrics_that_count_nothing_are_an_extension() -> None:
    assert invoke(aws.chunk({METRICS: {"invocationLatency": 1}})) == [Extension(METRICS, {"invocationLatency": 1})]


def test_a_stream_without_a_chunk_is_not_whole() -> None:
    _, dialect = read("bedrock-invoke", [])
    assert not dialect.completes_on_clean_end
    _, dialect = read("bedrock-invoke", [aws.chunk({"outputText": "Hi"})])
    assert not dialect.completes_on_clean_end


@pytest.mark.parametrize(
    ("message", "extension"),
    [
        (aws.event("chunk", {"bytes": "!"}), Extension("chunk", {"bytes": "!"})),
        (aws.event("chunk", {"bytes": "QQ=é"}), Extension("chunk", {"bytes": "QQ=é"})),
        (aws.event("chunk", {}), Extension("chunk", {})),
        (aws.event("chunk", b"{"), Extension("unparsed", "{")),
        (aws.chunk(b"no json"), Extension("unparsed", "no json")),
        (aws.chunk([1]), Extension("unknown", [1])),
        (aws.event("other", {"a": 1}), Extension("other", {"a": 1})),
    ],
)
def test_what_cannot_be_read_is_an_extension(message: bytes, extension: Extension) -> None:
    assert invoke(message) == [extension]


def test_a_guardrails_word_replaces_the_models() -> None:
    trace: dict[str, Any] = {"guardrail": {}}
    piece = {"outputText": "no", "completionReason": "FINISHED", ACTION: "INTERVENED", "amazon-bedrock-trace": trace}
    assert invoke(aws.chunk(piece)) == [
        Extension(ACTION, "INTERVENED"),
        Extension("amazon-bedrock-trace", trace),
        Token(0, "no"),
        Finish(0, "content_filter", "FINISHED"),
    ]


def test_a_guardrail_that_speaks_last_is_heard_too() -> None:
    events, dialect = read(
        "bedrock-invoke",
        [
            aws.chunk({"outputText": "no", "completionReason": "FINISHED", ACTION: "NONE"}),
            aws.chunk({ACTION: "INTERVENED"}),
            aws.chunk({ACTION: "INTERVENED"}),
        ],
    )
    assert [event for event in events if isinstance(event, Finish)] == [
        Finish(0, "stop", "FINISHED"),
        Finish(0, "content_filter", "FINISHED"),
    ]
    assert dialect.is_finished


def test_an_intervention_alone_finishes_nothing() -> None:
    _, dialect = read("bedrock-invoke", [aws.chunk({"outputText": "n", ACTION: "INTERVENED"})])
    assert not dialect.is_finished


# Where they are spoken.


@pytest.mark.parametrize("name", ["bedrock-converse", "bedrock-invoke"])
def test_the_path_alone_asks_for_a_stream(name: str) -> None:
    (path,) = DIALECTS[name].paths
    asked = path.replace("*", "us.anthropic.claude-3:0")
    assert streams_by_target(asked, "")
    assert detect(asked, aws.EVENT_STREAM, "auto") == Spoken(name, "aws-event-stream")
    assert not streams_by_target("/model/m/converse", "")
    assert not streams_by_target("/model/m/invoke", "")


def test_one_server_answers_in_both() -> None:
    path = "/model/m/invoke-with-response-stream"
    assert detect(path, aws.EVENT_STREAM, "bedrock-converse") == Spoken("bedrock-invoke", "aws-event-stream")
    assert detect("/x", aws.EVENT_STREAM, "bedrock-converse") == Spoken("bedrock-converse", "aws-event-stream")


FIRST = [
    (aws.event("messageStart", {"role": "assistant"}), "bedrock-converse"),
    (aws.chunk({"outputText": "Hi"}), "bedrock-invoke"),
    (aws.event("chunk", {"text": "Hi"}), "opaque-aws-event-stream"),
    (aws.event("messageStart", {"a": 1}), "opaque-aws-event-stream"),
    (aws.event("TranscriptEvent", {"a": 1}), "opaque-aws-event-stream"),
    (aws.exception("throttlingException", {"message": "m"}), "opaque-aws-event-stream"),
]


@pytest.mark.parametrize(("message", "name"), FIRST)
def test_the_first_message_says_what_an_unknown_path_speaks(message: bytes, name: str) -> None:
    undecided = make_dialect("opaque-aws-event-stream", "aws-event-stream", is_certain=False)
    known = DIALECTS[name]()
    (frame,) = frames(message)
    assert list(undecided.decode(frame)) == list(known.decode(frame))
    assert undecided.completes_on_clean_end == known.completes_on_clean_end
    assert undecided.has_terminator == known.has_terminator


def test_no_other_dialect_takes_a_message_for_its_own() -> None:
    for message, name in FIRST:
        (frame,) = frames(message)
        takers = {kind.name for kind in DIALECTS.values() if "bedrock" in kind.name and kind.recognises(frame)}
        assert takers <= {name}


def test_unknown_messages_pass_as_extensions() -> None:
    events, dialect = read(
        "opaque-aws-event-stream", [aws.event("Audio", b"\xff"), aws.event("End", b""), aws.event("A", {"type": "b"})]
    )
    assert events == [Start(), Extension("Audio", "\ufffd"), Extension("End", ""), Extension("A", {"type": "b"})]
    assert dialect.completes_on_clean_end


# What becomes of a broken one.

HELLO = aws.event("messageStart", {"role": "assistant"}) + delta("text", "Hel")
MALFORMED = aws.message(b"", b"{}", message_crc=1)
BROKEN: list[tuple[bytes, str]] = [
    (MALFORMED, "malformed_upstream"),
    (aws.message(b"", b"{}", prelude_crc=1), "malformed_upstream"),
    (aws.prelude(8, 0), "malformed_upstream"),
    (delta("text", "x" * 2000), "frame_too_large"),
    (delta("text", "lo")[:9], "upstream_truncated"),
    (delta("text", "lo")[:-1], "upstream_truncated"),
    (b"", "upstream_truncated"),
    (stop() + metadata()[:40], "upstream_truncated"),
    (aws.exception("throttlingException", {"message": "m"}), "upstream_error"),
    (aws.error("InternalFailure", "m"), "upstream_error"),
]


@pytest.mark.parametrize(("tail", "code"), BROKEN)
@pytest.mark.parametrize("dialect", ["bedrock-converse", "auto"])
def test_each_is_told_once_in_typed(tail: bytes, code: str, dialect: str) -> None:
    rig = Rig(dialect=dialect, limits=Limits(max_frame_bytes=1000)).open(content_type=aws.EVENT_STREAM)
    rig.feed([HELLO, tail]).end()
    events = rig.events()
    assert [name for name, _ in events] == ["start", "token", "error", "done"]
    assert (events[2][1]["code"], events[3][1]["status"]) == (code, "failed")
    if code == "upstream_error":
        assert "m" in events[2][1]["native"].values()
    rig.assert_settled()


@pytest.mark.parametrize(
    ("tail", "code", "passed"),
    [
        (MALFORMED, "malformed_upstream", MALFORMED),
        (delta("text", "x" * 2000), "upstream_truncated", delta("text", "x" * 2000)),
        (delta("text", "lo")[:-1], "upstream_truncated", b""),
        (stop() + metadata()[:40], "upstream_truncated", stop()),
        (b"", "upstream_truncated", b""),
    ],
)
def test_native_passes_what_came_and_adds_an_exception(tail: bytes, code: str, passed: bytes) -> None:
    rig = Rig(dialect="bedrock-converse", format="native", limits=Limits(max_frame_bytes=1000)).open()
    rig.feed([HELLO, tail]).end()
    failure = rig.stream.session.failure
    assert failure is not None
    assert failure.code == code
    assert rig.client.body == HELLO + passed + error_frame("bedrock-converse", failure)
    rig.assert_settled()


@pytest.mark.parametrize("tail", [aws.exception("throttlingException", {}), aws.error("InternalFailure", "m")])
def test_native_adds_nothing_to_an_error_of_the_upstreams_own(tail: bytes) -> None:
    rig = Rig(dialect="bedrock-converse", format="native").open().feed([HELLO, tail]).end()
    assert (rig.code, rig.client.body) == ("upstream_error", HELLO + tail)


def test_what_follows_a_large_message_is_read_in_native() -> None:
    body = HELLO + delta("text", "x" * 2000) + stop() + metadata()
    rig = Rig(dialect="bedrock-converse", format="native", limits=Limits(max_frame_bytes=1000)).open().feed(body).end()
    assert (rig.outcome, rig.client.body) == (Outcome.COMPLETED, body)


def test_a_model_nobody_knows_is_not_out_of_time_while_it_lives() -> None:
    timeouts = Timeouts(first_token_s=2.0, idle_s=3.0)
    for dialect, message in (("bedrock-invoke", aws.chunk({"a": 1})), ("opaque-aws-event-stream", aws.event("a", {}))):
        rig = Rig(dialect=dialect, timeouts=timeouts).open()
        for _ in range(5):
            rig.feed(message).pass_time(1.5)
        assert rig.outcome is None
        assert rig.end().outcome is Outcome.COMPLETED


def test_a_model_that_says_nothing_is_out_of_time() -> None:
    rig = Rig(dialect="bedrock-invoke", timeouts=Timeouts(first_token_s=2.0)).open().pass_time(2.5)
    assert rig.code == "first_token_timeout"
