"""The simulator's Anthropic Messages. Owns how an answer is written there; must not know pace or sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from sidecar.simulator.dialects.answer import (
    ERROR_MESSAGE,
    PROMPT_TOKENS,
    Answer,
    argument_pieces,
    model_of,
    texts,
    to_json,
    tool_name,
)

_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def streamed(body: dict[str, Any]) -> Answer:
    """A Messages stream: one text block, or one tool_use block where the request offers tools."""
    tool = tool_name(body)
    block: dict[str, Any] = {"type": "text", "text": ""}
    if tool:
        block = {"type": "tool_use", "id": "toolu_sim", "name": tool, "input": {}}

    def contents(count: int, first_bytes: int) -> Iterator[bytes]:
        pieces = argument_pieces(count, first_bytes) if tool else texts(count, first_bytes)
        for piece in pieces:
            delta = {"type": "text_delta", "text": piece}
            if tool:
                delta = {"type": "input_json_delta", "partial_json": piece}
            yield _frame({"type": "content_block_delta", "index": 0, "delta": delta})

    def closing(count: int) -> tuple[bytes, bytes]:
        reason = {"stop_reason": "tool_use" if tool else "end_turn", "stop_sequence": None}
        block_stop = _frame({"type": "content_block_stop", "index": 0})
        finish = _frame({"type": "message_delta", "delta": reason, "usage": {"output_tokens": count}})
        return block_stop + finish, _frame({"type": "message_stop"})

    return Answer(
        content_type="text/event-stream; charset=utf-8",
        opening=_frame({"type": "message_start", "message": _message(body, [], None, 1)})
        + _frame({"type": "content_block_start", "index": 0, "content_block": block})
        + _frame({"type": "ping"}),
        contents=contents,
        closing=closing,
        malformed=b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"te\n\n',
        error=b"event: error\ndata: " + rejection(529) + b"\n\n",
    )


def whole(body: dict[str, Any], count: int) -> bytes:
    """The same answer as one JSON document."""
    tool = tool_name(body)
    block: dict[str, Any] = {"type": "text", "text": "".join(texts(count))}
    if tool:
        given = json.loads("".join(argument_pieces(count, 0)) or "{}")
        block = {"type": "tool_use", "id": "toolu_sim", "name": tool, "input": given}
    return to_json(_message(body, [block], "tool_use" if tool else "end_turn", count))


def rejection(status: int) -> bytes:
    """Anthropic's error body."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return to_json({"type": "error", "error": {"type": kind, "message": ERROR_MESSAGE}, "request_id": "req_sim"})


def _message(body: dict[str, Any], content: list[Any], stop_reason: str | None, output_tokens: int) -> dict[str, Any]:
    return {
        "id": "msg_sim",
        "type": "message",
        "role": "assistant",
        "model": model_of(body),
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": PROMPT_TOKENS, "output_tokens": output_tokens},
    }


def _frame(data: dict[str, Any]) -> bytes:
    return b"event: " + str(data["type"]).encode() + b"\ndata: " + to_json(data) + b"\n\n"
