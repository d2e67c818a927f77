"""Usage that an API reports only where the request asks for it.

Owns which dialects do so, how they are asked, and which frame comes for it. Must not know who wants to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidecar.dialects.lenient_json import as_dict
from sidecar.dialects.openai_chat import OpenAIChat
from sidecar.dialects.openai_completions import OpenAICompletions
from sidecar.dialects.payloads import object_of
from sidecar.events import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.events import Event, Frame

REPORTS_ON_REQUEST: Final = frozenset({OpenAIChat.name, OpenAICompletions.name})
"""The dialects that report usage only for ``stream_options: {"include_usage": true}``."""

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


def is_extra_chunk(frame: Frame, events: Sequence[Event]) -> bool:
    """Whether a frame came for that request alone: it has counts, no choice, and nothing else to say."""
    return len(events) == 1 and type(events[0]) is Usage and not object_of(frame).get("choices")
