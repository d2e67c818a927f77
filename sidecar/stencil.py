"""The shape of a stream's plain frames: all of their bytes but the text.

Owns the proof that a frame differs from an earlier one in nothing but its text. Must not know any dialect: it asks the
dialect's own plain lane.

A server makes the tokens of one answer with one template, so that their frames are equal byte for byte around the text.
Comparing two byte strings and checking one JSON string then says as much as parsing the whole frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sidecar.events import Reasoning, Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.events import Event

_PROBE: Final = "a probe \u00e9"
_encode: Final = msgspec.json.Encoder().encode
_PROBE_JSON: Final = _encode(_PROBE)

check_json_string: Final = msgspec.json.Decoder(str).decode
"""Raises ValueError for bytes that are not exactly one well-formed JSON string."""


def cut_stencil(
    frame: bytes, event: Event, *, payload_at: int, end_bytes: int, decode_plain: Callable[[bytes], Event | None]
) -> tuple[bytes, bytes] | None:
    """What lies before and behind the text of a plain ``frame`` that meant ``event``; None where that is not certain.

    The quotes around the text belong to the two, so that no white space can hide there. Any JSON string but an empty
    one makes, with its quotes put upon theirs, a frame that means the same event with that text.

    The payload lies from ``payload_at`` to ``end_bytes`` before the end. The proof is an experiment: the same frame
    with another text must mean the same event with that text. It holds for every text, since a parser that takes one
    JSON string in a place takes them all.
    """
    if not isinstance(event, Token | Reasoning) or not event.text:
        return None
    literal = _encode(event.text)
    at = frame.rfind(literal, payload_at)
    if at < 0:
        return None
    end = at + len(literal)
    probe = decode_plain(frame[payload_at:at] + _PROBE_JSON + frame[end:-end_bytes])
    expected = Token(event.index, _PROBE) if isinstance(event, Token) else Reasoning(event.index, _PROBE)
    if type(probe) is not type(expected) or probe != expected:
        return None
    return frame[: at + 1], frame[end - 1 :]
