"""The nouns of a stream: frames as they lie on the wire, and events as they are meant.

Owns the typed vocabulary every codec and every format meets in. Must not know where bytes come from,
who reads them, or what time it is.

A `Frame` is one whole unit of a framing with its raw bytes. A dialect turns frames into events; a format turns
events into what the client is sent. All are msgspec structs outside the garbage collector's books (``gc=False``):
they hold only scalars and plain JSON data, are made once per token, and never refer back to anything.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error", "paused"]


class Frame(msgspec.Struct, gc=False):
    """One whole unit of a framing.

    ``data`` is the payload a dialect decodes; None where there is nothing to decode (a comment, blank lines, a
    piece of a frame too large to observe). ``name`` is the SSE event name, None where none was given. ``raw``
    is every byte the unit took on the wire: the ``raw`` of all frames of a stream, joined, is the stream.
    """

    data: bytes | None
    raw: bytes
    name: bytes | None = None


class Start(msgspec.Struct, gc=False):
    """What the upstream calls this generation: its response id and model, "" where it does not say."""

    response_id: str = ""
    model: str = ""


class Token(msgspec.Struct, gc=False):
    """Visible text of one choice. ``logprobs`` is the provider's own object for exactly this text."""

    index: int
    text: str
    logprobs: Any = None


class Reasoning(msgspec.Struct, gc=False):
    """Thinking text of one choice; ``signature`` is the provider's proof of it, sent back in later turns."""

    index: int
    text: str
    signature: str | None = None


class Refusal(msgspec.Struct, gc=False):
    """Refusal text of one choice."""

    index: int
    text: str
    logprobs: Any = None


class ToolCall(msgspec.Struct, gc=False):
    """A fragment of one tool call.

    ``call`` numbers the calls of a choice from 0, whatever the upstream counts by. ``id`` and ``name`` are given once,
    on the call's first event. The concatenated ``arguments`` of a call are its JSON ("" for a call without any).
    """

    index: int
    call: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class Annotation(msgspec.Struct, gc=False):
    """A citation or source of one choice, as the provider words it."""

    index: int
    annotation: Any


class Media(msgspec.Struct, gc=False):
    """Audio or image output of one choice: ``data`` is base64 text (or a URL, where that is what came)."""

    index: int
    kind: str
    mime_type: str
    data: str


class Extension(msgspec.Struct, gc=False):
    """An upstream frame with no other name here.

    ``type`` says what it is (the SSE event name, the payload's own type, or "unparsed"); ``data`` is its JSON value,
    or its text where it is not JSON. ``is_output``: it is what was generated, which cannot be read here.
    """

    type: str
    data: Any
    is_output: bool = False


class Usage(msgspec.Struct, gc=False):
    """Token counts as last reported; the latest replaces those before it. ``native`` is the provider's own object."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    native: Any = None


class Finish(msgspec.Struct, gc=False):
    """A choice's finish mark: the normalised reason beside the upstream's own word. Told to the client in `done`."""

    index: int
    reason: FinishReason
    native: str


class UpstreamError(msgspec.Struct, gc=False):
    """The upstream said, inside the stream, that it failed. ``native`` holds its own words, whole."""

    message: str
    native: Any = None
    provider_code: str = ""
    upstream_status: int | None = None
    retryable: bool = False


Event: TypeAlias = (
    Start | Token | Reasoning | Refusal | ToolCall | Annotation | Media | Extension | Usage | Finish | UpstreamError
)
