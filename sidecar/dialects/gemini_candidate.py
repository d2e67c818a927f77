"""One candidate of a Gemini stream: its parts to events.

Owns what a candidate may hold: text, thoughts, calls whole or in pieces, media, sources, ratings, its finish reason.
Must not know responses, frames or errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Room
from sidecar.dialects.partial_arguments import PartialArguments
from sidecar.dialects.tool_calls import argument_text
from sidecar.events import Annotation, Event, Extension, Finish, FinishReason, Media, Reasoning, Token, ToolCall

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "ESCALATION": "content_filter",
    "PUP_LIMITED_DISABLED": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "IMAGE_OTHER": "content_filter",
    "CONTINUATION": "paused",
    # Other numbers than those below, where both APIs mean some filter by them.
    "7": "content_filter",
    "8": "content_filter",
}
"""Gemini's finish reasons; any other word says that something went wrong."""

_WORDS_OF_NUMBERS: Final = {
    0: "FINISH_REASON_UNSPECIFIED",
    1: "STOP",
    2: "MAX_TOKENS",
    3: "SAFETY",
    4: "RECITATION",
    5: "OTHER",
    11: "IMAGE_SAFETY",
}
"""What a finish reason means that is sent as its number, where the developer API and Vertex agree on that."""

_BLOCKS_OF_NUMBERS: Final = {
    0: "BLOCK_REASON_UNSPECIFIED",
    1: "SAFETY",
    2: "OTHER",
    3: "BLOCKLIST",
    4: "PROHIBITED_CONTENT",
}
"""The same of the reasons why a prompt was blocked."""

_UNSPECIFIED: Final = "FINISH_REASON_UNSPECIFIED"
_TOLD_PART_KEYS: Final = frozenset({"text", "thought", "thoughtSignature", "functionCall", "inlineData", "fileData"})
_SOURCE_KEYS: Final = ("citationMetadata", "groundingMetadata", "urlContextMetadata")
_TOLD_KEYS: Final = frozenset({"index", "content", "finishReason", *_SOURCE_KEYS})
_REPEATED_KEYS: Final = frozenset({*_SOURCE_KEYS, "safetyRatings", "finishMessage", "avgLogprobs", "tokenCount"})
"""Keys that come again with every chunk: each is told where its value has changed."""
_MEDIA_KINDS: Final = frozenset({"image", "audio", "video"})


class _PartialCall:
    """A call that is open: more of its arguments will come."""

    __slots__ = ("arguments", "number")

    def __init__(self, number: int, room: Room) -> None:
        self.number = number
        self.arguments = PartialArguments(room)


