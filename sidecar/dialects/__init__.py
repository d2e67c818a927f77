"""What each upstream language means: frames to typed events.

Owns the table of dialects and which of them an answer speaks. Must not know framings' bytes, formats or connections.
A dialect is one file and one line of this table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.dialects.anthropic import Anthropic
from sidecar.dialects.ollama import OllamaChat, OllamaGenerate
from sidecar.dialects.opaque import OpaqueNDJSON, OpaqueSSE
from sidecar.dialects.openai_chat import OpenAIChat
from sidecar.dialects.raw_text import RawText

if TYPE_CHECKING:
    from sidecar.ports import Dialect

__all__ = ["DIALECTS", "OPAQUE", "detect", "is_stream_type"]

DIALECTS: Final[dict[str, type[Dialect]]] = {
    OpenAIChat.name: OpenAIChat,
    Anthropic.name: Anthropic,
    OllamaChat.name: OllamaChat,
    OllamaGenerate.name: OllamaGenerate,
    RawText.name: RawText,
    OpaqueSSE.name: OpaqueSSE,
    OpaqueNDJSON.name: OpaqueNDJSON,
}

OPAQUE: Final = frozenset({OpaqueSSE.name, OpaqueNDJSON.name})
"""The dialects whose events are never content, since nothing is known of their meaning."""

_OTHER_APIS: Final[dict[str, tuple[str, ...]]] = {
    "openai-chat": ("/responses", "/messages", "/api/chat", "/api/generate"),
    "anthropic": ("/chat/completions", "/responses", "/api/chat", "/api/generate"),
    "ollama-chat": ("/api/generate", "/completions", "/responses", "/messages"),
    "ollama-generate": ("/api/chat", "/completions", "/responses", "/messages"),
}
"""Ends of paths that belong to another API, which servers of several APIs answer beside the configured one."""

_SSE_TYPE = "text/event-stream"
_LINE_TYPES = frozenset(
    {
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/jsonlines",
        "application/stream+json",
    }
)
_TEXT_TYPE = "text/plain"


def is_stream_type(content_type: str) -> bool:
    """Whether this content type alone says that the body is a stream. Plain text does not: it may be either."""
    media_type = _media_type(content_type)
    return media_type == _SSE_TYPE or media_type in _LINE_TYPES


def detect(path: str, content_type: str, configured: str) -> str | None:
    """The key in `DIALECTS` of what an answer speaks; None where it cannot be a stream.

    ``path``: the request's, with or without query. ``content_type``: the answer's, with or without parameters.
    ``configured``: the upstream's dialect, or "auto". A configured one wins over any type that may be a stream, because
    servers mislabel streams; "raw" is only a candidate, as short plain text answers have the same type.
    """
    media_type = _media_type(content_type)
    may_stream = is_stream_type(content_type) or media_type == _TEXT_TYPE
    route = path.partition("?")[0].rstrip("/")
    if configured != "auto" and not route.endswith(_OTHER_APIS.get(configured, ())):
        return configured if may_stream else None
    if media_type == _SSE_TYPE:
        if route.endswith("/chat/completions"):
            return OpenAIChat.name
        return Anthropic.name if "/v1/messages" in route else OpaqueSSE.name
    if media_type in _LINE_TYPES:
        if route.endswith("/api/chat"):
            return OllamaChat.name
        return OllamaGenerate.name if route.endswith("/api/generate") else OpaqueNDJSON.name
    return RawText.name if may_stream else None


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
