"""Cohere v2 chat streams, ``/v2/chat``.

Owns the events of one message. Must not know the older ``/v1/chat``, whose lines pass as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.done_mark import DoneMarked
from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Room
from sidecar.dialects.payloads import named_extension, object_of
from sidecar.dialects.tool_calls import ToolCalls, argument_text
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure, Outcome
from sidecar.events import Annotation, Event, Finish, FinishReason, Frame, Reasoning, Token, UpstreamError, Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR": "error",
    "TIMEOUT": "error",
}
"""Cohere's finish reasons; any other word is a stop."""

_STRUCTURE: Final = frozenset({"message-start", "content-end", "tool-call-end", "citation-end"})
"""Events that say only where something begins or ends, which the others tell as well."""


class Cohere(DoneMarked):
    """One message stream. It has one choice, number 0; tool calls and content are counted apart from each other."""

    name: ClassVar[str] = "cohere"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/v2/chat",)

    __slots__ = ("_calls", "_has_ended")

    def __init__(self) -> None:
        super().__init__()
        self._calls = ToolCalls(0, Room())
        self._has_ended = False

    @property
    def is_finished(self) -> bool:
        """``message-end`` has come."""
        return self._has_ended

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A ``message-start``, spelled with a hyphen."""
        return object_of(frame).get("type") == "message-start"

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The ``message-end`` that tells the official package's user of an error."""
        reason = "TIMEOUT" if failure.outcome is Outcome.TIMED_OUT else "ERROR"
        fields = {"type": "message-end", "delta": {"finish_reason": reason, "error": failure.message}}
        return b"event: message-end\ndata: " + msgspec.json.encode(fields) + b"\n\n"

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        is_start = fields.get("type") == "message-start"
        return (as_text(fields.get("id")) if is_start else ""), "", is_start

    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        kind = as_text(fields.get("type")) or name
        delta = as_dict(fields.get("delta"))
        message = as_dict(delta.get("message"))
        if kind in ("content-delta", "content-start"):
            yield from self._content(fields, message, kind)
        elif kind == "tool-plan-delta":
            if as_text(message.get("tool_plan")):
                yield Reasoning(0, message["tool_plan"])
        elif kind in ("tool-call-start", "tool-call-delta"):
            yield from self._call(as_int(fields.get("index")), message.get("tool_calls"))
        elif kind == "citation-start":
            for citation in _one_or_many(message.get("citations")):
                yield Annotation(0, citation)
        elif kind == "message-end":
            yield from self._end(delta)
        elif "error" in (kind, name) or fields.get("error"):
            yield upstream_error(fields.get("error") or fields)
        elif kind not in _STRUCTURE:
            yield named_extension(kind, fields)

    def _content(self, fields: dict[str, Any], message: dict[str, Any], kind: str) -> Iterator[Event]:
        content = as_dict(message.get("content"))
        thinking, text = as_text(content.get("thinking")), as_text(content.get("text"))
        if thinking:
            yield Reasoning(0, thinking)
        if text:
            yield Token(0, text, fields.get("logprobs") or None)
        if not thinking and not text and content.keys() - {"thinking", "text"} and not _is_known(content):
            yield named_extension(kind, fields)

    def _call(self, index: int | None, calls: Any) -> Iterator[Event]:
        """A call is an object here, not a list of them; a list is taken for several pieces of the one call."""
        for call in _one_or_many(calls):
            fields = as_dict(call)
            function = as_dict(fields.get("function"))
            arguments = argument_text(function.get("arguments"))
            call_id, name = as_text(fields.get("id")), as_text(function.get("name"))
            if (event := self._calls.fragment(index, call_id, name, arguments)) is not None:
                yield event

    def _end(self, delta: dict[str, Any]) -> Iterator[Event]:
        native = as_text(delta.get("finish_reason"))
        reason = FINISH_REASONS.get(native, "stop")
        self._has_ended = True
        if native:
            yield Finish(0, reason, native)
        usage = as_dict(delta.get("usage"))
        if usage:
            yield _usage(usage)
        if delta.get("error") or reason == "error":
            yield _end_error(delta, native)


def _usage(native: dict[str, Any]) -> Usage:
    """The counts of ``tokens``, not those billed, which leave out what Cohere puts around a prompt."""
    tokens = as_dict(native.get("tokens"))
    prompt, completion = as_int(tokens.get("input_tokens")), as_int(tokens.get("output_tokens"))
    total = None if prompt is None or completion is None else prompt + completion
    return Usage(prompt, completion, total, as_int(native.get("cached_tokens")), native=native)


def _end_error(delta: dict[str, Any], native: str) -> UpstreamError:
    said = upstream_error(delta.get("error") or native)
    is_timeout = native == "TIMEOUT"
    return UpstreamError(said.message, delta, said.provider_code or native, said.upstream_status, is_timeout)


def _is_known(content: dict[str, Any]) -> bool:
    return content.get("type") in ("text", "thinking")


def _one_or_many(value: Any) -> list[Any]:
    return [value] if isinstance(value, dict) else as_list(value)
