"""Anthropic Messages streams, also as Vertex, vLLM, SGLang, llama.cpp and gateways send them.

Owns the events of one message and how its content blocks become text, thinking and tool calls. Must not know which of
the senders it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, Literal

import msgspec

from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import MAX_NUMBERED, Numbered, within_bounds
from sidecar.dialects.payloads import event_name, named_extension, object_of, read_object
from sidecar.dialects.start_gate import StartGate
from sidecar.dialects.token_usage import anthropic_usage
from sidecar.dialects.tool_calls import argument_text
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure, Outcome
from sidecar.events import Annotation, Event, Extension, Finish, FinishReason, Frame, Reasoning, Token, ToolCall

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "pause_turn": "paused",
    "compaction": "paused",
}
"""Anthropic's stop reasons; any other word is a stop."""

_ERROR_TYPES: Final[dict[Outcome, str]] = {
    Outcome.TIMED_OUT: "timeout_error",
    Outcome.REFUSED: "overloaded_error",
    Outcome.SHUT_DOWN: "overloaded_error",
}


class _PlainDelta(msgspec.Struct, gc=False):
    type: str
    text: str = ""
    thinking: str = ""
    partial_json: str = ""


class _PlainBlockDelta(msgspec.Struct, gc=False):
    type: Literal["content_block_delta"]
    delta: _PlainDelta
    index: int = 0


_decode_plain = msgspec.json.Decoder(_PlainBlockDelta).decode


class _Tool:
    """A ``tool_use`` block that is open."""

    __slots__ = ("call", "held_input")

    def __init__(self, call: int, held_input: str) -> None:
        self.call = call
        self.held_input = held_input
        """Arguments the block's start came with: they count only if no delta does, as in the official package."""


