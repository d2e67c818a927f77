"""Bedrock's InvokeModelWithResponseStream: whatever a model's own stream is, each piece of it in a chunk.

Owns the chunks and what Bedrock itself puts into them beside the model's words. Must not know those: the dialects of
the models that have one decode them, `model_pieces` the others.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from sidecar.dialects.anthropic import Anthropic
from sidecar.dialects.aws_errors import exception_message, stated_error
from sidecar.dialects.bedrock_converse import EXCEPTIONS
from sidecar.dialects.converse_message import EVENT_TYPES, ConverseMessage
from sidecar.dialects.lenient_json import as_dict, as_text, text_of
from sidecar.dialects.model_pieces import ModelPieces
from sidecar.dialects.openai_chat import OpenAIChat
from sidecar.dialects.payloads import named_extension, object_of, read_object
from sidecar.dialects.token_usage import invocation_usage
from sidecar.errors import Failure, Outcome
from sidecar.events import Event, Extension, Finish, Frame, Start, Usage

if TYPE_CHECKING:
    from sidecar.ports import Dialect

_ACTION: Final = "amazon-bedrock-guardrailAction"
_TRACE: Final = "amazon-bedrock-trace"
_METRICS: Final = "amazon-bedrock-invocationMetrics"
_BEDROCKS_OWN: Final[tuple[str, ...]] = (_ACTION, _TRACE, _METRICS)
_MODELS: Final = (Anthropic, OpenAIChat)
"""Dialects of models that may be found in chunks."""


class BedrockInvoke:
    """One stream of chunks. The first that says so tells the model's dialect, for all that follow."""

    name: ClassVar[str] = "bedrock-invoke"
    framings: ClassVar[tuple[str, ...]] = ("aws-event-stream",)
    paths: ClassVar[tuple[str, ...]] = ("/model/*/invoke-with-response-stream",)
    streams_by_default: ClassVar[bool] = True
    tolerates_partial_frame: ClassVar[bool] = False
    plain_start: ClassVar[bytes] = b""

    __slots__ = (
        "_finishes",
        "_has_metrics",
        "_has_started",
        "_has_unknown",
        "_has_usage",
        "_is_guarded",
        "_is_understood",
        "_message",
        "_model",
        "_pieces",
    )

    def __init__(self) -> None:
        self._model: Dialect | None = None
        self._message = ConverseMessage()
        self._pieces = ModelPieces()
        self._finishes: dict[int, Finish] = {}
        self._has_started = False
        self._has_usage = False
        self._has_metrics = False
        self._has_unknown = False
        self._is_understood = False
        self._is_guarded = False

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one message; nothing more once the model's own end mark has come."""
        if self.terminated or frame.data is None:
            return ()
        error = stated_error(frame)
        if error is not None:
            return self._told([error])
        kind = text_of(frame.name or b"")
        fields = read_object(frame.data or b"{}", kind)
        if not isinstance(fields, dict):
            return self._told([fields])
        return self._chunk(fields) if kind == "chunk" else self._told([named_extension(kind, fields)])

    def decode_plain(self, payload: bytes) -> Event | None:
        """Nothing: what a message means lies in its headers."""
        return None

    def finish(self) -> Sequence[Event]:
        """What the model's dialect held back."""
        return self._told(self._model.finish()) if self._model is not None else ()

    @property
    def has_terminator(self) -> bool:
        """Only some models have an end mark."""
        return isinstance(self._model, Anthropic) or self._message.is_finished

    @property
    def completes_on_clean_end(self) -> bool:
        """A stream in which nothing was understood has no other end."""
        return self._has_unknown and not self._is_understood

    @property
    def terminated(self) -> bool:
        """The model's own end mark has come."""
        return self._message.is_over or (self._model is not None and self._model.terminated)

    @property
    def is_finished(self) -> bool:
        """The model's finish marks have come, or the metrics that Bedrock gives when a model is done."""
        if self._has_metrics or self._message.is_finished or self._pieces.is_finished:
            return True
        return self._model is not None and self._model.is_finished

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A chunk with its bytes."""
        return frame.name == b"chunk" and isinstance(object_of(frame).get("bytes"), str)

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The exception that botocore raises as an `EventStreamError`."""
        is_timeout = failure.outcome is Outcome.TIMED_OUT
        kind = "modelTimeoutException" if is_timeout else EXCEPTIONS.get(failure.outcome, "modelStreamErrorException")
        return exception_message(kind, failure.message)

    def _chunk(self, fields: dict[str, Any]) -> Sequence[Event]:
        try:
            body = binascii.a2b_base64(as_text(fields.get("bytes")))
        except ValueError:
            body = b""
        if not body:
            return self._told([named_extension("chunk", fields)])
        native = read_object(body)
        if not isinstance(native, dict):
            # A model's dialect may know what is no object, an end mark for one.
            return self._told([native] if self._model is None else self._model.decode(Frame(body, b"")))
        own = {key: native.pop(key) for key in _BEDROCKS_OWN if key in native}
        events = list(self._told(self._guardrail(own)))
        if native:
            # The model's own bytes, where Bedrock has put nothing into them.
            events += self._told(self._native(native, msgspec.json.encode(native) if own else body))
        return events + list(self._told(self._metrics(own)))

    def _native(self, native: dict[str, Any], body: bytes) -> Iterable[Event]:
        """What the model itself says in one chunk."""
        frame = Frame(body, b"")
        events: Iterable[Event] | None = self._pieces.decode(native) if self._model is None else None
        if events is None and self._model is None:
            self._model = next((model() for model in _MODELS if model.recognises(frame)), None)
        if events is None and self._model is not None:
            events = self._model.decode(frame)
        if events is None and not EVENT_TYPES.isdisjoint(native):
            events = [event for kind, value in native.items() for event in self._message.decode(kind, as_dict(value))]
        if events is not None:
            self._is_understood = True
            return events
        self._has_unknown = True
        extension = named_extension("", native)
        return [extension if extension.type != "unknown" else Extension("chunk", native)]

    def _guardrail(self, own: dict[str, Any]) -> Iterator[Event]:
        for key in (_ACTION, _TRACE):
            if key in own:
                yield Extension(key, own[key])
        if own.get(_ACTION) == "INTERVENED" and not self._is_guarded:
            self._is_guarded = True
            yield from list(self._finishes.values())

    def _metrics(self, own: dict[str, Any]) -> Iterator[Event]:
        """Counts where the model gave none; else they only repeat it, and come with their times as they are."""
        if _METRICS not in own:
            return
        self._has_metrics = True
        usage = None if self._has_usage else invocation_usage(as_dict(own[_METRICS]))
        yield Extension(_METRICS, own[_METRICS]) if usage is None else usage

    def _told(self, events: Iterable[Event]) -> Sequence[Event]:
        """``events`` with one `Start` before all, whoever gave it, and with a guardrail's word in every finish mark."""
        told: list[Event] = []
        for event in events:
            if isinstance(event, Start):
                if self._has_started:
                    continue
            elif not self._has_started:
                told.append(Start())
            self._has_started = True
            if isinstance(event, Usage):
                self._has_usage = True
            if isinstance(event, Finish):
                event = self._finishes[event.index] = self._guarded(event)
            told.append(event)
        return told

    def _guarded(self, mark: Finish) -> Finish:
        return Finish(mark.index, "content_filter", mark.native) if self._is_guarded else mark
