"""Which dialect and framing an answer is in, given the path asked for and the answer's content type.

Owns the reading of paths and types. Must not know what any dialect means; first frames are `first_frame`'s.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

from sidecar.dialects import DIALECTS, OPAQUE
from sidecar.framing import framing_of

_TOLD_BY_PLAIN_PATHS: Final = frozenset(
    {
        "openai-chat",
        "openai-completions",
        "openai-responses",
        "anthropic",
        "ollama-chat",
        "ollama-generate",
        "cohere",
    }
)
_SAME_SERVER: Final = (
    _TOLD_BY_PLAIN_PATHS | {"gemini", "gemini-interactions", "bedrock-converse", "bedrock-invoke"},
    _TOLD_BY_PLAIN_PATHS | {"tgi", "llamacpp", "sglang"},
    _TOLD_BY_PLAIN_PATHS | {"triton"},
    _TOLD_BY_PLAIN_PATHS | {"triton-accumulated"},
)
"""What one server often answers beside each other, so that a configured one of these does not speak for the others.
Inference servers have paths as short as ``/generate``: before a vendor's API such a path belongs to whoever put a proxy
there, and says nothing."""

_BY_PATH_ALONE: Final = frozenset({"json-array"})
"""Framings whose content type every plain answer has too: only a path of the dialect's own makes a stream of it."""

_SHARED_PATHS: Final = frozenset({"tgi", "llamacpp", "sglang"})
"""Whose paths are words that any server might use: unless it is configured, their first frame has to confirm them."""

_BARE_COMPLETIONS: Final = re.compile(r"/completions/?")
"""Without ``/v1`` before it, llama.cpp answers this one in its own dialect and nearly everybody else in OpenAI's."""

_VERTEX_RAW: Final = re.compile(r".*/publishers/[^/]+/models/[^/]+:streamRawPredict/?", re.DOTALL)
_ON_VERTEX: Final = frozenset({"auto", "gemini", "gemini-interactions", "anthropic"})
"""What Vertex is configured as, whose raw predictions are in whatever dialect their publisher has."""

_NEVER_MISLABELLED: Final = frozenset({"ndjson", "aws-event-stream", "json-array"})
"""Framings whose content types nobody sends by mistake, unlike ``text/plain`` and ``text/event-stream``."""

_PATHS_KNOWN: Final = 256
_STREAM_QUERY: Final = re.compile(r"[?&]stream=(?:true|1)(?:&|\Z)", re.IGNORECASE)
"""How a request without a body asks for a stream: OpenAI resumes a response by GET."""


class Spoken(msgspec.Struct, frozen=True, gc=False):
    """What an answer speaks; not ``is_certain`` where its first frame may say better."""

    dialect: str
    framing: str
    is_certain: bool = True


def _suffix(pattern: str) -> re.Pattern[str]:
    pieces = [
        {"/**": r"(?:/.*)?", "*": r"[^/]+"}.get(piece) or re.escape(piece)
        for piece in re.split(r"(/\*\*(?=/|\Z)|\*)", pattern)
    ]
    return re.compile(".*" + "".join(pieces) + "/?", re.DOTALL)


_PATTERNS: Final = [(name, _suffix(path)) for name, dialect in DIALECTS.items() for path in dialect.paths]


@lru_cache(_PATHS_KNOWN)
def dialect_of_path(path: str) -> str | None:
    """The dialect that a request's path (query or not) asks in; None where many might."""
    route = path.partition("?")[0]
    return next((name for name, pattern in _PATTERNS if pattern.fullmatch(route)), None)


@lru_cache(_PATHS_KNOWN)
def dialect_of(path: str, configured: str) -> str | None:
    """The dialect that the answer to a stream request should speak; None where that is not known beforehand.

    ``configured``: the upstream's dialect, or "auto"."""
    asked, is_certain = _asked(path, configured)
    if not is_certain:
        return None
    return asked if _is_told_by_path(asked, configured) else configured


def streams_by_target(path: str, query: str) -> bool:
    """Whether a request whose body says nothing of streaming asks for a stream by its path or its query."""
    name = dialect_of_path(path)
    return name is not None and (DIALECTS[name].streams_by_default or _STREAM_QUERY.search(query) is not None)


@lru_cache(_PATHS_KNOWN)
def detect(path: str, content_type: str, configured: str) -> Spoken | None:
    """What an answer speaks; None where it cannot be a stream.

    ``path``: the request's, with or without query. ``content_type``: the answer's, with or without parameters.
    ``configured``: the upstream's dialect, or "auto". A configured one wins over a type that servers are known to put
    on other streams; "raw" is only a candidate, as short plain text answers have the same type.
    """
    promised = framing_of(content_type)
    if promised is None:
        return None
    asked, is_certain = _asked(path, configured)
    if not is_certain:
        return _by_path(None, promised)
    if _is_told_by_path(asked, configured):
        return _by_path(asked, promised)
    framings = DIALECTS[configured].framings
    if promised in _NEVER_MISLABELLED and promised not in framings:
        return _by_path(asked, promised)
    if promised in _BY_PATH_ALONE and asked != configured:
        return None
    return Spoken(configured, promised if promised in framings else framings[0])


def _asked(path: str, configured: str) -> tuple[str | None, bool]:
    """What a path asks in, and whether that, or the configuration in its stead, can be relied on."""
    asked, route = dialect_of_path(path), path.partition("?")[0]
    is_bare = _BARE_COMPLETIONS.fullmatch(route) is not None
    if is_bare and configured == "llamacpp":
        return configured, True
    if is_bare or asked in _SHARED_PATHS:
        return asked, not _is_told_by_path(asked, configured)
    is_anyones = asked is None and configured in _ON_VERTEX and _VERTEX_RAW.fullmatch(route) is not None
    return asked, not is_anyones


def _is_told_by_path(asked: str | None, configured: str) -> bool:
    """Whether the path goes before the configuration."""
    if configured == "auto":
        return True
    return configured != asked and any({configured, asked} <= dialects for dialects in _SAME_SERVER)


def _by_path(asked: str | None, promised: str) -> Spoken | None:
    if asked is not None and promised in DIALECTS[asked].framings:
        return Spoken(asked, promised)
    if promised in OPAQUE:
        return Spoken(OPAQUE[promised].name, promised, is_certain=False)
    return Spoken(promised, promised) if promised in DIALECTS else None
