"""Captured content as messages: every dialect's requests, and bodies that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.telemetry.messages import input_messages, output_messages


def text(role: str, *contents: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": content} for content in contents]}


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.mark.parametrize(
    ("request_body", "expected"),
    [
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            [text("system", "s"), text("user", "u")],
        ),
        (
            {"system": [{"type": "text", "text": "s"}], "messages": [{"role": "user", "content": [{"text": "u"}]}]},
            [text("system", "s"), text("user", "u")],
        ),
        ({"instructions": "s", "input": "u"}, [text("system", "s"), text("user", "u")]),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "u"}]}]}, [text("user", "u")]),
        (
            {
                "systemInstruction": {"parts": [{"text": "s"}]},
                "contents": [{"role": "model", "parts": [{"text": "a"}, {"text": "b"}]}],
            },
            [text("system", "s"), text("assistant", "a", "b")],
        ),
        ({"prompt": "p"}, [text("user", "p")]),
        ({"inputs": "p"}, [text("user", "p")]),
        ({"text_input": "p"}, [text("user", "p")]),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, [{"role": "user", "parts": [IMAGE]}]),
        ({"messages": [{"content": None}, "odd", 1]}, [{"role": "user", "parts": []}]),
    ],
)
def test_requests_are_read(request_body: Any, expected: Any) -> None:
    assert json.loads(input_messages(json.dumps(request_body))) == expected


@pytest.mark.parametrize(
    "body", ['{"messages": [{"role": "user", "cont', "plain", "[]", "{}", '{"messages": []}', "\udcff"]
)
def test_any_other_body_is_one_message(body: str) -> None:
    told = body.encode("utf-8", "replace").decode()
    assert json.loads(input_messages(body)) == [text("user", told)]


def test_nothing_said_is_nothing_told() -> None:
    assert (input_messages(""), output_messages("", ("stop",))) == ("", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.text() | st.dictionaries(st.sampled_from(["messages", "contents", "input", "system"]), JSON).map(json.dumps))
def test_no_body_breaks_it(body: str) -> None:
    told = input_messages(body)
    assert not body or isinstance(json.loads(told), list)


def test_a_deep_body_is_one_message() -> None:
    body = '{"messages": [{"content": ' + "[" * 900 + "]" * 900 + "}]}"
    assert isinstance(json.loads(input_messages(body)), list)
