"""One message in the words of Bedrock's Converse API, which Nova uses in its own stream as well.

Owns what each event of such a message means. Must not know how events are framed or wrapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sidecar.dialects.lenient_json import as_dict, as_int, as_text
from sidecar.dialects.numbered import Numbered, Room, within_bounds
from sidecar.dialects.payloads import named_extension
from sidecar.dialects.token_usage import bedrock_usage
from sidecar.dialects.tool_calls import ToolCalls, argument_text
from sidecar.events import Annotation, Event, Extension, Finish, FinishReason, Media, Reasoning, Token

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "error",
    "malformed_tool_use": "error",
}
"""Converse's stop reasons; any other word is a stop."""

EVENT_TYPES: Final = frozenset(
    {"messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"}
)

_PADDING: Final = "p"
"""Junk that hides a payload's length from who listens on the wire."""

_SERVER_TOOL: Final = "server_tool_use"


class ConverseMessage:
    """What is known of one message so far. It is one choice, number 0."""

    __slots__ = ("_blocks", "_calls", "_has_metadata", "is_finished", "is_over")

    def __init__(self) -> None:
        self.is_finished = False
        """``messageStop`` has come."""
        self.is_over = False
        """So has ``metadata``; the two are the last that is said of a message, in either order."""
        self._has_metadata = False
        self._calls = ToolCalls(0, Room())
        # Of the blocks that are open: the type of an image, or that the service itself acts in it.
        self._blocks: Numbered[int, str] = Numbered()

    def decode(self, kind: str, payload: dict[str, Any]) -> Iterator[Event]:
        """The events of one event of type ``kind``."""
        return within_bounds(self._event(kind, payload), kind, payload)

    def _event(self, kind: str, payload: dict[str, Any]) -> Iterator[Event]:
        fields = {key: value for key, value in payload.items() if key != _PADDING}
        index = as_int(fields.get("contentBlockIndex")) or 0
        if kind == "contentBlockDelta":
            for member, value in as_dict(fields.get("delta")).items():
                yield from self._delta(index, member, value, fields)
        elif kind == "contentBlockStart":
            self._blocks.pop(index, None)
            for member, value in as_dict(fields.get("start")).items():
                yield from self._start(index, member, as_dict(value), fields)
        elif kind == "contentBlockStop":
            self._blocks.pop(index, None)
        elif kind == "messageStop":
            yield from self._stop(fields)
        elif kind == "metadata":
            yield from self._metadata(fields)
        elif kind != "messageStart":
            yield named_extension(kind, fields)

    def _start(self, index: int, member: str, start: dict[str, Any], fields: dict[str, Any]) -> Iterator[Event]:
        if member == "toolUse" and start.get("type") != _SERVER_TOOL:
            call = self._calls.fragment(index, as_text(start.get("toolUseId")), as_text(start.get("name")), "")
            if call is not None:
                yield call
        elif member == "toolUse":
            self._blocks[index] = _SERVER_TOOL
            yield Extension(_SERVER_TOOL, fields)
        elif member == "image":
            self._blocks[index] = f"image/{as_text(start.get('format')) or '*'}"
        else:
            yield Extension(member, fields)

    def _delta(self, index: int, member: str, value: Any, fields: dict[str, Any]) -> Iterator[Event]:
        if member == "text":
            if as_text(value):
                yield Token(0, value)
        elif member == "toolUse" and self._blocks.get(index) == _SERVER_TOOL:
            yield Extension(_SERVER_TOOL, fields)
        elif member == "toolUse":
            call = self._calls.fragment(index, "", "", argument_text(as_dict(value).get("input")))
            if call is not None:
                yield call
        elif member == "reasoningContent":
            yield from _reasoning(as_dict(value), fields)
        elif member == "citation":
            yield Annotation(0, value)
        elif member == "image":
            yield self._image(index, as_dict(as_dict(value).get("source")), fields)
        else:
            yield Extension(member, fields)

    def _image(self, index: int, source: dict[str, Any], fields: dict[str, Any]) -> Event:
        data = as_text(source.get("bytes")) or as_text(as_dict(source.get("s3Location")).get("uri"))
        if not data:
            return Extension("image", fields)
        known = self._blocks.get(index, _SERVER_TOOL)
        return Media(0, "image", "image/*" if known == _SERVER_TOOL else known, data)

    def _stop(self, fields: dict[str, Any]) -> Iterator[Event]:
        native = as_text(fields.get("stopReason"))
        self.is_finished = True
        self.is_over = self._has_metadata
        yield Finish(0, FINISH_REASONS.get(native, "stop"), native)
        more = fields.get("additionalModelResponseFields")
        if more is not None:
            yield Extension("additionalModelResponseFields", more)

    def _metadata(self, fields: dict[str, Any]) -> Iterator[Event]:
        self._has_metadata = True
        self.is_over = self.is_finished
        usage = as_dict(fields.get("usage"))
        if usage:
            yield bedrock_usage(usage)
        rest = {key: value for key, value in fields.items() if key != "usage"}
        if rest:
            yield Extension("metadata", rest)


def _reasoning(content: dict[str, Any], fields: dict[str, Any]) -> Iterator[Event]:
    text, signature = as_text(content.get("text")), as_text(content.get("signature"))
    if text or signature:
        yield Reasoning(0, text, signature or None)
    for member in content:
        if member not in ("text", "signature"):
            yield Extension(member, fields)
