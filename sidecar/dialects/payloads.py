"""A frame's payload as JSON, and the name of one that no dialect knows.

Owns what becomes of frames that cannot be parsed and how extensions are called. Must not know any dialect's events.
"""

from __future__ import annotations

from typing import Any

from sidecar.dialects.lenient_json import UnparseableError, as_dict, as_text, parse, text_of
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.events import Extension, Frame, UpstreamError

_NAME_KEYS = ("type", "event_type", "object")


def event_name(frame: Frame) -> str:
    """The frame's SSE event name; "" where it has none or the default one."""
    return "" if frame.name is None or frame.name == b"message" else text_of(frame.name)


def read_object(data: bytes, name: str = "") -> dict[str, Any] | Extension | UpstreamError:
    """The JSON object of ``data``; where it is none, the one event that says so. ``name``: the frame's event name.

    Google wraps an error in an array of one, which counts as the object."""
    try:
        payload = parse(data)
    except UnparseableError:
        text = text_of(data)
        return upstream_error(text) if name == "error" else Extension("unparsed", text)
    if isinstance(payload, dict):
        return payload
    if isinstance(payload, list) and len(payload) == 1 and as_dict(payload[0]).get("error"):
        return as_dict(payload[0])
    return upstream_error(payload) if name == "error" else named_extension(name, payload)


def object_of(frame: Frame) -> dict[str, Any]:
    """The JSON object that is all of a frame's data; {} where it is none. Never raises."""
    try:
        return as_dict(parse(frame.data or b""))
    except UnparseableError:
        return {}


def named_extension(name: str, payload: Any) -> Extension:
    """``payload`` under ``name``, else under what it calls itself, else as "unknown"."""
    fields = as_dict(payload)
    names = (name, *(as_text(fields.get(key)) for key in _NAME_KEYS))
    return Extension(next((known for known in names if known), "unknown"), payload)
