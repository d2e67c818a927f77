"""Bytes to frames: one table of every framing, and the one way to make one.

Owns the names framings are chosen by. Must not know dialects, sockets or time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.framing.aws_event_stream import AwsEventStreamFraming
from sidecar.framing.json_array import JsonArrayFraming
from sidecar.framing.ndjson import NdjsonFraming
from sidecar.framing.raw import RawFraming
from sidecar.framing.sse import SseFraming

if TYPE_CHECKING:
    from sidecar.ports import Framing

FRAMINGS: Final[dict[str, type[SseFraming | NdjsonFraming | JsonArrayFraming | RawFraming | AwsEventStreamFraming]]] = {
    SseFraming.name: SseFraming,
    NdjsonFraming.name: NdjsonFraming,
    JsonArrayFraming.name: JsonArrayFraming,
    RawFraming.name: RawFraming,
    AwsEventStreamFraming.name: AwsEventStreamFraming,
}

_OF_MEDIA_TYPE: Final = {media_type: name for name, framing in FRAMINGS.items() for media_type in framing.media_types}


def make_framing(name: str, max_frame_bytes: int, *, strict: bool) -> Framing:
    """A fresh framing for one stream.

    ``strict``: a frame over ``max_frame_bytes`` raises FrameTooLargeError; else it is handed through in pieces,
    unobserved. Raises KeyError for a name that is not in `FRAMINGS`.
    """
    return FRAMINGS[name](max_frame_bytes, strict=strict)


def framing_of(content_type: str) -> str | None:
    """The framing that a content type (with or without parameters) promises; None where it promises none."""
    return _OF_MEDIA_TYPE.get(content_type.partition(";")[0].strip().lower())
