"""The simulator's Ollama chat and generate. Owns how an answer is written there; must not know pace or sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from sidecar.simulator.dialects.answer import (
    CREATED_AT,
    ERROR_MESSAGE,
    PROMPT_TOKENS,
    Answer,
    argument_pieces,
    model_of,
    texts,
    to_json,
    tool_name,
)


def streamed_chat(body: dict[str, Any]) -> Answer:
    """An /api/chat stream; a tool call comes whole, in one content frame."""
    return _streamed(body, _chat_message, tool_name(body))


def streamed_generate(body: dict[str, Any]) -> Answer:
    """An /api/generate stream; it has no tools."""
    return _streamed(body, _generated, "")


def whole_chat(body: dict[str, Any], count: int) -> bytes:
    """The same answer as one JSON document."""
    tool = tool_name(body)
    said = _called(tool, count, 0) if tool else _chat_message("".join(texts(count)))
    return to_json({**_base(body), **said, **_last(count)})


def whole_generate(body: dict[str, Any], count: int) -> bytes:
    """The same answer as one JSON document."""
    return to_json({**_base(body), **_generated("".join(texts(count))), **_last(count)})


def rejection(_status: int) -> bytes:
    """Ollama's error body."""
    return to_json({"error": ERROR_MESSAGE})


def _streamed(body: dict[str, Any], said: Callable[[str], dict[str, Any]], tool: str) -> Answer:
    def line(more: dict[str, Any]) -> bytes:
        return to_json({**_base(body), **more}) + b"\n"

    def contents(count: int, first_bytes: int) -> Iterator[bytes]:
        if not tool:
            yield from (line({**said(text), "done": False}) for text in texts(count, first_bytes))
        elif count:
            yield line({**_called(tool, count, first_bytes), "done": False})

    return Answer(
        content_type="application/x-ndjson",
        opening=b"",
        contents=contents,
        closing=lambda count: (b"", line({**said(""), **_last(count)})),
        malformed=b'{"model":"simulated-1","created_at":"2025\n',
        error=rejection(500) + b"\n",
    )


def _base(body: dict[str, Any]) -> dict[str, Any]:
    return {"model": model_of(body), "created_at": CREATED_AT}


def _chat_message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _generated(text: str) -> dict[str, Any]:
    return {"response": text}


def _called(tool: str, count: int, first_bytes: int) -> dict[str, Any]:
    given = json.loads("".join(argument_pieces(count, first_bytes)))
    call = {"function": {"index": 0, "name": tool, "arguments": given}}
    return {"message": {"role": "assistant", "content": "", "tool_calls": [call]}}


def _last(count: int) -> dict[str, Any]:
    took_ns = 1_000_000 * (count + 1)
    return {
        "done": True,
        "done_reason": "stop",
        "total_duration": took_ns,
        "load_duration": 1_000_000,
        "prompt_eval_count": PROMPT_TOKENS,
        "prompt_eval_duration": 1_000_000,
        "eval_count": count,
        "eval_duration": took_ns,
    }
