"""The simulator's OpenAI Chat Completions. Owns how an answer is written there; must not know pace or sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sidecar.simulator.dialects.answer import (
    CREATED,
    ERROR_MESSAGE,
    PROMPT_TOKENS,
    Answer,
    argument_pieces,
    model_of,
    texts,
    to_json,
    tool_name,
)


def _usage(count: int) -> dict[str, int]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": count, "total_tokens": PROMPT_TOKENS + count}


def streamed(body: dict[str, Any]) -> Answer:
    """A Chat Completions stream; usage comes only where ``stream_options.include_usage`` asks."""
    options = body.get("stream_options")
    wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    tool = tool_name(body)
    base = {"id": "chatcmpl-sim", "object": "chat.completion.chunk", "created": CREATED, "model": model_of(body)}
    tail: dict[str, Any] = {"usage": None} if wants_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + to_json({**base, "choices": [choice], **tail}) + b"\n\n"

    def contents(count: int, first_bytes: int) -> Iterator[bytes]:
        if not tool:
            yield from (chunk({"content": text}) for text in texts(count, first_bytes))
            return
        for number, fragment in enumerate(argument_pieces(count, first_bytes)):
            call: dict[str, Any] = {"index": 0, "function": {"arguments": fragment}}
            if number == 0:
                call |= {"id": "call_sim", "type": "function", "function": {"name": tool, "arguments": fragment}}
            yield chunk({"tool_calls": [call]})

    def closing(count: int) -> tuple[bytes, bytes]:
        finish = chunk({}, "tool_calls" if tool else "stop")
        if wants_usage:
            finish += b"data: " + to_json({**base, "choices": [], "usage": _usage(count)}) + b"\n\n"
        return finish, b"data: [DONE]\n\n"

    return Answer(
        content_type="text/event-stream; charset=utf-8",
        opening=chunk({"role": "assistant", "content": None if tool else ""}),
        contents=contents,
        closing=closing,
        malformed=b'data: {"id":"chatcmpl-sim","choices":[{"index":0,"delta":{"content":"bro\n\n',
        error=b"data: " + rejection(500) + b"\n\n",
    )


def whole(body: dict[str, Any], count: int) -> bytes:
    """The same answer as one JSON document."""
    tool = tool_name(body)
    message: dict[str, Any] = {"role": "assistant", "content": None if tool else "".join(texts(count)), "refusal": None}
    if tool:
        function = {"name": tool, "arguments": "".join(argument_pieces(count, 0))}
        message["tool_calls"] = [{"id": "call_sim", "type": "function", "function": function}]
    finish = "tool_calls" if tool else "stop"
    return to_json(
        {
            "id": "chatcmpl-sim",
            "object": "chat.completion",
            "created": CREATED,
            "model": model_of(body),
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
            "usage": _usage(count),
        }
    )


def rejection(status: int) -> bytes:
    """OpenAI's error body."""
    kind, code = ("requests", "rate_limit_exceeded") if status == 429 else ("server_error", None)
    if 400 <= status < 429:
        kind = "invalid_request_error"
    return to_json({"error": {"message": ERROR_MESSAGE, "type": kind, "param": None, "code": code}})
