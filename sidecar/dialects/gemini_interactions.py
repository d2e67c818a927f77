"""Gemini's Interactions API: a new interaction's stream, and one that is taken up again.

Owns its events and how its steps become text, thoughts and tool calls. Must not know server-sent events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.json_stream import JsonStream
from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Numbered
from sidecar.dialects.payloads import named_extension, object_of
from sidecar.dialects.token_usage import interactions_usage
from sidecar.dialects.tool_calls import argument_text
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure
from sidecar.events import (
    Annotation,
    Event,
    Extension,
    Finish,
    FinishReason,
    Frame,
    Media,
    Reasoning,
    Token,
    ToolCall,
    UpstreamError,
)

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "completed": "stop",
    "requires_action": "tool_calls",
    "incomplete": "length",
    "budget_exceeded": "length",
    "requires_continuation": "paused",
    "failed": "error",
    "cancelled": "error",
}
"""The statuses in which an interaction rests; in any other it goes on."""

_FAILURES: Final = {"failed": "the interaction failed", "cancelled": "the interaction was cancelled"}
"""The statuses that are errors, and what there is to say where the upstream does not."""

_MEDIA_KINDS: Final = frozenset({"image", "audio", "video", "document"})


class _Step:
    """A step that is open. ``call`` numbers it among the tool calls; None for any other step."""

    __slots__ = ("call", "held_arguments", "kind")

    def __init__(self, kind: str, call: int | None = None, held_arguments: str = "") -> None:
        self.kind = kind
        self.call = call
        self.held_arguments = held_arguments
        """Arguments the step's start came with: they count only if no delta does."""


