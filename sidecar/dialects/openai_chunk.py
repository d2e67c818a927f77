"""A chunk of either OpenAI completions API, apart from its choices.

Owns what chat and text completions have alike: where vendors put errors, which keys are events of their own, how an
error is told inside a stream. Must not know choices or counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from sidecar.dialects.lenient_json import as_dict
from sidecar.dialects.payloads import named_extension
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, UpstreamError

EXTENSION_KEYS: Final = ("prompt_filter_results", "moderation", "sglext", "prompt_progress")
"""Keys of a chunk that are events of their own: a vendor sends a whole chunk for them."""

SILENT_KEYS: Final = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "obfuscation"}
)
"""Keys that, with no choices and no usage, say nothing at all."""


def error_of(payload: dict[str, Any], name: str) -> UpstreamError | None:
    """The error of a payload, in whichever of its places the vendor put it; ``name`` is the frame's event name."""
    error = payload.get("error") or as_dict(payload.get("x_groq")).get("error")
    if error:
        return upstream_error(error)
    if name == "error" or payload.get("object") == "error":
        return upstream_error(payload)
    return None


def vendor_extensions(payload: dict[str, Any], *, is_bare: bool) -> Iterator[Event]:
    """The parts of a chunk that are vendor events; for a chunk with nothing else known in it, the chunk itself."""
    known = [key for key in EXTENSION_KEYS if payload.get(key)]
    for key in known:
        yield Extension(key, payload[key])
    if is_bare and not known and not as_dict(payload.get("usage")):
        unknown = [key for key, value in payload.items() if key not in SILENT_KEYS and value]
        if unknown:
            yield named_extension(unknown[0] if len(unknown) == 1 else "", payload)


def error_chunk(failure: Failure) -> bytes:
    """The chunk that the official package raises on."""
    error = {"message": failure.message, "type": "server_error", "param": None, "code": failure.code}
    return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
