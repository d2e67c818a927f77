"""Usage that an API reports only where the request asks for it.

Owns which dialects do so, how they are asked, and which frame comes for it alone. Must not know who wants to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidecar.dialects.lenient_json import as_dict
from sidecar.dialects.openai_chat import OpenAIChat
from sidecar.dialects.openai_chunk import SILENT_KEYS
from sidecar.dialects.openai_completions import OpenAICompletions
from sidecar.dialects.payloads import object_of
from sidecar.events import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.events import Event, Frame

REPORTS_ON_REQUEST: Final = frozenset({OpenAIChat.name, OpenAICompletions.name})
"""The dialects that report usage only for ``stream_options: {"include_usage": true}``."""

# A server may tell its fingerprint, or which tier it took, on the last chunk alone.
_NEVER_NEWS: Final = SILENT_KEYS - {"system_fingerprint", "service_tier"}

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode


def includes_usage(stream_options: Any) -> bool:
    """Whether a request with these ``stream_options`` asks for usage by itself."""
    return as_dict(stream_options).get("include_usage") is True


def asking_for_usage(body: bytes) -> bytes:
    """``body`` with ``include_usage`` set among its stream options; every other value keeps its very bytes.

    A body, or options, that are no JSON object are for the upstream to refuse, and stay as they are.
    """
    try:
        members = _members(body)
        asked = members.get("stream_options")
        options = {} if asked is None or bytes(asked) == b"null" else _members(asked)
    except (ValueError, RecursionError):
        return body
    options["include_usage"] = msgspec.Raw(b"true")
    members["stream_options"] = msgspec.Raw(_encode(options))
    return _encode(members)


class ExtraChunk:
    """Says of each frame of one stream whether it came for that request alone: it has counts, no choice, and says
    nothing else that an earlier chunk has not said as well."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        # What the first chunk with a choice says beside it: servers repeat their fingerprint, say, on every chunk.
        self._said: dict[str, Any] | None = None

    def __call__(self, frame: Frame, events: Sequence[Event]) -> bool:
        """Whether this is the one; ``events`` are what the frame was decoded to."""
        is_usage = len(events) == 1 and type(events[0]) is Usage
        if not is_usage and (self._said is not None or not events):
            return False
        chunk = object_of(frame)
        if chunk.get("choices"):
            if self._said is None:
                self._said = {key: value for key, value in chunk.items() if key not in _NEVER_NEWS}
            return False
        said = self._said or {}
        return is_usage and not any(
            value and key not in _NEVER_NEWS and said.get(key) != value for key, value in chunk.items()
        )
