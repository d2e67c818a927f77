"""Tool calls of OpenAI-compatible streams: which fragment belongs to which call."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.events import Event, Finish, ToolCall
from tests.dialect_reading import decode_payloads
from tests.dialect_reading import openai_chunk as chunk


def events(*payloads: Any) -> list[Event]:
    """The events of ``payloads`` after a role chunk, without its Start."""
    return decode_payloads("openai-chat", [chunk({"role": "assistant", "content": ""}), *payloads])[1:]


def call(**fields: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [fields]})


def test_tool_call_fragments() -> None:
    assert events(
        call(index=0, id="a", type="function", function={"name": "f", "arguments": ""}),
        call(index=0, function={"arguments": '{"x"'}),
        call(index=0, function={"arguments": ""}),
        call(index=0, function={"arguments": ":1}"}),
        call(index=1, id="b", function={"name": "g", "arguments": "{}"}),
    ) == [
        ToolCall(0, 0, "", "a", "f"),
        ToolCall(0, 0, '{"x"'),
        ToolCall(0, 0, ":1}"),
        ToolCall(0, 1, "{}", "b", "g"),
    ]


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        pytest.param(
            [{"index": 1, "id": "a", "function": {"name": "f"}}, {"index": 1, "function": {"arguments": "{}"}}],
            [ToolCall(0, 0, "", "a", "f"), ToolCall(0, 0, "{}")],
            id="index starts at 1, arguments absent",
        ),
        pytest.param(
            [{"index": 0.0, "id": "a", "function": {"name": "f"}}, {"index": 0, "function": {"arguments": "{}"}}],
            [ToolCall(0, 0, "", "a", "f"), ToolCall(0, 0, "{}")],
            id="index is a float",
        ),
        pytest.param(
            [
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
                {"index": 0, "id": "", "function": {"name": "", "arguments": "{"}},
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": "}"}},
                {"index": 0, "id": "", "function": {}},
            ],
            [ToolCall(0, 0, "", "a", "f"), ToolCall(0, 0, "{"), ToolCall(0, 0, "}")],
            id="id and name empty, then repeated",
        ),
        pytest.param(
            [
                {"id": "a", "function": {"name": "f", "arguments": "{"}},
                {"function": {"arguments": "}"}},
                {"id": "b", "function": {"name": "f", "arguments": "{}"}},
                {"id": "a", "function": {"arguments": " "}},
            ],
            [ToolCall(0, 0, "{", "a", "f"), ToolCall(0, 0, "}"), ToolCall(0, 1, "{}", "b", "f"), ToolCall(0, 0, " ")],
            id="no index: ids tell",
        ),
        pytest.param(
            [{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "f", "arguments": "{}"}}],
            [ToolCall(0, 0, "{}", None, "f"), ToolCall(0, 1, "{}", None, "f")],
            id="neither index nor id: names open",
        ),
        pytest.param(
            [
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}},
                {"index": 0, "id": "b", "function": {"name": "f", "arguments": "["}},
                {"index": 0, "function": {"arguments": "]"}},
            ],
            [ToolCall(0, 0, "{}", "a", "f"), ToolCall(0, 1, "[", "b", "f"), ToolCall(0, 1, "]")],
            id="index 0 for all",
        ),
        pytest.param(
            [
                {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}},
                {"index": 0, "id": "z", "function": {"arguments": "}"}},
            ],
            [ToolCall(0, 0, "{", "a", "f"), ToolCall(0, 0, "}")],
            id="a new id for each fragment",
        ),
        pytest.param(
            [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": [1, None]}}}],
            [ToolCall(0, 0, '{"x":[1,null]}', "a", "f")],
            id="arguments are an object",
        ),
        pytest.param(
            [{"index": 0, "function": {"arguments": ""}}, {"index": 0, "id": "a", "function": {"name": "f"}}],
            [ToolCall(0, 0, ""), ToolCall(0, 0, "", "a", "f")],
            id="id and name come late",
        ),
        pytest.param(
            [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "free"}}],
            [ToolCall(0, 0, "free", "a", "f")],
            id="custom tool",
        ),
    ],
)
def test_tool_call_quirks(fragments: list[dict[str, Any]], expected: list[Event]) -> None:
    assert events(*(call(**fragment) for fragment in fragments)) == expected


def test_calls_of_each_choice_count_from_zero() -> None:
    tool = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}
    assert events(chunk(tool), chunk(tool, index=1)) == [ToolCall(0, 0, "", "a", "f"), ToolCall(1, 0, "", "a", "f")]


def test_deprecated_function_call() -> None:
    assert events(
        chunk({"function_call": {"name": "f", "arguments": ""}}),
        chunk({"function_call": {"arguments": "{}"}}),
        chunk({}, "function_call"),
    ) == [ToolCall(0, 0, "", None, "f"), ToolCall(0, 0, "{}"), Finish(0, "tool_calls", "function_call")]
