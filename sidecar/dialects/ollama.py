"""Ollama's own streams, ``/api/chat`` and ``/api/generate``.

Owns both object shapes, which differ only in where text and calls lie. Must not know NDJSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.lenient_json import as_dict, as_list, as_text
from sidecar.dialects.numbered import Room
from sidecar.dialects.payloads import named_extension, object_of, read_object
from sidecar.dialects.start_gate import StartGate
from sidecar.dialects.token_usage import ollama_usage
from sidecar.dialects.tool_calls import ToolCalls, argument_text
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, FinishReason, Frame, Media, Reasoning, Token

FINISH_REASONS: Final[dict[str, FinishReason]] = {"stop": "stop", "length": "length"}
"""Ollama's done reasons; any other word ("load", "unload") is a stop."""


class _PlainMessage(msgspec.Struct, gc=False):
    content: str = ""
    thinking: str = ""
    tool_calls: None = None
    images: None = None


class _PlainChat(msgspec.Struct, gc=False):
    """A key that means something is typed null here: with any other value the parser refuses the object."""

    message: _PlainMessage
    done: bool = False
    error: None = None
    logprobs: None = None


class _PlainGenerate(msgspec.Struct, gc=False):
    response: str
    thinking: str = ""
    done: bool = False
    error: None = None
    logprobs: None = None
    tool_calls: None = None
    image: None = None
    completed: None = None


_decode_plain_chat = msgspec.json.Decoder(_PlainChat).decode
_decode_plain_generate = msgspec.json.Decoder(_PlainGenerate).decode


class _Ollama(ABC):
    """What both streams share. There is one choice, number 0; ``done: true`` is finish mark and terminator in one."""

    framings: ClassVar[tuple[str, ...]] = ("ndjson",)
    streams_by_default: ClassVar[bool] = True
    has_terminator: ClassVar[bool] = True
    completes_on_clean_end: ClassVar[bool] = False
    tolerates_partial_frame: ClassVar[bool] = False
    plain_start: ClassVar[bytes] = b""

    __slots__ = ("_calls", "_gate", "_has_calls", "terminated")

    def __init__(self) -> None:
        self.terminated = False
        self._gate = StartGate()
        self._calls = ToolCalls(0, Room())
        self._has_calls = False

    def finish(self) -> Sequence[Event]:
        """What was held back for a model name that never came."""
        return self._gate.release()

    @property
    def is_finished(self) -> bool:
        """``done: true`` has come."""
        return self.terminated

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The error line the official package raises on."""
        return msgspec.json.encode({"error": failure.message}) + b"\n"

    def _decode_full(self, frame: Frame) -> Sequence[Event]:
        data = frame.data
        if self.terminated or not data:
            return ()
        payload = read_object(data)
        if not isinstance(payload, dict):
            return self._gate.admit([payload], named=False)
        model = as_text(payload.get("model"))
        return self._gate.admit(list(self._object(payload)), model=model, named=bool(model))

    def _object(self, fields: dict[str, Any]) -> Iterator[Event]:
        if self._is_known(fields):
            yield from self._content(fields)
        elif not fields.get("error"):
            yield named_extension("", fields)
        if fields.get("error"):
            yield upstream_error(fields["error"])
        elif fields.get("done") is True:
            yield from self._end(fields)

    @abstractmethod
    def _is_known(self, fields: dict[str, Any]) -> bool:
        """Whether an object is one of this stream's."""

    @abstractmethod
    def _content(self, fields: dict[str, Any]) -> Iterator[Event]:
        """What such an object holds beside its end."""

    def _pieces(self, text: Any, holder: dict[str, Any], logprobs: Any) -> Iterator[Event]:
        """Thinking, text and tool calls; ``holder`` is where the latter lie."""
        if as_text(holder.get("thinking")):
            yield Reasoning(0, holder["thinking"])
        if as_text(text):
            yield Token(0, text, logprobs or None)
        for call in as_list(holder.get("tool_calls")):
            self._has_calls = True
            function = as_dict(as_dict(call).get("function"))
            arguments = argument_text(function.get("arguments"))
            # Calls come whole, and their own index starts again with each object.
            yield self._calls.whole(as_text(as_dict(call).get("id")), as_text(function.get("name")), arguments)

    def _end(self, fields: dict[str, Any]) -> Iterator[Event]:
        self.terminated = True
        native = as_text(fields.get("done_reason")) or "stop"
        reason = FINISH_REASONS.get(native, "stop")
        # Ollama says "stop" for calls as well.
        yield Finish(0, "tool_calls" if self._has_calls and native == "stop" else reason, native)
        usage = ollama_usage(fields)
        if usage is not None:
            yield usage


class OllamaChat(_Ollama):
    """One ``/api/chat`` stream."""

    name: ClassVar[str] = "ollama-chat"
    paths: ClassVar[tuple[str, ...]] = ("/api/chat",)

    __slots__ = ()

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one object; nothing more after the one that is done."""
        if frame.data is not None and (event := self.decode_plain(frame.data)) is not None:
            return (event,)
        return self._decode_full(frame)

    def decode_plain(self, payload: bytes) -> Event | None:
        """The text or thinking of a message that holds nothing else."""
        if self.terminated or not self._gate.is_open:
            return None
        try:
            plain = _decode_plain_chat(payload)
        except (ValueError, RecursionError):
            return None
        message = plain.message
        return None if plain.done else _plain_event(message.content, message.thinking)

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """An object with a message, a model and a word on whether it is done."""
        fields = object_of(frame)
        return isinstance(fields.get("message"), dict) and "model" in fields and "done" in fields

    def _is_known(self, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get("message"), dict) or "done" in fields

    def _content(self, fields: dict[str, Any]) -> Iterator[Event]:
        message = as_dict(fields.get("message"))
        yield from self._pieces(message.get("content"), message, fields.get("logprobs"))
        for image in as_list(message.get("images")):
            if as_text(image):
                yield Media(0, "image", "image/*", image)


class OllamaGenerate(_Ollama):
    """One ``/api/generate`` stream."""

    name: ClassVar[str] = "ollama-generate"
    paths: ClassVar[tuple[str, ...]] = ("/api/generate",)

    __slots__ = ()

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one object; nothing more after the one that is done."""
        if frame.data is not None and (event := self.decode_plain(frame.data)) is not None:
            return (event,)
        return self._decode_full(frame)

    def decode_plain(self, payload: bytes) -> Event | None:
        """The text or thinking of an object that holds nothing else."""
        if self.terminated or not self._gate.is_open:
            return None
        try:
            plain = _decode_plain_generate(payload)
        except (ValueError, RecursionError):
            return None
        return None if plain.done else _plain_event(plain.response, plain.thinking)

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """An object with a response, a model and a word on whether it is done."""
        fields = object_of(frame)
        return isinstance(fields.get("response"), str) and "model" in fields and "done" in fields

    def _is_known(self, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get("response"), str) or "done" in fields

    def _content(self, fields: dict[str, Any]) -> Iterator[Event]:
        yield from self._pieces(fields.get("response"), fields, fields.get("logprobs"))
        if as_text(fields.get("image")):
            yield Media(0, "image", "image/*", fields["image"])
        elif fields.get("completed") is not None and not fields.get("done"):
            yield Extension("progress", fields)


def _plain_event(text: str, thinking: str) -> Event | None:
    if not thinking:
        return Token(0, text) if text else None
    return None if text else Reasoning(0, thinking)
