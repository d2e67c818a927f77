"""What holds for any input: no dialect ever raises, none starts twice, and a fast lane never changes an answer."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.dialects import DIALECTS
from sidecar.events import Event, Frame, Start
from sidecar.framing import make_framing
from tests.dialect_reading import MAX_FRAME_BYTES, framing_in, only_start_first
from tests.test_dialects_recordings import HANDMADE

COUNTS = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
NAMES = st.sampled_from(
    [
        None,
        b"message",
        b"error",
        b"ping",
        b"content_block_delta",
        b"\xff",
        b"messageStart",
        b"contentBlockStart",
        b"contentBlockDelta",
        b"messageStop",
        b"metadata",
        b"chunk",
        b":exception x",
        b":error x",
    ]
)

WORDS = st.sampled_from(
    [
        "id",
        "model",
        "object",
        "choices",
        "delta",
        "index",
        "content",
        "text",
        "tool_calls",
        "function",
        "arguments",
        "name",
        "usage",
        "error",
        "message",
        "type",
        "logprobs",
        "finish_reason",
        "refusal",
        "audio",
        "annotations",
        "reasoning",
        "reasoning_details",
        "signature",
        "thinking",
        "role",
        "response",
        "done",
        "done_reason",
        "content_block",
        "partial_json",
        "citation",
        "citations",
        "stop_reason",
        "prompt_tokens",
        "x_groq",
        "code",
        "images",
        "image",
        "content_block_delta",
        "content_block_start",
        "content_block_stop",
        "message_start",
        "message_delta",
        "message_stop",
        "text_delta",
        "input_json_delta",
        "thinking_delta",
        "tool_use",
        "chat.completion.chunk",
        "stop",
        "eval_count",
        "data",
        "item",
        "item_id",
        "output",
        "output_index",
        "content_index",
        "call_id",
        "part",
        "status",
        "sequence_number",
        "function_call",
        "web_search_call",
        "output_text",
        "response.created",
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.completed",
        "response.failed",
        "candidates",
        "parts",
        "thought",
        "thoughtSignature",
        "functionCall",
        "args",
        "partialArgs",
        "willContinue",
        "jsonPath",
        "stringValue",
        "$.a[0]",
        "inlineData",
        "finishReason",
        "usageMetadata",
        "promptFeedback",
        "blockReason",
        "event_type",
        "step.start",
        "step.delta",
        "interaction.completed",
        "interaction",
        "step",
        "arguments_delta",
        "contentBlockIndex",
        "start",
        "toolUse",
        "toolUseId",
        "input",
        "reasoningContent",
        "source",
        "bytes",
        "stopReason",
        "inputTokens",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([10**30, 1e300, 0.5, 2.0])
    | WORDS
    | st.text(max_size=3)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5), max_leaves=15
)


def _bodies() -> list[tuple[str, list[Frame]]]:
    """The frames of every handmade stream, with the dialect it is in."""
    bodies = []
    for name, path in HANDMADE:
        body = path.read_bytes()
        framing = make_framing(framing_in(name, body), MAX_FRAME_BYTES, strict=True)
        frames = [*framing.feed(body), *framing.flush()]
        bodies.append((name, [frame for frame in frames if frame.data is not None]))
    return bodies


BODIES = _bodies()


def _decode(name: str, frames: list[Frame]) -> list[Event]:
    dialect = DIALECTS[name]()
    events = [event for frame in frames for event in dialect.decode(frame)]
    return [*events, *dialect.finish()]


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=150, deadline=None)
@given(payloads=st.lists(st.tuples(JSON, NAMES), max_size=4))
def test_no_json_makes_a_dialect_raise(name: str, payloads: list[tuple[Any, bytes | None]]) -> None:
    frames = [Frame(msgspec.json.encode(payload), b"", event) for payload, event in payloads]
    events = _decode(name, frames)
    assert not events or only_start_first(events)
    assert msgspec.json.decode(msgspec.json.encode(events)) is not None


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=100, deadline=None)
@given(datas=st.lists(st.binary(max_size=30), max_size=4))
def test_no_bytes_make_a_dialect_raise(name: str, datas: list[bytes]) -> None:
    events = _decode(name, [Frame(data, data) for data in datas])
    assert not events or only_start_first(events)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_mutation_of_a_real_stream_makes_a_dialect_raise(data: st.DataObject) -> None:
    name, frames = data.draw(st.sampled_from(BODIES))
    which = data.draw(st.integers(0, len(frames) - 1))
    broken = bytearray(frames[which].data or b"")
    at = data.draw(st.integers(0, len(broken)))
    broken[at : at + data.draw(st.integers(0, 12))] = data.draw(
        st.binary(max_size=4) | st.sampled_from([b"null", b"[]", b"{}", b"1.5", b'"', b"\\ud800"])
    )
    mutated = [*frames[:which], Frame(bytes(broken), b"", frames[which].name), *frames[which:]]
    events = _decode(name, mutated)
    assert sum(isinstance(event, Start) for event in events) == 1
    msgspec.json.encode(events)


TEXTS = st.sampled_from(["", "a", " b", "\u2028", "😄"])
NULLS = st.none()
DELTAS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": TEXTS | NULLS | st.just([{"type": "text", "text": "x"}]) | st.just(3),
        "reasoning_content": TEXTS | NULLS,
        "reasoning": TEXTS | NULLS,
        "reasoning_text": TEXTS | NULLS,
        "refusal": TEXTS | NULLS,
        "reasoning_details": st.sampled_from([None, [], [{"type": "reasoning.text", "text": "a", "signature": "s"}]]),
        "tool_calls": st.sampled_from(
            [
                None,
                [],
                [{"index": 0, "function": {"arguments": "x"}}],
                [{"index": 1, "id": "a", "function": {"name": "f", "arguments": ""}}],
                [{"index": 0, "id": None, "function": {"name": None, "arguments": ""}}],
                [{"function": {"arguments": {}}}],
            ]
        ),
        "annotations": st.sampled_from([None, [], [{"type": "url_citation"}]]),
        "audio": st.sampled_from([None, {"data": "AA"}]),
        "function_call": st.sampled_from([None, {"name": "f"}]),
        "images": st.sampled_from([None, [], [{"image_url": "u"}]]),
        "unheard_of": st.just({"a": 1}),
    },
)
CHOICES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "index": st.sampled_from([0, 1, None, 0.0]),
        "delta": DELTAS | NULLS,
        "finish_reason": st.sampled_from([None, "", "stop", "length"]),
        "logprobs": st.sampled_from([None, 0.5, {"content": [{"token": "a"}]}]),
        "usage": st.sampled_from([None, COUNTS]),
        "error": st.sampled_from([None, {"message": "m"}]),
        "text": TEXTS,
    },
)
CHUNKS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, max_size=2)},
    optional={
        "id": st.sampled_from(["", "c1"]),
        "object": st.sampled_from(["", "chat.completion.chunk", "chat.reasoning", None]),
        "usage": st.sampled_from([None, COUNTS]),
        "error": st.sampled_from([None, "", {"message": "m"}]),
        "x_groq": st.sampled_from([None, {"usage": COUNTS}, {"error": "m"}]),
        "citations": st.sampled_from([None, ["u"]]),
        "search_results": st.sampled_from([None, [{}]]),
        "moderation": st.sampled_from([None, {"input": 1}]),
        "prompt_filter_results": st.sampled_from([None, [1]]),
        "prompt_progress": st.sampled_from([None, {"total": 1}]),
        "sglext": st.sampled_from([None, {"a": 1}]),
        "unheard_of": st.just(1),
    },
)


@settings(max_examples=400, deadline=None)
@given(st.lists(CHUNKS, max_size=5))
def test_both_lanes_give_the_same_events(chunks: list[Any]) -> None:
    """An SSE event name, even the default one, sends a frame down the full lane; without one it may take the plain."""
    either, full = DIALECTS["openai-chat"](), DIALECTS["openai-chat"]()
    for payload in [{"id": "c1", "choices": [{"delta": {"role": "assistant"}}]}, *chunks]:
        data = msgspec.json.encode(payload)
        assert list(either.decode(Frame(data, data))) == list(full.decode(Frame(data, data, b"message")))
    assert either.is_finished == full.is_finished


TEXT_CHOICES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "index": st.sampled_from([0, 1, None, 0.0]),
        "text": TEXTS | NULLS | st.just(3),
        "finish_reason": st.sampled_from([None, "", "stop", "length"]),
        "logprobs": st.sampled_from([None, 0.5, {}, {"tokens": ["a"]}]),
        "reasoning": st.sampled_from([None, "", "hm"]),
        "error": st.sampled_from([None, {"message": "m"}]),
        "unheard_of": st.just({"a": 1}),
    },
)
TEXT_CHUNKS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"choices": st.lists(TEXT_CHOICES, max_size=2)},
    optional={
        "id": st.sampled_from(["", "c1"]),
        "object": st.sampled_from(["", "text_completion", "error", None]),
        "usage": st.sampled_from([None, COUNTS]),
        "error": st.sampled_from([None, "", {"message": "m"}]),
        "x_groq": st.sampled_from([None, {"error": "m"}]),
        "prompt_filter_results": st.sampled_from([None, [1]]),
        "unheard_of": st.just(1),
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT_CHUNKS, max_size=5))
def test_both_lanes_give_the_same_text_completion_events(chunks: list[Any]) -> None:
    either, full = DIALECTS["openai-completions"](), DIALECTS["openai-completions"]()
    for payload in [{"id": "c1", "choices": [{"text": "a"}]}, *chunks]:
        data = msgspec.json.encode(payload)
        assert list(either.decode(Frame(data, data))) == list(full.decode(Frame(data, data, b"message")))
    assert either.is_finished == full.is_finished


def _in_the_full_lane(payload: dict[str, Any]) -> dict[str, Any]:
    """The same block delta, worded so that the plain lane refuses it: nulls where it wants text."""
    nulls = dict.fromkeys(("text", "thinking", "partial_json"))
    return {**payload, "delta": {**nulls, **payload["delta"]}}


BLOCK_DELTAS = st.builds(
    lambda index, delta: {"type": "content_block_delta", "index": index, "delta": delta},
    st.integers(0, 3),
    st.builds(lambda text: {"type": "text_delta", "text": text}, TEXTS)
    | st.builds(lambda text: {"type": "thinking_delta", "thinking": text}, TEXTS)
    | st.builds(lambda text: {"type": "input_json_delta", "partial_json": text}, TEXTS)
    | st.just({"type": "signature_delta", "signature": "s"})
    | st.just({"type": "compaction_delta", "content": "c"}),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(BLOCK_DELTAS, max_size=8))
def test_both_lanes_give_the_same_anthropic_events(deltas: list[dict[str, Any]]) -> None:
    blocks = [
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
        {"type": "server_tool_use", "id": "t", "name": "f", "input": {}},
    ]
    opening: list[Any] = [{"type": "message_start", "message": {"id": "m"}}]
    opening += [{"type": "content_block_start", "index": i, "content_block": block} for i, block in enumerate(blocks)]
    plain, full = DIALECTS["anthropic"](), DIALECTS["anthropic"]()
    for payload in opening:
        data = msgspec.json.encode(payload)
        assert list(plain.decode(Frame(data, data))) == list(full.decode(Frame(data, data)))
    for payload in deltas:
        easy, hard = msgspec.json.encode(payload), msgspec.json.encode(_in_the_full_lane(payload))
        told, told_in_full = list(plain.decode(Frame(easy, easy))), list(full.decode(Frame(hard, hard)))
        assert [type(event) for event in told] == [type(event) for event in told_in_full]
        if payload["delta"]["type"] != "compaction_delta" and payload["index"] != 2:
            assert told == told_in_full
