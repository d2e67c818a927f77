"""The data of every typed event: what goes out on the wire, field for field.

Owns the published vocabulary and how our own nouns become it; `schema` publishes it. Must not know how events are
framed (server-sent events or WebSocket) nor when they are sent. A field that is UNSET is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.events import (
    Annotation,
    Event,
    Extension,
    FinishReason,
    Media,
    Reasoning,
    Refusal,
    Token,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.errors import Failure
    from sidecar.ports import Ended

Status = Literal["completed", "failed", "cancelled", "timed_out", "interrupted"]


class StartData(msgspec.Struct, gc=False):
    """Sent once, first. ``created`` is in seconds since the epoch; ``model`` is the upstream's own word for it."""

    stream: str
    route: str
    upstream: str
    model: str
    created: int
    response_id: str | UnsetType = UNSET


class TokenData(msgspec.Struct, gc=False):
    """Visible text of one choice. ``logprobs`` is the provider's own object for exactly this text."""

    index: int
    text: str
    logprobs: Any = UNSET


class ReasoningData(msgspec.Struct, gc=False):
    """Thinking text of one choice; ``signature`` is the provider's proof of it, to be sent back in later turns."""

    index: int
    text: str
    signature: str | UnsetType = UNSET


class RefusalData(msgspec.Struct, gc=False):
    """Refusal text of one choice."""

    index: int
    text: str
    logprobs: Any = UNSET


class ToolCallData(msgspec.Struct, gc=False):
    """A fragment of one tool call; ``id`` and ``name`` come once, on the call's first event.

    ``call`` numbers the calls of a choice from 0. The concatenated ``arguments`` of a call are its JSON.
    """

    index: int
    call: int
    arguments: str
    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class AnnotationData(msgspec.Struct, gc=False):
    """A citation or source of one choice, as the provider words it."""

    index: int
    annotation: Any


class MediaData(msgspec.Struct, gc=False):
    """Audio or image output of one choice: ``data`` is base64 text, or a URL where that is what came."""

    index: int
    kind: str
    mime_type: str
    data: str


class ExtensionData(msgspec.Struct, gc=False):
    """An upstream frame with no other name here: its JSON value, or with ``type`` "unparsed" its text."""

    type: str
    data: Any


class UsageData(msgspec.Struct, gc=False):
    """Sent at most once, just before done: the last known token counts. ``native`` is the provider's own object."""

    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    native: Any
    cached_input_tokens: int | UnsetType = UNSET
    reasoning_tokens: int | UnsetType = UNSET


class ErrorData(msgspec.Struct, gc=False):
    """Something failed. It does not end the stream; the done after it does."""

    code: str
    message: str
    retryable: bool
    upstream_status: int | UnsetType = UNSET
    native: Any = UNSET


class FinishData(msgspec.Struct, gc=False):
    """Why one choice ended: the normalised reason beside the upstream's own word."""

    index: int
    reason: FinishReason
    native: str


class DoneData(msgspec.Struct, gc=False):
    """Sent exactly once, last. Times are the client's, in milliseconds; ``ttft_ms`` is null where no content came.

    ``content_events`` counts the events with content that were sent, which is not a count of tokens.
    """

    status: Status
    finish_reasons: list[FinishData]
    ttft_ms: float | None
    duration_ms: float
    content_events: int
    warnings: list[str] | UnsetType = UNSET


PAYLOADS: Final[dict[str, type[msgspec.Struct]]] = {
    "start": StartData,
    "token": TokenData,
    "reasoning": ReasoningData,
    "refusal": RefusalData,
    "tool_call": ToolCallData,
    "annotation": AnnotationData,
    "media": MediaData,
    "extension": ExtensionData,
    "usage": UsageData,
    "error": ErrorData,
    "done": DoneData,
}
"""Every typed event by its name, in the order of the protocol's table."""


def payload_of(event: Event) -> tuple[str, msgspec.Struct] | None:
    """The name and data under which ``event`` is sent as it comes; None for one that is not (`Start`, and what the
    end of the stream tells: `Usage`, `Finish`, `UpstreamError`)."""
    payload = _PAYLOAD_OF.get(type(event))
    return payload(event) if payload is not None else None


def usage_data(usage: Usage) -> UsageData:
    """The data of the usage event."""
    return UsageData(
        usage.input_tokens,
        usage.output_tokens,
        usage.total_tokens,
        usage.native,
        _given(usage.cached_input_tokens),
        _given(usage.reasoning_tokens),
    )


def error_data(failure: Failure) -> ErrorData:
    """The data of the error event."""
    return ErrorData(
        failure.code,
        failure.message,
        failure.retryable,
        _given(failure.upstream_status),
        _given(failure.native),
    )


def done_data(ended: Ended) -> DoneData:
    """The data of the done event; times are rounded to the microsecond."""
    return DoneData(
        cast("Status", ended.status),
        [FinishData(finish.index, finish.reason, finish.native) for finish in ended.finish_reasons],
        None if ended.ttft_ms is None else round(ended.ttft_ms, 3),
        round(ended.duration_ms, 3),
        ended.content_events,
        ended.warnings or UNSET,
    )


def _given(value: Any) -> Any:
    return UNSET if value is None else value


def _token(event: Token) -> tuple[str, msgspec.Struct]:
    return "token", TokenData(event.index, event.text, _given(event.logprobs))


def _reasoning(event: Reasoning) -> tuple[str, msgspec.Struct]:
    return "reasoning", ReasoningData(event.index, event.text, _given(event.signature))


def _refusal(event: Refusal) -> tuple[str, msgspec.Struct]:
    return "refusal", RefusalData(event.index, event.text, _given(event.logprobs))


def _tool_call(event: ToolCall) -> tuple[str, msgspec.Struct]:
    return "tool_call", ToolCallData(event.index, event.call, event.arguments, _given(event.id), _given(event.name))


def _annotation(event: Annotation) -> tuple[str, msgspec.Struct]:
    return "annotation", AnnotationData(event.index, event.annotation)


def _media(event: Media) -> tuple[str, msgspec.Struct]:
    return "media", MediaData(event.index, event.kind, event.mime_type, event.data)


def _extension(event: Extension) -> tuple[str, msgspec.Struct]:
    return "extension", ExtensionData(event.type, event.data)


_PAYLOAD_OF: Final[dict[type, Callable[[Any], tuple[str, msgspec.Struct]]]] = {
    Token: _token,
    Reasoning: _reasoning,
    Refusal: _refusal,
    ToolCall: _tool_call,
    Annotation: _annotation,
    Media: _media,
    Extension: _extension,
}
