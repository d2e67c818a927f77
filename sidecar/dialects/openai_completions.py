"""OpenAI's text completions, the API before chat, as vLLM, llama.cpp, TGI, SGLang, Ollama and gateways still serve it.

Owns chunks whose choices hold text: which of them are plain tokens, finish marks, the terminator. Must not know what
lies beside the choices (`openai_chunk`) or how counts are read (`token_usage`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from sidecar.dialects.json_stream import JsonStream
from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Numbered, within_bounds
from sidecar.dialects.openai_choice import FINISH_REASONS
from sidecar.dialects.openai_chunk import error_chunk, error_of, vendor_extensions
from sidecar.dialects.payloads import named_extension, object_of
from sidecar.dialects.token_usage import openai_usage
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, Frame, Reasoning, Token


class _PlainChoice(msgspec.Struct, gc=False):
    text: str
    index: int = 0
    finish_reason: Literal[""] | None = None
    logprobs: None = None
    reasoning_content: Literal[""] | None = None
    reasoning: Literal[""] | None = None
    error: None = None


class _PlainChunk(msgspec.Struct, gc=False):
    """A key that means something is typed null here: with any other value the parser refuses the chunk."""

    choices: tuple[_PlainChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: None = None
    error: None = None
    x_groq: None = None
    moderation: None = None
    prompt_filter_results: None = None
    prompt_progress: None = None
    sglext: None = None


_decode_plain = msgspec.json.Decoder(_PlainChunk).decode

_BARE_KEYS = frozenset({"index", "finish_reason", "logprobs", "reasoning_content", "reasoning", "error"})
"""A choice without text that has nothing but these says no more than they do."""


class OpenAICompletions(JsonStream):
    """One text completion stream. Its choices count over all prompts and all their continuations."""

    name: ClassVar[str] = "openai-completions"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/completions",)
    plain_start: ClassVar[bytes] = b"data: "

    __slots__ = ("_finishes",)

    def __init__(self) -> None:
        super().__init__()
        self._finishes: Numbered[int, str] = Numbered()
        """By choice, the upstream's last finish word, "" before there is one."""

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one chunk; nothing more once ``[DONE]`` has come."""
        data = frame.data
        if data is None:
            return ()
        if frame.name is None and (event := self.decode_plain(data)) is not None:
            return (event,)
        if data.startswith(b"[DONE]"):
            self.terminated = True
            return ()
        return super().decode(frame)

    def decode_plain(self, payload: bytes) -> Event | None:
        """The text of a chunk that is one choice with nothing else."""
        if self.terminated or not self._gate.is_open:
            return None
        try:
            choice = _decode_plain(payload).choices[0]
        except (ValueError, RecursionError):
            return None
        return Token(choice.index, choice.text) if choice.text and choice.index in self._finishes else None

    @property
    def is_finished(self) -> bool:
        """Every choice that began has its finish reason."""
        return bool(self._finishes) and all(self._finishes.values())

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A chunk calls itself one, or has choices with text and without deltas or messages."""
        fields = object_of(frame)
        if as_text(fields.get("object")) == "text_completion":
            return True
        choices = as_list(fields.get("choices"))
        first = as_dict(choices[0]) if choices else {}
        return isinstance(first.get("text"), str) and not first.keys() & {"delta", "message"}

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The error chunk the official package raises on."""
        return error_chunk(failure)

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        response_id = as_text(fields.get("id"))
        return response_id, as_text(fields.get("model")), bool(response_id)

    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        error = error_of(fields, name)
        choices, usage = fields.get("choices"), as_dict(fields.get("usage"))
        if isinstance(choices, list):
            if name and name != "error" and not choices:
                yield Extension(name, fields)
            else:
                yield from vendor_extensions(fields, is_bare=not choices and error is None)
            for element in choices:
                yield from within_bounds(self._choice(as_dict(element)), "choice", element)
        elif error is None and not usage:
            yield named_extension(name, fields)
        if usage:
            yield openai_usage(usage)
        if error is not None:
            yield error

    def _choice(self, choice: dict[str, Any]) -> Iterator[Event]:
        index = as_int(choice.get("index")) or 0
        known = self._finishes.get(index, "")
        self._finishes[index] = known
        thought = as_text(choice.get("reasoning_content")) or as_text(choice.get("reasoning"))
        if thought:
            yield Reasoning(index, thought)
        text = choice.get("text")
        if isinstance(text, str):
            if text:
                yield Token(index, text, as_dict(choice.get("logprobs")) or None)
        elif any(value for key, value in choice.items() if key not in _BARE_KEYS):
            yield Extension("content_filter" if "content_filter_results" in choice else "choice", choice)
        # TGI sends "" where others send null.
        native = as_text(choice.get("finish_reason"))
        if native and native != known:
            self._finishes[index] = native
            yield Finish(index, FINISH_REASONS.get(native, "stop"), native)
        if choice.get("error"):
            yield upstream_error(choice["error"])
