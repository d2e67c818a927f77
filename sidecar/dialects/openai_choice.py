"""One choice of an OpenAI chat stream: its deltas to events, in every variant compatible servers send.

Owns what a delta may hold: text, reasoning, refusals, tool calls, media, and every vendor's way to send them. Must not
know chunks, frames or errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Room
from sidecar.dialects.tool_calls import ToolCalls, argument_text
from sidecar.events import (
    Annotation,
    Event,
    Extension,
    Finish,
    FinishReason,
    Media,
    Reasoning,
    Refusal,
    Token,
    ToolCall,
)

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "error": "error",
    "abort": "error",
    "insufficient_system_resource": "error",
}
"""What compatible servers call an end; any other word is a stop."""

_REASONING_KEYS = ("reasoning_content", "reasoning", "reasoning_text", "thinking")
_BARE_KEYS = frozenset({"index", "delta", "finish_reason", "logprobs", "usage", "error"})
"""A choice without a delta that has nothing but these says no more than they do."""
_FUNCTION_CALL_INDEX = -1
"""Upstream index of the one call that the deprecated ``function_call`` makes; no server counts from below 0."""


class Choice:
    """What is known of one choice so far."""

    __slots__ = ("finish_native", "index", "tool_calls")

    def __init__(self, index: int, room: Room) -> None:
        self.index = index
        self.finish_native = ""
        """The upstream's last finish word, "" before there is one."""
        self.tool_calls = ToolCalls(index, room)

    def decode(self, choice: dict[str, Any]) -> Iterator[Event]:
        """The events of one element of ``choices``."""
        delta = choice.get("delta")
        if isinstance(delta, dict):
            yield from self._delta(delta, as_dict(choice.get("logprobs")))
        elif any(value for key, value in choice.items() if key not in _BARE_KEYS):
            yield Extension("content_filter" if "content_filter_results" in choice else "choice", choice)
        native = as_text(choice.get("finish_reason"))
        if native and (mark := self.finish(native)) is not None:
            yield mark

    def finish(self, native: str) -> Finish | None:
        """The finish mark of the upstream's word ``native``; None where it has been told already."""
        if native == self.finish_native:
            return None
        self.finish_native = native
        return Finish(self.index, FINISH_REASONS.get(native, "stop"), native)

    def _delta(self, delta: dict[str, Any], logprobs: dict[str, Any]) -> Iterator[Event]:
        thought = next((text for key in _REASONING_KEYS if (text := as_text(delta.get(key)))), "")
        signature = _signature(delta)
        if thought or signature:
            yield Reasoning(self.index, thought, signature or None)
        yield from self._content(delta.get("content"), logprobs, is_thought_known=bool(thought))
        refusal = as_text(delta.get("refusal"))
        if refusal:
            yield Refusal(self.index, refusal, logprobs if logprobs.get("refusal") else None)
        yield from self._calls(delta)
        for annotation in as_list(delta.get("annotations")):
            yield Annotation(self.index, annotation)
        yield from self._media(delta)

    def _content(self, content: Any, logprobs: dict[str, Any], *, is_thought_known: bool) -> Iterator[Event]:
        if isinstance(content, str):
            if content:
                yield Token(self.index, content, logprobs if logprobs.get("content") else None)
            return
        parts = content if isinstance(content, list) else [] if content is None else [content]
        for part in parts:
            if isinstance(part, str):
                yield from self._content(part, logprobs, is_thought_known=True)
            else:
                yield from self._part(part, logprobs, is_thought_known=is_thought_known)

    def _part(self, part: Any, logprobs: dict[str, Any], *, is_thought_known: bool) -> Iterator[Event]:
        """One element of array content (Mistral)."""
        fields = as_dict(part)
        kind = as_text(fields.get("type"))
        if kind == "text":
            yield from self._content(as_text(fields.get("text")), logprobs, is_thought_known=True)
        elif kind == "thinking":
            if not is_thought_known:
                yield from self._thinking(fields)
        elif kind == "reference":
            yield Annotation(self.index, part)
        elif kind == "image_url" and (image := _image(self.index, fields)) is not None:
            yield image
        else:
            yield Extension(kind or "content", part)

    def _thinking(self, part: dict[str, Any]) -> Iterator[Event]:
        thinking = part.get("thinking")
        pieces = [{"type": "text", "text": thinking}] if isinstance(thinking, str) else as_list(thinking)
        text = "".join(as_text(as_dict(piece).get("text")) for piece in pieces)
        signature = as_text(part.get("signature"))
        if text or signature:
            yield Reasoning(self.index, text, signature or None)
        for piece in pieces:
            if as_dict(piece).get("type") == "reference":
                yield Annotation(self.index, piece)

    def _calls(self, delta: dict[str, Any]) -> Iterator[ToolCall]:
        calls = delta.get("tool_calls")
        for call in [calls] if isinstance(calls, dict) else as_list(calls):
            fields = as_dict(call)
            # A custom (free-text) tool has its name and input under its own key.
            function = as_dict(fields.get("function") or fields.get("custom"))
            yield from self._call(as_int(fields.get("index")), as_text(fields.get("id")), function)
        function = as_dict(delta.get("function_call"))
        if function:
            yield from self._call(_FUNCTION_CALL_INDEX, "", function)

    def _call(self, index: int | None, call_id: str, function: dict[str, Any]) -> Iterator[ToolCall]:
        arguments = argument_text(function.get("arguments", function.get("input")))
        event = self.tool_calls.fragment(index, call_id, as_text(function.get("name")), arguments)
        if event is not None:
            yield event

    def _media(self, delta: dict[str, Any]) -> Iterator[Media]:
        audio = as_dict(delta.get("audio"))
        # The transcript is not Token text: the official package's reader of `delta.content` does not see it.
        if as_text(audio.get("transcript")):
            yield Media(self.index, "transcript", "text/plain", audio["transcript"])
        # Streamed audio is pcm16, the only format the API streams.
        if as_text(audio.get("data")):
            yield Media(self.index, "audio", "audio/pcm", audio["data"])
        for image in as_list(delta.get("images")):
            media = _image(self.index, as_dict(image))
            if media is not None:
                yield media


def _signature(delta: dict[str, Any]) -> str:
    """The proof in OpenRouter's ``reasoning_details``, whose text only repeats ``reasoning``."""
    for detail in as_list(delta.get("reasoning_details")):
        fields = as_dict(detail)
        proof = fields.get("signature") or (fields.get("data") if fields.get("type") == "reasoning.encrypted" else None)
        if as_text(proof):
            return as_text(proof)
    return ""


def _image(index: int, part: dict[str, Any]) -> Media | None:
    """An ``image_url`` part; a data URL keeps its own media type and gives its base64 alone."""
    image = part.get("image_url")
    url = as_text(as_dict(image).get("url")) or as_text(image)
    if not url:
        return None
    head, comma, body = url.partition(";base64,")
    if comma and head.startswith("data:"):
        return Media(index, "image", head[len("data:") :] or "image/*", body)
    return Media(index, "image", "image/*", url)
