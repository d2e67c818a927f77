"""OpenAI Responses streams, also as Azure, OpenRouter, Copilot, vLLM, llama.cpp, Ollama and LM Studio send them.

Owns a response's life: its name, its end with counts and finish mark, its one error, and a stream that resumes one in
the middle. Must not know what its output items hold (`responses_output`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, Literal

import msgspec

from sidecar.dialects.json_stream import JsonStream
from sidecar.dialects.lenient_json import as_dict, as_int, as_text
from sidecar.dialects.numbered import within_bounds
from sidecar.dialects.payloads import object_of
from sidecar.dialects.responses_output import Output
from sidecar.dialects.token_usage import openai_usage
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, FinishReason, Frame, Media, Token, UpstreamError

INCOMPLETE_REASONS: Final[dict[str, FinishReason]] = {
    "max_output_tokens": "length",
    "max_messages": "length",
    "content_filter": "content_filter",
    "steered": "paused",
}
"""Why a response is incomplete; one that does not say was cut by its length, the commonest reason."""

_STATUSES = frozenset({"completed", "incomplete", "failed", "cancelled"})
_TERMINAL = frozenset({"response.done", *(f"response.{status}" for status in _STATUSES)})
_BEGINNING = frozenset({"response.created", "response.queued", "response.in_progress"})
_SILENT = frozenset({"keepalive", "ping", "response.audio.done", "response.audio.transcript.done"})
"""Events that say no more than others do."""

_DELTA_NAME = b"response.output_text.delta"


class _PlainDelta(msgspec.Struct, gc=False):
    """A piece of text. A key that means something is typed empty here: with any other value the parser refuses it."""

    type: Literal["response.output_text.delta"]
    delta: str
    item_id: str
    output_index: int | None = None
    content_index: int = 0
    logprobs: tuple[()] | None = None
    error: None = None


_decode_plain = msgspec.json.Decoder(_PlainDelta).decode


class OpenAIResponses(JsonStream):
    """One response. It has one choice, number 0, which the texts of all its messages belong to."""

    name: ClassVar[str] = "openai-responses"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/responses", "/responses/*")
    plain_start: ClassVar[bytes] = b"event: " + _DELTA_NAME + b"\ndata: "

    __slots__ = ("_finish", "_has_begun", "_has_failed", "_output", "_response_id")

    def __init__(self) -> None:
        super().__init__()
        self._output = Output()
        self._response_id = ""
        self._finish = ""
        self._has_begun = False
        self._has_failed = False

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame; nothing more once the response has ended. OpenRouter's ``[DONE]`` ends nothing:
        without the event before it a response has no end."""
        data = frame.data
        if data is None or data.startswith(b"[DONE]"):
            return ()
        if frame.name in (None, _DELTA_NAME) and (event := self.decode_plain(data)) is not None:
            return (event,)
        return super().decode(frame)

    def decode_plain(self, payload: bytes) -> Event | None:
        """The text of a delta that is not the first of its part."""
        if self.terminated or not self._gate.is_open:
            return None
        try:
            plain = _decode_plain(payload)
        except (ValueError, RecursionError):
            return None
        # Frames without an item's id look alike whatever the item is, and a stencil of them would be wrong of the next.
        if not plain.delta or not plain.item_id:
            return None
        is_known = self._output.has_told_text(plain.output_index, plain.item_id, plain.content_index)
        return Token(0, plain.delta) if is_known else None

    @property
    def is_finished(self) -> bool:
        """The response has told its final status."""
        return bool(self._finish)

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """An event of a response."""
        return as_text(object_of(frame).get("type")).startswith("response.")

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """An ``error`` event, flat as the official types have it, and with the object their client raises on."""
        error = {"code": failure.code, "message": failure.message, "param": None}
        payload = {"type": "error", **error, "error": {"type": "server_error", **error}}
        return b"event: error\ndata: " + msgspec.json.encode(payload) + b"\n\n"

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        response = as_dict(fields.get("response"))
        response_id = as_text(response.get("id"))
        return response_id, as_text(response.get("model")), bool(response_id)

    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        kind = as_text(fields.get("type")) or name
        if kind in _TERMINAL:
            yield from self._end(kind, fields)
        elif name == "error" or kind == "error" or fields.get("error"):
            yield from self._fail(upstream_error(fields.get("error") or fields))
        elif kind in _BEGINNING:
            yield from self._begin(kind, fields)
        elif kind == "response.audio.delta" and as_text(fields.get("delta")):
            # As in chat: pcm16 is what the API streams.
            yield Media(0, "audio", "audio/pcm", fields["delta"])
        elif kind == "response.audio.transcript.delta" and as_text(fields.get("delta")):
            yield Media(0, "transcript", "text/plain", fields["delta"])
        elif kind not in _SILENT:
            self._note_begin(kind, fields)
            yield from self._output.events(kind, fields)

    def _begin(self, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        self._has_begun = True
        response_id = as_text(as_dict(fields.get("response")).get("id"))
        is_other = bool(self._response_id and response_id and response_id != self._response_id)
        self._response_id = self._response_id or response_id
        if is_other or kind == "response.queued":
            yield Extension(kind, fields)

    def _note_begin(self, kind: str, fields: dict[str, Any]) -> None:
        """A stream whose first event is not a response's first resumes one (``starting_after``)."""
        if not self._has_begun and kind.startswith("response."):
            self._has_begun = True
            self._output.items.is_resumed = (as_int(fields.get("sequence_number")) or 0) > 0

    def _end(self, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        self._note_begin(kind, fields)
        response = as_dict(fields.get("response"))
        yield from within_bounds(self._output.rest(response.get("output")), kind, fields)
        if response.get("moderation"):
            yield Extension("moderation", response["moderation"])
        usage = as_dict(response.get("usage")) or as_dict(fields.get("usage"))
        if usage:
            yield openai_usage(usage)
        told, meant = as_text(response.get("status")), kind.removeprefix("response.")
        status = told if told in _STATUSES else meant if meant in _STATUSES else "completed"
        reason, self._finish = self._reason(status, as_dict(response.get("incomplete_details")))
        yield Finish(0, reason, self._finish)
        error = response.get("error") or fields.get("error")
        if error or status in {"failed", "cancelled"}:
            yield from self._fail(_failure(status, error))
        self.terminated = True

    def _reason(self, status: str, details: dict[str, Any]) -> tuple[FinishReason, str]:
        """The finish reason of a final status, and the upstream's word for it."""
        if status == "incomplete":
            native = as_text(details.get("reason")) or status
            return INCOMPLETE_REASONS.get(native, "length"), native
        if status == "completed":
            # Tools are no status of their own.
            return "tool_calls" if self._output.has_calls else "stop", status
        return "error", status

    def _fail(self, error: UpstreamError) -> Iterator[Event]:
        """The one error: OpenAI tells it twice, as an event and in the failed response."""
        if not self._has_failed:
            self._has_failed = True
            yield error


def _failure(status: str, error: Any) -> UpstreamError:
    if error:
        return upstream_error(error)
    return UpstreamError(
        f"the response was {status}" if status == "cancelled" else f"the response {status}", {"status": status}, status
    )
