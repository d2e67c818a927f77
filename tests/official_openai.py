"""What OpenAI's own package reads from a body of text completions or of a response: the measure of both dialects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai

from tests.dialect_reading import Summary

TERMINAL = ("response.completed", "response.incomplete", "response.failed")
TEXT_DELTAS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "reasoning",
}


@contextmanager
def client_of(body: bytes) -> Iterator[openai.OpenAI]:
    """The package's client, whose every request is answered with ``body``."""
    headers = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, content=body))
    with openai.OpenAI(
        api_key="k", base_url="http://upstream/v1", http_client=httpx2.Client(transport=transport)
    ) as client:
        yield client


def read_completions(body: bytes) -> Summary:
    """By ``openai.OpenAI().completions.create(stream=True)``."""
    summary = Summary()
    with client_of(body) as client:
        try:
            for chunk in client.completions.create(model="m", prompt="p", stream=True):
                if chunk.usage is not None:
                    summary.usage = chunk.usage.model_dump(exclude_unset=True)
                for choice in chunk.choices or []:
                    summary.add_text(summary.text, choice.index, choice.text)
                    if choice.finish_reason:
                        summary.finish[choice.index] = choice.finish_reason
        except openai.APIError as error:
            summary.error = error.message
    return summary


def read_responses(body: bytes) -> Summary:
    """By ``openai.OpenAI().responses.create(stream=True)``."""
    return _read_responses(body, lambda client: client.responses.create(model="m", input="i", stream=True))


def read_resumed_response(body: bytes) -> Summary:
    """By ``openai.OpenAI().responses.retrieve(stream=True)``."""
    return _read_responses(body, lambda client: client.responses.retrieve("resp_1", stream=True, starting_after=1))


def _read_responses(body: bytes, ask: Callable[[openai.OpenAI], Any]) -> Summary:
    summary = Summary()
    with client_of(body) as client:
        try:
            for event in ask(client):
                _add_event(summary, event)
        except openai.APIError as error:
            summary.error = error.message
    return summary


def _add_event(summary: Summary, event: Any) -> None:
    if event.type in TEXT_DELTAS:
        summary.add_text(getattr(summary, TEXT_DELTAS[event.type]), 0, event.delta)
    elif event.type == "error":
        summary.error = event.message
    elif event.type in TERMINAL:
        _add_response(summary, event.response)


def _add_response(summary: Summary, response: Any) -> None:
    """The end of a response, and those of its texts that no event told before."""
    details = response.incomplete_details
    summary.finish[0] = details.reason if details is not None else response.status
    summary.error = response.error.message if response.error is not None else summary.error
    summary.usage = response.usage.model_dump(exclude_unset=True) if response.usage is not None else None
    if not summary.text:
        summary.add_text(summary.text, 0, response.output_text)
    thoughts = [] if summary.reasoning else [item for item in response.output if item.type == "reasoning"]
    for item in thoughts:
        for part in [*item.summary, *(item.content or [])]:
            summary.add_text(summary.reasoning, 0, part.text)
    calls = [item for item in response.output if item.type in {"function_call", "custom_tool_call"}]
    for number, call in enumerate(calls):
        arguments = call.arguments if call.type == "function_call" else call.input
        summary.calls[0, number] = [call.call_id, call.name, arguments]