class Candidate:
    """What is known of one candidate so far."""

    __slots__ = ("_call_count", "_finish", "_open_call", "_room", "_told", "index", "spoke_on")

    def __init__(self, index: int, room: Room) -> None:
        self.index = index
        self._room = room
        self.spoke_on = False
        """Parts came behind a finish reason, so that such a mark says nothing of the end."""
        self._finish: Finish | None = None
        self._call_count = 0
        self._open_call: _PartialCall | None = None
        self._told: dict[str, Any] = {}

    @property
    def is_finished(self) -> bool:
        """A finish reason has come."""
        return self._finish is not None

    def decode(self, fields: dict[str, Any]) -> Iterator[Event]:
        """The events of one element of ``candidates``."""
        parts = as_list(as_dict(fields.get("content")).get("parts"))
        if parts and self._finish is not None:
            self.spoke_on = True
        logprobs = fields.get("logprobsResult")
        for part in parts:
            for event in self._part(as_dict(part), part):
                if logprobs and isinstance(event, Token):
                    event.logprobs, logprobs = logprobs, None
                yield event
        for key in _SOURCE_KEYS:
            if self._is_news(key, fields):
                yield Annotation(self.index, {key: fields[key]})
        for key in fields:
            if key not in _TOLD_KEYS and self._is_news(key, fields) and (key != "logprobsResult" or logprobs):
                yield self._extension(key, {key: fields[key]})
        yield from self._finished(_finish_word(fields.get("finishReason")))

    def block(self, reason: Any) -> Iterator[Event]:
        """The finish mark of an answer that never began, because of its prompt."""
        number = as_int(reason)
        native = as_text(reason) if number is None else _BLOCKS_OF_NUMBERS.get(number, str(number))
        if native and "UNSPECIFIED" not in native:
            self._finish = Finish(self.index, "content_filter", native)
            yield self._finish

    def _is_news(self, key: str, fields: dict[str, Any]) -> bool:
        value = fields.get(key)
        if not value or value == self._told.get(key):
            return False
        if key in _REPEATED_KEYS:
            self._told[key] = value
        return True

    def _extension(self, kind: str, fields: dict[str, Any]) -> Extension:
        return Extension(kind, {"index": self.index, **fields})

    def _finished(self, native: str) -> Iterator[Event]:
        if not native or native == _UNSPECIFIED:
            return
        yield from self._close_call()
        reason = FINISH_REASONS.get(native, "error")
        # Gemini says "STOP" for calls as well.
        mark = Finish(self.index, "tool_calls" if reason == "stop" and self._call_count else reason, native)
        if mark != self._finish:
            self._finish = mark
            yield mark

    def _part(self, part: dict[str, Any], value: Any) -> Iterator[Event]:
        text, signature = as_text(part.get("text")), as_text(part.get("thoughtSignature"))
        is_thought = part.get("thought") is True
        if signature or (is_thought and text):
            yield Reasoning(self.index, text if is_thought else "", signature or None)
        others = [key for key in part if key not in _TOLD_PART_KEYS and part[key] is not None]
        if others:
            yield self._extension(others[0], part)
        elif not isinstance(value, dict):
            yield self._extension("part", {"part": value})
        if text and not is_thought:
            yield Token(self.index, text)
        if part.get("functionCall") is not None:
            yield from self._call(as_dict(part["functionCall"]))
        for key, content in (("inlineData", "data"), ("fileData", "fileUri")):
            if part.get(key) is not None:
                yield self._media(key, as_dict(part[key]), content, part, is_thought=is_thought)

    def _media(self, key: str, media: dict[str, Any], content: str, part: Any, *, is_thought: bool) -> Event:
        mime_type, data = as_text(media.get("mimeType")), as_text(media.get(content))
        if is_thought or not data:  # a sketch that was thrown away is no output
            return self._extension("thought" if is_thought else key, part)
        kind = mime_type.partition("/")[0]
        return Media(self.index, kind if kind in _MEDIA_KINDS else "file", mime_type, data)

    def _call(self, call: dict[str, Any]) -> Iterator[Event]:
        name, call_id = as_text(call.get("name")), as_text(call.get("id"))
        args, partial = call.get("args"), as_list(call.get("partialArgs"))
        continues = call.get("willContinue") is True
        if name:
            yield from self._close_call()
        if self._open_call is None:
            if not name:
                if call:  # an empty one closes a call that is closed already
                    yield self._extension("functionCall", {"functionCall": call})
                return
            if not partial and not continues:
                yield ToolCall(self.index, self._next_call(), argument_text(args), call_id or None, name)
                return
            self._open_call = _PartialCall(self._next_call(), self._room)
            yield ToolCall(self.index, self._open_call.number, "", call_id or None, name)
        yield from self._arguments(self._open_call, args, partial)
        if not continues:
            yield from self._close_call()

    def _arguments(self, call: _PartialCall, args: Any, partial: list[Any]) -> Iterator[Event]:
        text = ""
        for piece in partial:
            value = as_dict(piece)
            addition = call.arguments.add(as_text(value.get("jsonPath")), _value(value))
            if addition is None and not _only_closes(value):
                yield self._extension("partialArgs", {"call": call.number, "partialArgs": [piece]})
            text += addition or ""
        if text:
            yield ToolCall(self.index, call.number, text)
        if args and call.arguments.has_begun:
            yield self._extension("functionCall", {"call": call.number, "args": args})
        elif args:
            self._open_call = None
            yield ToolCall(self.index, call.number, argument_text(args))

    def _close_call(self) -> Iterator[Event]:
        call, self._open_call = self._open_call, None
        if call is not None:
            yield ToolCall(self.index, call.number, call.arguments.close())

    def _next_call(self) -> int:
        self._call_count += 1
        return self._call_count - 1


def _finish_word(reason: Any) -> str:
    number = as_int(reason)
    return as_text(reason) if number is None else _WORDS_OF_NUMBERS.get(number, str(number))


_VALUE_KEYS: Final = ("stringValue", "numberValue", "boolValue")


def _value(piece: dict[str, Any]) -> Any:
    """The value of one partial argument; null is a value too."""
    return next((piece[key] for key in _VALUE_KEYS if piece.get(key) is not None), None)


def _only_closes(piece: dict[str, Any]) -> bool:
    """A partial argument without a value: it ends the one before it."""
    return not any(key in piece for key in (*_VALUE_KEYS, "nullValue"))
