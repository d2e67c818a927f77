"""OpenAI Chat Completions streams and everything that calls itself compatible.

Owns chunks: which of them are plain tokens, which only begin, end or count, the terminator. Must not know what a delta
may hold (`openai_choice`), what lies beside the choices (`openai_chunk`) or how counts are read (`token_usage`).

Three lanes give the same events. The plain lane lets the JSON parser itself prove, by types alone, that a chunk is one
choice with text and nothing else; the lane of marks, that it only begins a choice, ends one or counts; whatever neither
can prove goes through the full lane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Room, TooManyError, within_bounds
from sidecar.dialects.openai_choice import Choice
from sidecar.dialects.openai_chunk import error_chunk, error_of, vendor_extensions
from sidecar.dialects.payloads import event_name, named_extension, object_of, read_object
from sidecar.dialects.start_gate import StartGate
from sidecar.dialects.token_usage import openai_usage
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure
from sidecar.events import Annotation, Event, Extension, Frame, Reasoning, Token


class _PlainFunction(msgspec.Struct, gc=False):
    arguments: str
    name: None = None


class _PlainCall(msgspec.Struct, gc=False):
    """The continuation of a call: arguments alone."""

    index: int
    function: _PlainFunction
    id: None = None


class _PlainDetail(msgspec.Struct, gc=False):
    """A detail that only repeats ``reasoning``."""

    type: Literal["reasoning.text", "reasoning.summary"]
    signature: None = None


class _PlainDelta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_text: None = None
    thinking: None = None
    reasoning_details: list[_PlainDetail] | None = None
    refusal: Literal[""] | None = None
    tool_calls: tuple[_PlainCall] | None = None
    function_call: None = None
    annotations: tuple[()] | None = None
    audio: None = None
    images: tuple[()] | None = None


class _PlainChoice(msgspec.Struct, gc=False):
    delta: _PlainDelta
    index: int = 0
    finish_reason: Literal[""] | None = None
    logprobs: None = None
    usage: None = None
    error: None = None


class _PlainChunk(msgspec.Struct, gc=False):
    """A key that means something is typed null here: with any other value the parser refuses the chunk."""

    choices: tuple[_PlainChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: None = None
    error: None = None
    x_groq: None = None
    citations: None = None
    search_results: None = None
    moderation: None = None
    prompt_filter_results: None = None
    prompt_progress: None = None
    sglext: None = None


class _MarkDelta(msgspec.Struct, gc=False):
    """A delta that says nothing: a role at most."""

    role: str | None = None
    content: Literal[""] | None = None
    reasoning_content: Literal[""] | None = None
    reasoning: Literal[""] | None = None
    reasoning_text: None = None
    thinking: None = None
    reasoning_details: None = None
    refusal: Literal[""] | None = None
    tool_calls: tuple[()] | None = None
    function_call: None = None
    annotations: tuple[()] | None = None
    audio: None = None
    images: tuple[()] | None = None


class _MarkChoice(msgspec.Struct, gc=False):
    delta: _MarkDelta
    index: int = 0
    finish_reason: str | None = None
    logprobs: None = None
    usage: None = None
    error: None = None


class _MarkChunk(msgspec.Struct, gc=False):
    """A chunk that begins a choice, ends one, or counts tokens, and has no content."""

    choices: Annotated[list[_MarkChoice], msgspec.Meta(max_length=1)]
    id: str | None = None
    model: str | None = None
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: dict[str, Any] | None = None
    error: None = None
    x_groq: None = None
    citations: None = None
    search_results: None = None
    moderation: None = None
    prompt_filter_results: None = None
    prompt_progress: None = None
    sglext: None = None


_BRACE = ord("{")
_decode_plain = msgspec.json.Decoder(_PlainChunk).decode
_decode_mark = msgspec.json.Decoder(_MarkChunk).decode

_SOURCE_KEYS = ("citations", "search_results")


class OpenAIChat:
    """One chat completion stream."""

    name: ClassVar[str] = "openai-chat"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    # Mistral streams its two other kinds of completion in chat chunks.
    paths: ClassVar[tuple[str, ...]] = ("/chat/completions", "/fim/completions", "/agents/completions")
    streams_by_default: ClassVar[bool] = False
    has_terminator: ClassVar[bool] = True
    completes_on_clean_end: ClassVar[bool] = False
    tolerates_partial_frame: ClassVar[bool] = False
    plain_start: ClassVar[bytes] = b"data: "

    __slots__ = ("_choices", "_gate", "_room", "_sources", "terminated")

    def __init__(self) -> None:
        self.terminated = False
        self._gate = StartGate()
        self._room = Room()
        self._choices: dict[int, Choice] = {}
        self._sources: dict[str, Any] = {}

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one chunk; nothing more once ``[DONE]`` has come."""
        data = frame.data
        if frame.name is None and data and data[0] == _BRACE:
            if (event := self.decode_plain(data)) is not None:
                return (event,)
            if (events := self._decode_marks(data)) is not None:
                return events
        return self._decode_full(frame)

    def _decode_marks(self, payload: bytes) -> Sequence[Event] | None:
        """The start, finish mark or usage of a chunk without content; None for any other."""
        if self.terminated:
            return ()
        try:
            chunk = _decode_mark(payload)
        except (ValueError, RecursionError):
            return None
        if not chunk.choices and not chunk.usage:
            return None
        events: list[Event] = []
        for element in chunk.choices:
            try:
                choice = self._choice_of(element.index)
            except TooManyError:
                return None
            if element.finish_reason and (mark := choice.finish(element.finish_reason)) is not None:
                events.append(mark)
        if chunk.usage:
            events.append(openai_usage(chunk.usage))
        response_id = chunk.id or ""
        return self._gate.admit(events, response_id=response_id, model=chunk.model or "", named=bool(response_id))

    def decode_plain(self, payload: bytes) -> Event | None:
        """The text, reasoning or arguments of a chunk that is one choice with nothing else."""
        if self.terminated or not self._gate.is_open:
            return None
        try:
            choice = _decode_plain(payload).choices[0]
        except (ValueError, RecursionError):
            return None
        index, delta = choice.index, choice.delta
        if index not in self._choices:
            return None
        thought = delta.reasoning_content or delta.reasoning
        if delta.tool_calls is None:
            if not thought:
                return Token(index, delta.content) if delta.content else None
            return None if delta.content else Reasoning(index, thought)
        if thought or delta.content:
            return None
        call = delta.tool_calls[0]
        try:
            return self._choices[index].tool_calls.fragment(call.index, "", "", call.function.arguments)
        except TooManyError:
            return None

    def finish(self) -> Sequence[Event]:
        """What was held back for an id that never came."""
        return self._gate.release()

    @property
    def is_finished(self) -> bool:
        """Every choice that began has its finish reason."""
        return bool(self._choices) and all(choice.finish_native for choice in self._choices.values())

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A chunk calls itself one, or has choices with deltas."""
        fields = object_of(frame)
        if as_text(fields.get("object")).startswith("chat."):
            return True
        choices = as_list(fields.get("choices"))
        return bool(choices) and "delta" in as_dict(choices[0])

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The error chunk the official package raises on."""
        return error_chunk(failure)

    def _decode_full(self, frame: Frame) -> Sequence[Event]:
        data = frame.data
        if self.terminated or not data:
            return ()
        if data.startswith(b"[DONE]"):
            self.terminated = True
            return ()
        name = event_name(frame)
        payload = read_object(data, name)
        if not isinstance(payload, dict):
            return self._gate.admit([payload], named=False)
        response_id, model = as_text(payload.get("id")), as_text(payload.get("model"))
        events = list(self._payload(payload, name))
        return self._gate.admit(events, response_id=response_id, model=model, named=bool(response_id))

    def _payload(self, payload: dict[str, Any], name: str) -> Iterator[Event]:
        error = error_of(payload, name)
        choices = payload.get("choices")
        if isinstance(choices, list):
            yield from self._chunk(payload, choices, name, has_error=error is not None)
        else:
            yield from self._usage(payload, [])
            if error is None and not as_dict(payload.get("usage")):
                yield named_extension(name, payload)
        if error is not None:
            yield error

    def _chunk(self, payload: dict[str, Any], choices: list[Any], name: str, *, has_error: bool) -> Iterator[Event]:
        kind = as_text(payload.get("object"))
        if kind.startswith("chat.reasoning"):
            yield Extension(kind, payload)
        elif name and name != "error" and not choices:
            yield Extension(name, payload)
        else:
            yield from vendor_extensions(payload, is_bare=not choices and not has_error)
        for element in choices:
            yield from within_bounds(self._choice(as_dict(element)), "choice", element)
        yield from self._new_sources(payload)
        yield from self._usage(payload, choices)

    def _choice(self, element: dict[str, Any]) -> Iterator[Event]:
        yield from self._choice_of(as_int(element.get("index")) or 0).decode(element)
        if element.get("error"):
            yield upstream_error(element["error"])

    def _choice_of(self, index: int) -> Choice:
        choice = self._choices.get(index)
        if choice is None:
            self._room.take()
            choice = self._choices[index] = Choice(index, self._room)
        return choice

    def _new_sources(self, payload: dict[str, Any]) -> Iterator[Event]:
        """Perplexity repeats its whole list of sources on every chunk: each distinct list is told once."""
        for key in _SOURCE_KEYS:
            sources = as_list(payload.get(key))
            if sources and sources != self._sources.get(key):
                self._sources[key] = sources
                yield Annotation(0, {key: sources})

    def _usage(self, payload: dict[str, Any], choices: list[Any]) -> Iterator[Event]:
        """Top-level usage, else Groq's own, else the usage older Kimi versions put into a choice."""
        places = [payload, as_dict(payload.get("x_groq")), *(as_dict(choice) for choice in choices)]
        native = next((usage for place in places if (usage := as_dict(place.get("usage")))), None)
        if native is not None:
            yield openai_usage(native)