class Anthropic:
    """One message stream. It has one choice, number 0."""

    name: ClassVar[str] = "anthropic"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/v1/messages", "/publishers/anthropic/models/*:streamRawPredict")
    streams_by_default: ClassVar[bool] = False
    has_terminator: ClassVar[bool] = True
    completes_on_clean_end: ClassVar[bool] = False
    tolerates_partial_frame: ClassVar[bool] = False
    plain_start: ClassVar[bytes] = b"event: content_block_delta\ndata: "

    __slots__ = (
        "_call_count",
        "_gate",
        "_message_id",
        "_opaque_blocks",
        "_stop_reason",
        "_tools",
        "_usage",
        "terminated",
    )

    def __init__(self) -> None:
        self.terminated = False
        self._gate = StartGate()
        self._message_id: str | None = None
        self._stop_reason = ""
        self._usage: dict[str, Any] = {}
        self._call_count = 0
        self._tools: Numbered[int, _Tool] = Numbered()
        self._opaque_blocks: Numbered[int, str] = Numbered()

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame; nothing more once ``message_stop`` has come."""
        if frame.data is not None and (event := self.decode_plain(frame.data)) is not None:
            return (event,)
        return self._decode_full(frame)

    def decode_plain(self, payload: bytes) -> Event | None:
        """The text, thinking or tool input of a block's delta."""
        if self.terminated or not self._gate.is_open:
            return None
        try:
            plain = _decode_plain(payload)
        except (ValueError, RecursionError):
            return None
        delta = plain.delta
        if delta.type == "text_delta":
            return Token(0, delta.text) if delta.text else None
        if delta.type == "thinking_delta":
            return Reasoning(0, delta.thinking) if delta.thinking else None
        tool = self._tools.get(plain.index)
        if delta.type != "input_json_delta" or tool is None or tool.held_input or not delta.partial_json:
            return None
        return ToolCall(0, tool.call, delta.partial_json)

    def finish(self) -> Sequence[Event]:
        """What was held back for a ``message_start`` that never came."""
        return self._gate.release()

    @property
    def is_finished(self) -> bool:
        """A ``stop_reason`` has come."""
        return bool(self._stop_reason)

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A ``message_start``, or the ``vertex_event`` that may come before it."""
        return as_text(object_of(frame).get("type")) in {"message_start", "vertex_event"}

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The ``error`` event the official package raises on."""
        error = {"type": _ERROR_TYPES.get(failure.outcome, "api_error"), "message": failure.message}
        return b"event: error\ndata: " + msgspec.json.encode({"type": "error", "error": error}) + b"\n\n"

    def _decode_full(self, frame: Frame) -> Sequence[Event]:
        data = frame.data
        if self.terminated or not data:
            return ()
        name = event_name(frame)
        payload = read_object(data, name)
        if not isinstance(payload, dict):
            return self._gate.admit([payload], named=False)
        kind = as_text(payload.get("type")) or name
        events = list(within_bounds(self._event(kind, payload), kind, payload))
        message = as_dict(payload.get("message")) if kind == "message_start" else {}
        return self._gate.admit(
            events,
            response_id=as_text(message.get("id")),
            model=as_text(message.get("model")),
            named=kind in ("message_start", "message_stop"),
        )

    def _event(self, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        if kind == "content_block_delta":
            yield from self._block_delta(fields)
        elif kind == "content_block_start":
            yield from self._block_start(fields)
        elif kind == "content_block_stop":
            yield from self._block_stop(as_int(fields.get("index")) or 0)
        elif kind == "message_start":
            yield from self._message_start(fields)
        elif kind == "message_delta":
            yield from self._message_delta(fields)
        elif kind == "message_stop":
            yield from self._held_inputs()
            self.terminated = True
        elif kind == "error" or fields.get("error"):
            yield upstream_error(fields.get("error") or fields)
        elif kind != "ping":
            yield named_extension(kind, fields)

    def _message_start(self, fields: dict[str, Any]) -> Iterator[Event]:
        message = as_dict(fields.get("message"))
        message_id = as_text(message.get("id"))
        if self._message_id is None:
            self._message_id = message_id
            yield from self._counted(message)
        elif message_id != self._message_id:
            # A gateway spliced two answers together. The first one's name and counts stand.
            yield Extension("message_start", fields)

    def _message_delta(self, fields: dict[str, Any]) -> Iterator[Event]:
        yield from self._held_inputs()
        native = as_text(as_dict(fields.get("delta")).get("stop_reason"))
        if native and native != self._stop_reason:
            self._stop_reason = native
            yield Finish(0, FINISH_REASONS.get(native, "stop"), native)
        yield from self._counted(fields)

    def _counted(self, fields: dict[str, Any]) -> Iterator[Event]:
        """Counts are cumulative: each replaces the one before it, and an absent or null one keeps it."""
        news = {key: value for key, value in as_dict(fields.get("usage")).items() if value is not None}
        if news:
            usage = {**self._usage, **news}
            self._usage = usage if len(usage) <= MAX_NUMBERED else news
            yield anthropic_usage(self._usage)

    def _block_start(self, fields: dict[str, Any]) -> Iterator[Event]:
        index, block = as_int(fields.get("index")) or 0, as_dict(fields.get("content_block"))
        yield from self._block_stop(index)
        kind = as_text(block.get("type"))
        if kind == "text":
            if as_text(block.get("text")):
                yield Token(0, block["text"])
            for citation in as_list(block.get("citations")):
                yield Annotation(0, citation)
        elif kind == "thinking":
            text, signature = as_text(block.get("thinking")), as_text(block.get("signature"))
            if text or signature:
                yield Reasoning(0, text, signature or None)
        elif kind == "tool_use":
            tool = self._open_tool(index, argument_text(block.get("input") or None))
            yield ToolCall(0, tool.call, "", as_text(block.get("id")) or None, as_text(block.get("name")) or None)
        else:
            self._opaque_blocks[index] = kind or "content_block"
            yield Extension(self._opaque_blocks[index], fields)

    def _block_delta(self, fields: dict[str, Any]) -> Iterator[Event]:
        index, delta = as_int(fields.get("index")) or 0, as_dict(fields.get("delta"))
        kind = as_text(delta.get("type"))
        if kind == "text_delta":
            if as_text(delta.get("text")):
                yield Token(0, delta["text"])
        elif kind == "thinking_delta":
            if as_text(delta.get("thinking")):
                yield Reasoning(0, delta["thinking"])
        elif kind == "signature_delta":
            if as_text(delta.get("signature")):
                yield Reasoning(0, "", delta["signature"])
        elif kind == "citations_delta":
            yield Annotation(0, delta.get("citation"))
        elif kind == "input_json_delta" and index not in self._opaque_blocks:
            if as_text(delta.get("partial_json")):
                tool = self._tools.get(index) or self._open_tool(index, "")
                tool.held_input = ""
                yield ToolCall(0, tool.call, delta["partial_json"])
        else:
            yield Extension(self._opaque_blocks.get(index) or kind or "content_block_delta", fields)

    def _open_tool(self, index: int, held_input: str) -> _Tool:
        tool = self._tools[index] = _Tool(self._call_count, held_input)
        self._call_count += 1
        return tool

    def _block_stop(self, index: int) -> Iterator[Event]:
        self._opaque_blocks.pop(index, None)
        tool = self._tools.pop(index, None)
        if tool is not None and tool.held_input:
            yield ToolCall(0, tool.call, tool.held_input)

    def _held_inputs(self) -> Iterator[Event]:
        """The arguments of blocks whose stop never came."""
        for index in list(self._tools):
            yield from self._block_stop(index)