class GeminiInteractions(JsonStream):
    """One interaction's stream. It has one choice, number 0."""

    name: ClassVar[str] = "gemini-interactions"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/interactions", "/interactions/*")

    __slots__ = ("_call_count", "_finish", "_has_failed", "_held_failure", "_steps")

    def __init__(self) -> None:
        super().__init__()
        self._finish: Finish | None = None
        self._has_failed = False
        self._held_failure: UpstreamError | None = None
        """What a bare status says of a failure, until it is known that nothing else says more."""
        self._call_count = 0
        self._steps: Numbered[int, _Step] = Numbered()

    @property
    def is_finished(self) -> bool:
        """The interaction rests."""
        return self._finish is not None

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """Every event of an interaction or of a step says so."""
        return as_text(object_of(frame).get("event_type")).startswith(("interaction.", "step."))

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The ``error`` event the official package hands out as one."""
        payload = {"event_type": "error", "error": {"code": failure.code, "message": failure.message}}
        return b"event: error\ndata: " + msgspec.json.encode(payload) + b"\n\n"

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame; nothing more once the interaction rests, or ``[DONE]`` has come."""
        if frame.data is not None and frame.data.startswith(b"[DONE]"):
            self.terminated = True
            return [*self._told_failure()]
        return super().decode(frame)

    def finish(self) -> Sequence[Event]:
        """What was held back, a failure that nothing said more of as well."""
        return [*super().finish(), *self._told_failure()]

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        interaction = as_dict(fields.get("interaction"))
        response_id = as_text(interaction.get("id")) or as_text(fields.get("interaction_id"))
        return response_id, as_text(interaction.get("model")) or as_text(interaction.get("agent")), bool(interaction)

    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        kind = as_text(fields.get("event_type")) or name
        index = as_int(fields.get("index")) or 0
        if kind == "step.delta":
            yield from self._delta(index, as_dict(fields.get("delta")), fields)
        elif kind == "step.start":
            yield from self._start(index, as_dict(fields.get("step")), fields)
        elif kind == "step.stop":
            yield from self._stop(index)
            if fields.get("step_usage"):
                yield Extension("step.stop", fields)
        elif kind == "interaction.status_update":
            yield Extension(kind, fields)
            yield from self._rest(fields)
        elif kind == "interaction.completed":
            yield from self._completed(as_dict(fields.get("interaction")))
        elif kind == "error" or fields.get("error"):
            yield from self._fail(upstream_error(fields.get("error") or fields))
        elif kind != "interaction.created":
            yield named_extension(kind, fields)
        usage = as_dict(fields.get("usage")) or as_dict(as_dict(fields.get("metadata")).get("total_usage"))
        if usage:
            yield interactions_usage(usage)

    def _completed(self, interaction: dict[str, Any]) -> Iterator[Event]:
        """The last event. The steps it may repeat have been told one by one."""
        for index in list(self._steps):
            yield from self._stop(index)
        yield from self._rest(interaction)
        usage = as_dict(interaction.get("usage"))
        if usage:
            yield interactions_usage(usage)
        yield from self._told_failure()
        self.terminated = True

    def _rest(self, holder: dict[str, Any]) -> Iterator[Event]:
        """The finish mark of a status in which nothing more comes; an error where it is a failure."""
        native = as_text(holder.get("status"))
        reason = FINISH_REASONS.get(native)
        if reason is None:
            return
        if self._finish is None or self._finish.native != native:
            self._finish = Finish(0, reason, native)
            yield self._finish
        if native in _FAILURES and not self._has_failed:
            if holder.get("error"):
                yield from self._fail(upstream_error(holder["error"]))
            else:
                self._held_failure = UpstreamError(_FAILURES[native], holder, native)

    def _fail(self, error: UpstreamError) -> Iterator[Event]:
        """An error in the upstream's own words, which a status has no need to tell any more."""
        self._has_failed = True
        self._held_failure = None
        yield error

    def _told_failure(self) -> Iterator[Event]:
        if self._held_failure is not None:
            yield from self._fail(self._held_failure)

    def _start(self, index: int, step: dict[str, Any], fields: dict[str, Any]) -> Iterator[Event]:
        yield from self._stop(index)
        kind = as_text(step.get("type"))
        if kind == "function_call":
            yield from _signature(step)
            call = self._open_call(index, argument_text(step.get("arguments") or None)).call or 0
            yield ToolCall(0, call, "", as_text(step.get("id")) or None, as_text(step.get("name")) or None)
            return
        self._steps[index] = _Step(kind)
        if kind == "thought":
            for content in as_list(step.get("summary")):
                yield from self._thought(as_dict(content), fields)
            yield from _signature(step)
        elif kind == "model_output" and not step.get("error"):
            for content in as_list(step.get("content")):
                yield from self._content(as_dict(content), fields)
        else:
            yield Extension(kind or "step.start", fields)

    def _open_call(self, index: int, held_arguments: str) -> _Step:
        step = self._steps[index] = _Step("function_call", self._call_count, held_arguments)
        self._call_count += 1
        return step

    def _stop(self, index: int) -> Iterator[Event]:
        step = self._steps.pop(index, None)
        if step is not None and step.call is not None and step.held_arguments:
            yield ToolCall(0, step.call, step.held_arguments)

    def _delta(self, index: int, delta: dict[str, Any], fields: dict[str, Any]) -> Iterator[Event]:
        kind = as_text(delta.get("type"))
        if kind == "thought_summary":
            yield from self._thought(as_dict(delta.get("content")), fields)
        elif kind == "thought_signature":
            yield from _signature(delta)
        elif kind == "arguments_delta":
            yield from self._arguments(index, as_text(delta.get("arguments")), fields)
        elif kind == "text_annotation_delta":
            for annotation in as_list(delta.get("annotations")):
                yield Annotation(0, annotation)
        else:
            yield from self._content(delta, fields)

    def _arguments(self, index: int, text: str, fields: dict[str, Any]) -> Iterator[Event]:
        step = self._steps.get(index) or self._open_call(index, "")
        if step.call is None:
            yield Extension(step.kind or "arguments_delta", fields)
        elif text:
            step.held_arguments = ""
            yield ToolCall(0, step.call, text)

    def _thought(self, content: dict[str, Any], fields: dict[str, Any]) -> Iterator[Event]:
        text = as_text(content.get("text"))
        if text:
            yield Reasoning(0, text)
        elif content and content.get("type") != "text":
            yield Extension("thought_summary", fields)

    def _content(self, content: dict[str, Any], fields: dict[str, Any]) -> Iterator[Event]:
        """Text or media, as a step's start and a delta word them alike."""
        kind = as_text(content.get("type"))
        data = as_text(content.get("data")) or as_text(content.get("uri"))
        if kind == "text":
            if as_text(content.get("text")):
                yield Token(0, content["text"])
            for annotation in as_list(content.get("annotations")):
                yield Annotation(0, annotation)
        elif kind in _MEDIA_KINDS and data:
            yield Media(0, kind, as_text(content.get("mime_type")), data)
        else:
            yield Extension(kind or as_text(fields.get("event_type")), fields)


def _signature(holder: dict[str, Any]) -> Iterator[Event]:
    signature = as_text(holder.get("signature"))
    if signature:
        yield Reasoning(0, "", signature)
