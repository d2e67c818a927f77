"""The answers of the simulated upstream, in every dialect the sidecar reads.

Owns which path speaks what. Must not know pace, faults or sockets. These dialects are written without the sidecar's own
codecs, on purpose: a simulator that shared their mistakes could not show them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sidecar.simulator.dialects import anthropic, ollama, openai_chat, text
from sidecar.simulator.dialects.answer import CREATED, CREATED_AT, MODEL, Answer, to_json

__all__ = ["DIALECTS", "LISTINGS", "Answer", "Dialect", "to_json"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one path answers: as a stream, whole, and with an HTTP error."""

    streamed: Callable[[dict[str, Any]], Answer]
    whole: Callable[[dict[str, Any], int], bytes]
    rejection: Callable[[int], bytes]
    whole_type: str = "application/json"
    streams_unasked: bool = False

    def wants_stream(self, body: dict[str, Any]) -> bool:
        """Whether this request is answered with a stream."""
        return bool(body.get("stream", self.streams_unasked))


DIALECTS: Final[dict[str, Dialect]] = {
    "/v1/chat/completions": Dialect(openai_chat.streamed, openai_chat.whole, openai_chat.rejection),
    "/v1/messages": Dialect(anthropic.streamed, anthropic.whole, anthropic.rejection),
    "/api/chat": Dialect(ollama.streamed_chat, ollama.whole_chat, ollama.rejection, streams_unasked=True),
    "/api/generate": Dialect(ollama.streamed_generate, ollama.whole_generate, ollama.rejection, streams_unasked=True),
    "/raw": Dialect(text.streamed, text.whole, text.rejection, "text/plain; charset=utf-8", streams_unasked=True),
}

LISTINGS: Final[dict[str, bytes]] = {
    "/v1/models": to_json(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": CREATED, "owned_by": "llm-sidecar"}]}
    ),
    "/api/tags": to_json({"models": [{"name": MODEL, "model": MODEL, "modified_at": CREATED_AT, "size": 1}]}),
}
