"""What the output items of a response say: each piece once, whichever of the upstream's events told it first."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.dialects import DIALECTS
from sidecar.events import (
    Annotation,
    Event,
    Extension,
    Finish,
    Frame,
    Media,
    Reasoning,
    Refusal,
    Token,
    ToolCall,
)
from tests.core_support import typed_events
from tests.dialect_reading import decode_payloads, summarise
from tests.responses_payloads import (
    CREATED,
    added,
    arguments,
    call,
    completed,
    delta,
    done,
    events,
    finished,
    message,
    part,
)
from tests.test_relay import Line

STOP = Finish(0, "stop", "completed")


def test_what_repeats_a_text_whole_is_not_told_again() -> None:
    whole = message("msg_1", "Hi you")
    assert events(
        added(0, message("msg_1")),
        part("added", ""),
        delta("Hi"),
        delta(""),
        delta(" you"),
        done("Hi you"),
        part("done", "Hi you"),
        finished(0, whole),
        completed([whole]),
    ) == [Token(0, "Hi"), Token(0, " you"), STOP]


@pytest.mark.parametrize("first", range(5))
def test_a_text_that_no_delta_told_is_told_by_whatever_comes_first(first: int) -> None:
    whole = message("msg_1", "Hi")
    tellers = [part("added", "Hi"), done("Hi"), part("done", "Hi"), finished(0, whole), completed([whole])]
    assert events(added(0, message("msg_1")), *tellers[first:]) == [Token(0, "Hi"), STOP]


def test_parts_and_items_are_told_each() -> None:
    first, second = message("msg_1", "a", "b"), message("msg_2", "c")
    assert events(delta("a"), finished(0, first), completed([first, second])) == [
        Token(0, "a"),
        Token(0, "b"),
        Token(0, "c"),
        STOP,
    ]


def test_logprobs_come_with_their_text() -> None:
    logprobs = [{"token": "a", "logprob": -0.1}]
    assert events(delta("a", logprobs=logprobs), delta("b", logprobs=[]), done("c", 0, 1, logprobs=logprobs)) == [
        Token(0, "a", logprobs),
        Token(0, "b"),
        Token(0, "c", logprobs),
    ]


def test_refusals_and_reasoning_of_every_name() -> None:
    summary = {"type": "response.reasoning_summary_text.delta", "output_index": 1, "item_id": "rs_1", "delta": "sum"}
    refused = {"type": "response.refusal.done", "output_index": 2, "item_id": "m", "content_index": 0, "refusal": "No"}
    assert events(
        delta("hm", 1, kind="reasoning_text"),
        delta("so", 1, 1, kind="reasoning"),
        {**summary, "summary_index": 0},
        done("mary", 1, kind="reasoning_summary_text", summary_index=1),
        delta("I ", 3, kind="refusal"),
        refused,
    ) == [
        Reasoning(0, "hm"),
        Reasoning(0, "so"),
        Reasoning(0, "sum"),
        Reasoning(0, "mary"),
        Refusal(0, "I "),
        Refusal(0, "No"),
    ]


def test_reasoning_parts_under_vllms_name() -> None:
    holder = {"type": "reasoning_text", "text": "hm"}
    place = {"output_index": 0, "item_id": "rs_1", "content_index": 0}
    assert events(
        {"type": "response.reasoning_part.added", **place, "part": {**holder, "text": ""}},
        {"type": "response.reasoning_part.done", **place, "part": holder},
        finished(0, {"type": "reasoning", "id": "rs_1", "summary": [], "content": [holder]}),
    ) == [Reasoning(0, "hm")]


def test_the_proof_of_reasoning_is_the_final_one() -> None:
    first, final = ({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": proof} for proof in "ab")
    assert events(added(0, first), finished(0, final), completed([{**final, "encrypted_content": "c"}])) == [
        Reasoning(0, "", "b"),
        STOP,
    ]
    assert events(added(0, first), completed([final]))[0] == Reasoning(0, "", "b")
    assert events(finished(0, {"type": "reasoning", "id": "rs_1", "signature": "s"})) == [Reasoning(0, "", "s")]
    assert events(finished(0, {"type": "reasoning", "id": "rs_1", "encrypted_content": ""})) == []


def test_citations_are_told_once() -> None:
    cite = {"type": "url_citation", "url": "u"}
    announced = {"type": "response.output_text.annotation.added", "output_index": 0, "content_index": 0}
    whole = {**message("msg_1", "a"), "content": [{"type": "output_text", "text": "a", "annotations": [cite]}]}
    assert events(delta("a"), {**announced, "annotation": cite}, part("done", "a", annotations=[cite])) == [
        Token(0, "a"),
        Annotation(0, cite),
    ]
    assert events(delta("a"), part("done", "a", annotations=[cite]), finished(0, whole), completed([whole])) == [
        Token(0, "a"),
        Annotation(0, cite),
        STOP,
    ]
    older = {"type": "response.output_text_annotation.added", "output_index": 0, "annotation": cite}
    assert events(older) == [Annotation(0, cite)]
    nothing = {**announced, "annotation": None}
    assert events(nothing) == [Extension("response.output_text.annotation.added", nothing)]


def test_calls_interleave_and_count_from_zero() -> None:
    assert events(
        added(1, call("call_a", "f", id="fc_1")),
        added(3, call("call_b", "g", id="fc_2")),
        arguments("{", 3, item_id="fc_2"),
        arguments('{"x"', 1, item_id="fc_1"),
        arguments("}", 3, item_id="fc_2"),
        arguments(":1}", 1, item_id="fc_1"),
        finished(3, call("call_b", "g", "{}", id="fc_2")),
        finished(1, call("call_a", "f", '{"x":1}', id="fc_1")),
        completed([call("call_a", "f", '{"x":1}', id="fc_1"), call("call_b", "g", "{}", id="fc_2")]),
    ) == [
        ToolCall(0, 0, "", "call_a", "f"),
        ToolCall(0, 1, "", "call_b", "g"),
        ToolCall(0, 1, "{"),
        ToolCall(0, 0, '{"x"'),
        ToolCall(0, 1, "}"),
        ToolCall(0, 0, ":1}"),
        Finish(0, "tool_calls", "completed"),
    ]


CALL = call("call_a", "f", '{"x":1}', id="fc_1")
ARGUMENTS_DONE = {
    "type": "response.function_call_arguments.done",
    "output_index": 0,
    "item_id": "fc_1",
    "arguments": '{"x":1}',
}


@pytest.mark.parametrize("tellers", [[ARGUMENTS_DONE, finished(0, CALL)], [finished(0, CALL)], []])
def test_arguments_that_no_delta_told(tellers: list[Any]) -> None:
    assert events(added(0, call("call_a", "f", id="fc_1")), *tellers, completed([CALL]))[:-1] == [
        ToolCall(0, 0, "", "call_a", "f"),
        ToolCall(0, 0, '{"x":1}'),
    ]


@pytest.mark.parametrize("teller", [finished(0, CALL), completed([CALL])])
def test_a_call_that_nothing_announced(teller: Any) -> None:
    assert events(teller)[0] == ToolCall(0, 0, '{"x":1}', "call_a", "f")


def test_arguments_before_the_call_is_named() -> None:
    assert events({**ARGUMENTS_DONE, "name": "f"}, finished(0, CALL)) == [
        ToolCall(0, 0, '{"x":1}', None, "f"),
        ToolCall(0, 0, "", "call_a"),
    ]


def test_arguments_a_call_is_announced_with_count_last() -> None:
    """vLLM sends them again as the first delta."""
    assert events(added(0, call("call_a", "f", "{")), arguments("{"), arguments("}")) == [
        ToolCall(0, 0, "", "call_a", "f"),
        ToolCall(0, 0, "{"),
        ToolCall(0, 0, "}"),
    ]
    assert events(added(0, CALL), finished(0, {**CALL, "arguments": ""}))[1:] == [ToolCall(0, 0, '{"x":1}')]


def test_a_call_without_arguments_and_one_without_a_call_id() -> None:
    assert events(added(0, call("call_a", "f")), finished(0, call("call_a", "f")))[1:] == []
    assert events(finished(0, {"type": "function_call", "id": "fc_1", "name": "f", "arguments": {"x": 1}})) == [
        ToolCall(0, 0, '{"x":1}', "fc_1", "f")
    ]


def test_custom_tools_have_free_text() -> None:
    custom = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_a", "name": "run", "input": ""}
    assert events(
        added(0, custom),
        arguments("pri", kind="custom_tool_call_input"),
        arguments("nt", kind="custom_tool_call_input"),
        {"type": "response.custom_tool_call_input.done", "output_index": 0, "input": "print"},
        finished(0, {**custom, "input": "print"}),
        finished(1, {**custom, "call_id": "call_b", "input": "x"}),
    ) == [
        ToolCall(0, 0, "", "call_a", "run"),
        ToolCall(0, 0, "pri"),
        ToolCall(0, 0, "nt"),
        ToolCall(0, 1, "x", "call_b", "run"),
    ]


def test_calls_that_all_claim_one_place() -> None:
    one, two = call("call_a", "f", "1"), call("call_b", "g", "2")
    named = [ToolCall(0, 0, "1", "call_a", "f"), ToolCall(0, 1, "2", "call_b", "g")]
    assert events(finished(0, one), finished(0, two), completed([one, two]))[:-1] == named
    announced = events(added(0, call("call_a", "f")), added(0, call("call_b", "g")), finished(0, one), finished(0, two))
    assert summarise(announced).calls == {(0, 0): ["call_a", "f", "1"], (0, 1): ["call_b", "g", "2"]}


HOSTED = ["web_search_call", "file_search_call", "mcp_call", "mcp_list_tools", "mcp_approval_request", "computer_call"]


@pytest.mark.parametrize("kind", [*HOSTED, "compaction", "not_invented_yet"])
def test_other_items_pass_as_extensions(kind: str) -> None:
    item = {"type": kind, "id": "x_1", "status": "completed"}
    announced, whole, progress = added(0, item), finished(0, item), {"type": f"response.{kind}.progress", "x": 1}
    assert events(announced, progress, whole, completed([item])) == [
        Extension("response.output_item.added", announced),
        Extension(f"response.{kind}.progress", progress),
        Extension("response.output_item.done", whole),
        STOP,
    ]
    assert events(completed([item])) == [Extension(kind, item), STOP]


def test_hosted_tools_are_no_calls_of_the_clients() -> None:
    piece = {"type": "response.mcp_call_arguments.delta", "output_index": 0, "delta": "{}"}
    code = {"type": "response.code_interpreter_call_code.delta", "output_index": 1, "delta": "1+1"}
    assert events(piece, code) == [Extension(str(event["type"]), event) for event in (piece, code)]


XAIS = {
    "type": "custom_tool_call",
    "id": "ctc_1",
    "call_id": "xs_call_1",
    "name": "x_keyword_search",
    "input": "{}",
}


@pytest.mark.parametrize("snapshot", [[], [XAIS, message("msg_1", "Hi")], [XAIS]])
def test_xais_own_tools_are_no_calls_of_the_clients(snapshot: list[dict[str, Any]]) -> None:
    inputs = arguments("{}", kind="custom_tool_call_input", item_id="ctc_1")
    whole = {"type": "response.custom_tool_call_input.done", "output_index": 0, "item_id": "ctc_1", "input": "{}"}
    hosted = [added(0, {**XAIS, "input": ""}), inputs, whole, finished(0, XAIS)]
    told: list[Event] = [Extension(payload["type"], payload) for payload in hosted]
    assert events(*hosted, delta("Hi", 1), completed(snapshot)) == [*told, Token(0, "Hi"), STOP]


def test_a_tool_of_xais_beside_one_of_the_clients() -> None:
    own = call("call_2", "f", "{}", id="fc_2")
    told = events(added(0, XAIS), added(1, call("call_2", "f", id="fc_2")), arguments("{}", 1), completed([XAIS, own]))
    assert summarise(told).calls == {(0, 0): ["call_2", "f", "{}"]}
    assert told[-1] == Finish(0, "tool_calls", "completed")


@pytest.mark.parametrize("has_snapshot", [True, False])
def test_a_call_is_the_clients_unless_a_text_follows_it(has_snapshot: bool) -> None:
    first, second = call("c1", "f", "{}", id="fc_1"), call("c2", "g", "{}", id="fc_2")

    def reason(*items: dict[str, Any]) -> str:
        payloads = [finished(place, item) for place, item in enumerate(items)]
        finish = events(*payloads, completed(list(items) if has_snapshot else []))[-1]
        assert isinstance(finish, Finish)
        return finish.reason

    text, empty = message("msg_1", "Hi"), message("msg_1")
    assert [reason(first, second), reason(text, first, second)] == ["tool_calls"] * 2
    assert [reason(first, empty), reason(first, second, {"type": "reasoning", "id": "r"})] == ["tool_calls"] * 2
    assert [reason(first, text), reason(first, second, text)] == ["stop"] * 2
    assert reason(first, text, second) == "tool_calls"


def test_a_text_that_began_before_a_call_does_not_follow_it() -> None:
    told = events(added(0, message("msg_1")), added(1, call("c1", "f", id="fc_1")), delta("Hi"), completed([]))
    assert told[-1] == Finish(0, "tool_calls", "completed")


def test_images() -> None:
    partial = {"type": "response.image_generation_call.partial_image", "output_index": 0, "partial_image_b64": "QUI="}
    whole = {"type": "image_generation_call", "id": "ig_1", "result": "QUJD", "output_format": "webp"}
    drawn = {"type": "image_generation_call", "id": "ig_2", "result": "QUJD", "output_format": "svg"}
    broken = {"type": "image_generation_call", "id": "ig_3", "status": "failed", "result": None}
    assert events(partial, finished(0, whole), finished(1, broken), completed([whole, broken, drawn])) == [
        Media(0, "partial_image", "image/png", "QUI="),
        Media(0, "image", "image/webp", "QUJD"),
        Extension("response.output_item.done", finished(1, broken)),
        Media(0, "image", "image/svg+xml", "QUJD"),
        STOP,
    ]


def test_the_phase_of_a_message_is_told() -> None:
    announced = added(0, message("msg_1", phase="commentary"))
    assert events(announced, delta("Hm")) == [Extension("response.output_item.added", announced), Token(0, "Hm")]


def test_parts_of_unknown_type_pass_once() -> None:
    drawn = {"type": "output_drawing", "x": 1}
    whole = {**message("msg_1"), "content": [drawn]}
    event = {"type": "response.content_part.done", "output_index": 0, "content_index": 0, "part": drawn}
    assert events(added(0, message("msg_1")), event, finished(0, whole), completed([whole])) == [
        Extension("response.content_part.done", event),
        STOP,
    ]
    assert events(finished(0, whole)) == [Extension("output_drawing", drawn)]


def test_items_without_places_are_known_by_id() -> None:
    """llama.cpp: a call has no id, and its fragments name its call id."""
    one, two = call("fc_a", "f", "1"), call("fc_b", "g", "2")
    told = events(
        added(None, {"type": "reasoning", "id": "rs_1", "content": []}),
        delta("hm", None, item_id="rs_1", kind="reasoning_text"),
        added(None, message("msg_1")),
        delta("Hi", None),
        added(None, call("fc_a", "f")),
        arguments("1", None, item_id="fc_a"),
        added(None, call("fc_b", "g")),
        arguments("2", None, item_id="fc_b"),
        finished(None, {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "hm"}]}),
        done("Hi", None),
        finished(None, message("msg_1", "Hi")),
        finished(None, one),
        finished(None, two),
        completed([message("msg_1", "Hi"), one, two]),
    )
    assert told == [
        Reasoning(0, "hm"),
        Token(0, "Hi"),
        ToolCall(0, 0, "", "fc_a", "f"),
        ToolCall(0, 0, "1"),
        ToolCall(0, 1, "", "fc_b", "g"),
        ToolCall(0, 1, "2"),
        Finish(0, "tool_calls", "completed"),
    ]


def test_items_with_neither_place_nor_id_are_the_newest_of_their_kind() -> None:
    bare = {"type": "message", "content": []}
    deltas = [{"type": "response.output_text.delta", "delta": text} for text in ("a", "b")]
    whole = {**bare, "content": [{"type": "output_text", "text": "a"}]}
    told = events(
        added(None, bare), deltas[0], finished(None, whole), added(None, bare), finished(None, whole), deltas[1]
    )
    assert told == [Token(0, "a"), Token(0, "a"), Token(0, "b")]
    last = events(added(None, bare), deltas[0], added(None, bare), finished(None, whole))
    assert last == [Token(0, "a")]


def test_ids_that_change_with_every_event_and_no_places_are_one_item() -> None:
    """Nothing is kept for each of them."""
    assert (
        events(*(delta("a", None, item_id=f"msg_{number}") for number in range(3)), done("aaa", None))
        == [Token(0, "a")] * 3
    )


def test_calls_that_only_their_ids_tell_apart() -> None:
    told = events(arguments("1", None, item_id="fc_a"), arguments("2", None, item_id="fc_b"), arguments("3", None))
    assert told == [ToolCall(0, 0, "1"), ToolCall(0, 1, "2"), ToolCall(0, 1, "3")]


def test_places_that_only_some_events_have() -> None:
    whole = message("msg_1", "a")
    assert events(added(None, message("msg_1")), delta("a", 0), finished(None, whole)) == [Token(0, "a")]
    assert events(added(0, message("msg_1")), delta("a", None), finished(0, whole)) == [Token(0, "a")]


def test_a_snapshot_with_other_ids_and_gaps_in_its_places() -> None:
    """vLLM makes up ids for it, and a server may have announced an item in vain."""
    one, two = message("other_1", "a"), message("other_2", "b")
    assert events(delta("a", 1), delta("b", 4, item_id="msg_2"), completed([one, two, message("other_3", "c")])) == [
        Token(0, "a"),
        Token(0, "b"),
        Token(0, "c"),
        STOP,
    ]


def test_parts_counted_on_from_the_item_before() -> None:
    """vLLM's content index grows over items, while the whole item's parts begin at 0."""
    thought = delta("hm", 0, kind="reasoning_text")
    assert events(thought, delta("a", 1, 1), finished(1, message("msg_1", "a"))) == [Reasoning(0, "hm"), Token(0, "a")]
    assert events(delta("a", 1, 2), finished(1, message("msg_1", "a", "b"))) == [Token(0, "a"), Token(0, "b")]


WAYS = st.sampled_from(["deltas", "done", "part", "item", "snapshot"])


@st.composite
def responses(draw: st.DrawFn) -> tuple[list[str], list[dict[str, Any]]]:
    """The texts of a response, each unlike the others, and events that tell each at least once in some way."""
    texts: list[str] = []
    output: list[dict[str, Any]] = []
    groups: list[list[dict[str, Any]]] = []
    for place in range(draw(st.integers(1, 4))):
        item_id = f"msg_{place}"
        pieces = [f"<{place}.{number}>" for number in range(draw(st.integers(1, 3)))]
        whole, group = message(item_id, *pieces), [added(place, message(item_id))]
        ways = [draw(WAYS) for _ in pieces]
        for number, (text, way) in enumerate(zip(pieces, ways, strict=True)):
            named = {"item_id": draw(st.sampled_from([item_id, "", "rotated"]))}
            if way == "deltas":
                group += [delta(text[:2], place, number, **named), delta(text[2:], place, number, **named)]
            if way == "done" or (draw(st.booleans()) and way == "deltas"):
                group.append(done(text, place, number, **named))
            if way == "part" or (draw(st.booleans()) and way != "item" and way != "snapshot"):
                group.append(part("done", text, place, number))
        if "item" in ways or draw(st.booleans()):
            group.append(finished(place, whole))
        texts += pieces
        output.append(whole)
        groups.append(group)
    order = draw(st.permutations([at for at, group in enumerate(groups) for _ in group]))
    queues = [iter(group) for group in groups]
    return texts, [*(next(queues[at]) for at in order), completed(output)]


@settings(max_examples=200, deadline=None)
@given(responses())
def test_every_text_is_told_once_however_items_interleave(drawn: tuple[list[str], list[dict[str, Any]]]) -> None:
    texts, payloads = drawn
    told = decode_payloads("openai-responses", [CREATED, *payloads])
    pieces = [event.text for event in told if isinstance(event, Token)]
    assert len("".join(pieces)) == len("".join(texts))
    assert sorted("".join(pieces)) == sorted("".join(texts))


TEXT_DELTAS = st.builds(
    delta,
    st.sampled_from(["", "a", "\u2028", "😄"]),
    st.sampled_from([None, 0, 1]),
    st.integers(0, 1),
    item_id=st.sampled_from(["", "msg_1", "msg_2"]),
    logprobs=st.sampled_from([None, [], [{"token": "a"}]]),
    error=st.sampled_from([None, "", "no"]),
)
OTHERS = st.sampled_from(
    [
        added(0, message("msg_1")),
        added(None, message("msg_2")),
        added(1, message("msg_3")),
        finished(1, message("msg_2", "b")),
        done("b", 1),
        delta("hm", 0, kind="reasoning_text"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT_DELTAS | OTHERS, max_size=12))
def test_both_lanes_give_the_same_events(payloads: list[dict[str, Any]]) -> None:
    """The default event name, written out, sends a frame down the full lane; its own may take the plain one."""
    plain, full = DIALECTS["openai-responses"](), DIALECTS["openai-responses"]()
    for payload in [CREATED, *payloads, completed([message("msg_1", "a")])]:
        data = msgspec.json.encode(payload)
        told: list[Event] = list(plain.decode(Frame(data, data)))
        assert told == list(full.decode(Frame(data, data, b"message")))


@pytest.mark.parametrize("place", [0, None])
def test_frames_that_differ_in_their_text_alone_are_known_by_it(place: int | None) -> None:
    """Through the line, one frame a read: the stencil passes the dialect by, and must leave no trace of that."""
    texts = [f"word{number} " for number in range(20)]
    first, second = message("msg_1", "".join(texts)), message("msg_2", "more")
    payloads = [
        CREATED,
        added(place, message("msg_1")),
        *(delta(text, place) for text in texts),
        done("".join(texts), place),
        finished(place, first),
        added(None if place is None else 1, message("msg_2")),
        delta("late", place),
        finished(None if place is None else 1, second),
        completed([first, second]),
    ]
    frames = [
        b"event: %b\ndata: %b\n\n" % (payload["type"].encode(), msgspec.json.encode(payload)) for payload in payloads
    ]
    _, _, sent = Line("openai-responses").run(frames)
    told = "".join(data["text"] for name, data in typed_events(sent) if name == "token")
    assert told == "".join(texts) + "late" + "more"
