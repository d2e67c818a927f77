"""What each upstream language means: frames to typed events.

Owns the table of dialects. Must not know framings' bytes, formats or connections.
A dialect is one file and one line of this table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.dialects.anthropic import Anthropic
from sidecar.dialects.bedrock_converse import BedrockConverse
from sidecar.dialects.bedrock_invoke import BedrockInvoke
from sidecar.dialects.cohere import Cohere
from sidecar.dialects.first_frame import Undecided
from sidecar.dialects.gemini import Gemini
from sidecar.dialects.gemini_interactions import GeminiInteractions
from sidecar.dialects.llamacpp import LlamaCpp
from sidecar.dialects.ollama import OllamaChat, OllamaGenerate
from sidecar.dialects.opaque import OpaqueAwsEventStream, OpaqueNDJSON, OpaqueSSE
from sidecar.dialects.openai_chat import OpenAIChat
from sidecar.dialects.openai_completions import OpenAICompletions
from sidecar.dialects.openai_responses import OpenAIResponses
from sidecar.dialects.raw_text import RawText
from sidecar.dialects.replicate import Replicate
from sidecar.dialects.sglang import Sglang
from sidecar.dialects.tgi import Tgi
from sidecar.dialects.triton import Triton, TritonAccumulated

if TYPE_CHECKING:
    from sidecar.ports import Dialect, DialectKind

__all__ = ["DIALECTS", "OPAQUE", "make_dialect"]

DIALECTS: Final[dict[str, DialectKind]] = {
    OpenAIChat.name: OpenAIChat,
    OpenAICompletions.name: OpenAICompletions,
    OpenAIResponses.name: OpenAIResponses,
    Anthropic.name: Anthropic,
    Gemini.name: Gemini,
    GeminiInteractions.name: GeminiInteractions,
    OllamaChat.name: OllamaChat,
    OllamaGenerate.name: OllamaGenerate,
    BedrockConverse.name: BedrockConverse,
    BedrockInvoke.name: BedrockInvoke,
    Cohere.name: Cohere,
    Triton.name: Triton,
    TritonAccumulated.name: TritonAccumulated,
    Tgi.name: Tgi,
    LlamaCpp.name: LlamaCpp,
    Sglang.name: Sglang,
    Replicate.name: Replicate,
    RawText.name: RawText,
    OpaqueSSE.name: OpaqueSSE,
    OpaqueNDJSON.name: OpaqueNDJSON,
    OpaqueAwsEventStream.name: OpaqueAwsEventStream,
}
"""Every dialect by its name. Paths and first frames are tried in this order."""

OPAQUE: Final[dict[str, DialectKind]] = {
    "sse": OpaqueSSE,
    "ndjson": OpaqueNDJSON,
    "aws-event-stream": OpaqueAwsEventStream,
}
"""By framing, what a stream is taken for that nobody recognises. Its events are never content."""

_CANDIDATES: Final = {
    framing: tuple(dialect for dialect in DIALECTS.values() if framing in dialect.framings) for framing in OPAQUE
}


def make_dialect(name: str, framing: str, *, is_certain: bool) -> Dialect:
    """A fresh dialect for one stream of ``framing``. ``is_certain``: it speaks ``name``, whatever comes; else its first
    frame says what it speaks. Raises KeyError for a name that is not in `DIALECTS`."""
    return DIALECTS[name]() if is_certain else Undecided(_CANDIDATES[framing], DIALECTS[name]())
