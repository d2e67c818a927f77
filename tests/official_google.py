"""What google-genai reads from a body: the measure the Gemini dialects are held to."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import httpx
from google import genai
from google.genai import errors, types

from tests.dialect_reading import Summary

COUNTS = {
    "prompt_token_count": "promptTokenCount",
    "tool_use_prompt_token_count": "toolUsePromptTokenCount",
    "candidates_token_count": "candidatesTokenCount",
    "thoughts_token_count": "thoughtsTokenCount",
    "cached_content_token_count": "cachedContentTokenCount",
    "total_token_count": "totalTokenCount",
}
"""The package's names of the counts, and those on the wire."""


def google_client(body: bytes) -> genai.Client:
    """The package's client of an upstream that answers everything with ``body``."""
    headers = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, content=body))
    options = types.HttpOptions(base_url="http://upstream", httpx_client=httpx.Client(transport=transport))
    return genai.Client(api_key="k", http_options=options)


_WORDS: dict[str, Any] = {"finishReason": {1: "STOP"}, "modality": {1: "TEXT"}, "safetyRatings": {}}
"""Of the keys whose values are enums: what the numbers in them mean. Ratings are left out."""


def as_google_events(body: bytes) -> bytes:
    """An array as the events it would have been, for the package reads neither arrays nor enums that are numbers."""
    if not body.lstrip().startswith(b"["):
        return body
    elements = json.loads(body, object_hook=_with_words)
    return b"".join(b"data: " + json.dumps(element).encode() + b"\r\n\r\n" for element in elements)


def _with_words(fields: dict[str, Any]) -> dict[str, Any]:
    for key in _WORDS.keys() & fields.keys():
        value = fields[key]
        fields[key] = _WORDS[key].get(value) if isinstance(value, int) else None if key == "safetyRatings" else value
    return fields


class _Call:
    """A call as the package's user puts it together."""

    def __init__(self, call_id: str, name: str) -> None:
        self.id = call_id
        self.name = name
        self.arguments: Any = {}

    def add(self, partial: types.PartialArg) -> None:
        """Put one value where its path says; text goes behind the text that is there."""
        names = re.findall(r"[^$.\[\]'\"]+", partial.json_path or "")
        *steps, last = [int(name) if name.isdigit() else name for name in names]
        holder = self.arguments
        for step, following in itertools.pairwise([*steps, last]):
            holder = _member(holder, step, [] if isinstance(following, int) else {})
        if partial.string_value is not None:
            text = _member(holder, last, "")
            holder[last] = text + partial.string_value
        else:
            value = partial.number_value if partial.number_value is not None else partial.bool_value
            _member(holder, last, None)
            holder[last] = value


def _member(holder: Any, step: str | int, fresh: Any) -> Any:
    if isinstance(step, int):
        while len(holder) <= step:
            holder.append(fresh)
    else:
        holder.setdefault(step, fresh)
    return holder[step]


def read_gemini(body: bytes) -> Summary:
    """By ``client.models.generate_content_stream()``."""
    summary = Summary()
    calls: list[_Call] = []
    try:
        with google_client(as_google_events(body)) as client:
            for response in client.models.generate_content_stream(model="m", contents="hi"):
                _add_response(summary, response, calls)
    except errors.APIError as error:
        summary.error = error.message
    for number, call in enumerate(calls):
        summary.calls[0, number] = [call.id, call.name, json.dumps(call.arguments)]
    narrow_calls(summary)
    return summary


def _add_response(summary: Summary, response: types.GenerateContentResponse, calls: list[_Call]) -> None:
    if response.usage_metadata is not None:
        summary.usage = tuple(getattr(response.usage_metadata, key) for key in COUNTS)
    if response.prompt_feedback is not None and response.prompt_feedback.block_reason is not None:
        summary.finish[0] = response.prompt_feedback.block_reason.value
    for candidate in response.candidates or []:
        index = candidate.index or 0
        for part in (candidate.content and candidate.content.parts) or []:
            summary.add_text(summary.reasoning if part.thought else summary.text, index, part.text)
            if part.function_call is not None:
                _add_call(calls, part.function_call)
        if candidate.finish_reason is not None:
            summary.finish[index] = candidate.finish_reason.value


def _add_call(calls: list[_Call], told: types.FunctionCall) -> None:
    if told.name:
        calls.append(_Call(told.id or "", told.name))
        calls[-1].arguments = told.args or {}
    for partial in told.partial_args or []:
        calls[-1].add(partial)


def narrow_calls(summary: Summary) -> None:
    """Arguments as values: the package hands out objects, and every number as a float."""
    for call in summary.calls.values():
        call[2] = json.dumps(json.loads(call[2] or "{}", parse_int=float), sort_keys=True)


def narrow_to_google_user(ours: Summary) -> None:
    """What of our summary this package hands out too: counts without their details, calls as objects."""
    narrow_calls(ours)
    ours.usage = ours.usage and tuple(ours.usage.get(key) for key in COUNTS.values())


INTERACTION_COUNTS = (
    "total_input_tokens",
    "total_tool_use_tokens",
    "total_output_tokens",
    "total_thought_tokens",
    "total_cached_tokens",
    "total_tokens",
)


def read_interactions(body: bytes) -> Summary:
    """By ``client.interactions.create(stream=True)``."""
    summary = Summary()
    calls: dict[int, list[str]] = {}
    with google_client(body) as client:
        for event in client.interactions.create(model="m", input="hi", stream=True):
            _add_interaction_event(summary, event, calls)
    summary.calls = {(0, number): call for number, call in enumerate(calls.values())}
    narrow_calls(summary)
    return summary


def _add_interaction_event(summary: Summary, event: Any, calls: dict[int, list[str]]) -> None:
    match event.event_type:
        case "step.start" if event.step.type == "function_call":
            calls[event.index] = [event.step.id, event.step.name, ""]
        case "step.delta" if event.delta.type == "text":
            summary.add_text(summary.text, 0, event.delta.text)
        case "step.delta" if event.delta.type == "thought_summary":
            summary.add_text(summary.reasoning, 0, event.delta.content.text)
        case "step.delta" if event.delta.type == "arguments_delta":
            calls[event.index][2] += event.delta.arguments or ""
        case "interaction.completed":
            summary.finish[0] = event.interaction.status
            if event.interaction.usage is not None:
                summary.usage = tuple(getattr(event.interaction.usage, key) for key in INTERACTION_COUNTS)
        case "interaction.status_update" if event.status not in {"queued", "in_progress"}:
            summary.finish[0] = event.status
        case "error":
            summary.error = event.error.message
        case _:
            pass


def narrow_to_interactions_user(ours: Summary) -> None:
    """What of our summary this package hands out too."""
    narrow_calls(ours)
    ours.usage = ours.usage and tuple(ours.usage.get(key) for key in INTERACTION_COUNTS)
