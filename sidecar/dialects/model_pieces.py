"""Models whose streams are bare pieces of text with counts beside them: Titan, Llama, Mistral, DeepSeek, old Claude.

Owns their shapes and their finish words. Must not know what wraps a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Numbered, Room, within_bounds
from sidecar.dialects.openai_choice import Choice
from sidecar.dialects.token_usage import openai_usage
from sidecar.events import Event, Finish, FinishReason, Token, Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "length": "length",
    "max_tokens": "length",
    "content_filtered": "content_filter",
    "tool_calls": "tool_calls",
    "error": "error",
}
"""Finish words in lower case; any other (``FINISHED``, ``stop``) is a stop."""


class ModelPieces:
    """What is known of such a stream so far."""

    __slots__ = ("_choices", "_prompt_tokens", "_room", "begun")

    def __init__(self) -> None:
        self.begun: Numbered[int, bool] = Numbered()
        """The choices that have been seen, and whether each has finished."""
        self._prompt_tokens: Any = None
        self._choices: Numbered[int, Choice] = Numbered()
        self._room = Room()

    @property
    def is_finished(self) -> bool:
        """A finish word has come for every choice that began, and at least one did."""
        return bool(self.begun) and all(self.begun.values())

    def decode(self, piece: dict[str, Any]) -> list[Event] | None:
        """The events of one piece; None where it has none of the shapes."""
        if _has_text(piece, "outputText"):
            # Titan's ``index`` counts pieces, not choices.
            events = [*self._choice(0, piece, "outputText", "completionReason")]
            return [*events, *self._usage(piece, "inputTextTokenCount", "totalOutputTextTokenCount")]
        if _has_text(piece, "generation"):
            events = [*self._choice(0, piece, "generation", "stop_reason")]
            return [*events, *self._usage(piece, "prompt_token_count", "generation_token_count")]
        if _has_text(piece, "completion"):
            return [*self._choice(0, piece, "completion", "stop_reason")]
        outputs = [as_dict(output) for output in as_list(piece.get("outputs"))]
        if outputs and all(_has_text(output, "text") for output in outputs):
            return [*within_bounds(self._outputs(outputs), "outputs", piece)]
        return self._chat(piece)

    def _chat(self, piece: dict[str, Any]) -> list[Event] | None:
        choices = [as_dict(choice) for choice in as_list(piece.get("choices"))]
        usage = as_dict(piece.get("usage"))
        is_last = bool(self._choices and usage) and piece.get("choices") == []
        if not (choices or is_last) or not all(map(_is_whole_choice, choices)):
            return None
        told = within_bounds(self._chat_choices(choices), "choices", piece)
        return [*told, *([openai_usage(usage)] if usage else [])]

    def _chat_choices(self, choices: list[dict[str, Any]]) -> Iterator[Event]:
        """Mistral's newer models and DeepSeek: OpenAI's choices, but with a ``message`` or a ``text`` for a delta."""
        for at, fields in enumerate(choices):
            given = as_int(fields.get("index"))
            index = at if given is None else given
            self.begun[index] = self.begun.get(index, False)
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = Choice(index, self._room)
            message = fields.get("message")
            delta = message if isinstance(message, dict) else {"content": fields.get("text")}
            native = as_text(fields.get("stop_reason")) or as_text(fields.get("finish_reason"))
            yield from choice.decode({"delta": delta, "finish_reason": native})
            if native:
                self.begun[index] = True

    def _outputs(self, outputs: list[dict[str, Any]]) -> Iterator[Event]:
        for at, output in enumerate(outputs):
            yield from self._choice(at, output, "text", "stop_reason")

    def _choice(self, index: int, fields: dict[str, Any], text_key: str, reason_key: str) -> Iterator[Event]:
        self.begun[index] = self.begun.get(index, False)
        text, native = as_text(fields.get(text_key)), as_text(fields.get(reason_key))
        if text:
            yield Token(index, text)
        if native:
            self.begun[index] = True
            yield Finish(index, FINISH_REASONS.get(native.lower(), "stop"), native)

    def _usage(self, piece: dict[str, Any], prompt_key: str, completion_key: str) -> Iterator[Event]:
        """Llama counts its prompt on the first piece alone, and what it generated on each."""
        if piece.get(prompt_key) is not None:
            self._prompt_tokens = piece[prompt_key]
        counts = {prompt_key: self._prompt_tokens, completion_key: piece.get(completion_key)}
        native = {key: count for key, count in counts.items() if count is not None}
        if native:
            prompt, completion = as_int(native.get(prompt_key)), as_int(native.get(completion_key))
            total = None if prompt is None or completion is None else prompt + completion
            yield Usage(prompt, completion, total, native=native)


def _has_text(piece: dict[str, Any], key: str) -> bool:
    """``key`` holds text or null: with anything else in it the piece is of another shape."""
    return key in piece and (piece[key] is None or isinstance(piece[key], str))


def _is_whole_choice(choice: dict[str, Any]) -> bool:
    return "delta" not in choice and (isinstance(choice.get("message"), dict) or _has_text(choice, "text"))
