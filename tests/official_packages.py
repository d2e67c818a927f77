"""What the official packages read from a body: the measure our dialects are held to.

Each reader answers the package's own request with the body and sums up what the package's user sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import httpx2
import msgspec
import ollama
import openai

from tests.dialect_reading import Summary

SSE_HEADERS = {"content-type": "text/event-stream"}


def read_openai(body: bytes) -> Summary:
    """By ``openai.OpenAI().chat.completions.create(stream=True)``."""
    summary = Summary()
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=SSE_HEADERS, content=body))
    http = httpx2.Client(transport=transport)
    with openai.OpenAI(api_key="k", base_url="http://upstream/v1", http_client=http) as client:
        stream = client.chat.completions.create(model="m", messages=[], stream=True)
        try:
            for chunk in stream:
                if chunk.usage is not None:
                    summary.usage = chunk.usage.model_dump(exclude_unset=True)
                for choice in chunk.choices or []:
                    _add_openai_choice(summary, choice)
        except openai.APIError as error:
            summary.error = error.message
    return summary


def _add_openai_choice(summary: Summary, choice: Any) -> None:
    index = choice.index or 0
    if choice.finish_reason:
        summary.finish[index] = choice.finish_reason
    delta = choice.delta
    if delta is None:
        return
    if isinstance(delta.content, list):
        for part in delta.content:
            if part["type"] == "text":
                summary.add_text(summary.text, index, part["text"])
            elif part["type"] == "thinking":
                summary.add_text(summary.reasoning, index, "".join(piece["text"] for piece in part["thinking"]))
    else:
        summary.add_text(summary.text, index, delta.content)
    thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    summary.add_text(summary.reasoning, index, thought)
    summary.add_text(summary.refusal, index, delta.refusal)
    for call in delta.tool_calls or []:
        known = summary.calls.setdefault((index, call.index or 0), ["", "", ""])
        known[0] = known[0] or call.id or ""
        known[1] = known[1] or call.function.name or ""
        known[2] += call.function.arguments or ""


def read_anthropic(body: bytes) -> Summary:
    """By ``anthropic.Anthropic().messages.create(stream=True)`` and the package's own accumulation."""
    summary = Summary()
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=SSE_HEADERS, content=body))
    http = httpx2.Client(transport=transport)
    with anthropic.Anthropic(api_key="k", base_url="http://upstream", http_client=http) as client:
        stream = client.beta.messages.create(model="m", messages=[], max_tokens=1, stream=True)
        tools: dict[int, int] = {}
        usage: dict[str, Any] = {}
        try:
            for event in stream:
                _add_anthropic_event(summary, event, tools, usage)
        except anthropic.APIStatusError as error:
            summary.error = error.body["error"]["message"] if isinstance(error.body, dict) else str(error.body)
    summary.usage = usage or None
    return summary


def _add_anthropic_event(summary: Summary, event: Any, tools: dict[int, int], usage: dict[str, Any]) -> None:
    match event.type:
        case "message_start":
            usage.update(event.message.usage.model_dump(exclude_unset=True, exclude_none=True))
        case "content_block_start" if event.content_block.type == "tool_use":
            tools[event.index] = len(tools)
            summary.calls[0, tools[event.index]] = [event.content_block.id, event.content_block.name, ""]
        case "content_block_start":
            summary.add_text(summary.text, 0, getattr(event.content_block, "text", ""))
        case "content_block_delta" if event.delta.type == "text_delta":
            summary.add_text(summary.text, 0, event.delta.text)
        case "content_block_delta" if event.delta.type == "thinking_delta":
            summary.add_text(summary.reasoning, 0, event.delta.thinking)
        case "content_block_delta" if event.delta.type == "input_json_delta" and event.index in tools:
            summary.calls[0, tools[event.index]][2] += event.delta.partial_json
        case "message_delta":
            usage.update(event.usage.model_dump(exclude_unset=True, exclude_none=True))
            if event.delta.stop_reason:
                summary.finish[0] = event.delta.stop_reason
        case _:
            pass


def read_ollama_chat(body: bytes) -> Summary:
    """By ``ollama.Client().chat(stream=True)``."""
    return _read_ollama(body, lambda client: client.chat(model="m", messages=[], stream=True))


def read_ollama_generate(body: bytes) -> Summary:
    """By ``ollama.Client().generate(stream=True)``."""
    return _read_ollama(body, lambda client: client.generate(model="m", prompt="p", stream=True))


def _read_ollama(body: bytes, ask: Callable[[ollama.Client], Any]) -> Summary:
    summary = Summary()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    try:
        for part in ask(ollama.Client(host="http://upstream", transport=transport)):
            holder = part.message if hasattr(part, "message") else part
            summary.add_text(summary.text, 0, holder.content if hasattr(part, "message") else part.response)
            summary.add_text(summary.reasoning, 0, holder.thinking)
            for call in getattr(holder, "tool_calls", None) or []:
                arguments = msgspec.json.encode(call.function.arguments).decode()
                summary.calls[0, len(summary.calls)] = ["", call.function.name, arguments]
            if part.done:
                summary.finish[0] = part.done_reason or "stop"
                summary.usage = (part.prompt_eval_count, part.eval_count)
    except ollama.ResponseError as error:
        summary.error = error.error
    return summary
