"""Whether bytes that the end of a body left behind are a whole JSON value.

Owns that one judgement, which every line framing makes at the end. Must not know framings or dialects.
"""

from __future__ import annotations

from typing import Final

import msgspec

_VALIDATOR: Final = msgspec.json.Decoder(msgspec.Raw)
"""Checks the syntax and builds nothing; broken UTF-8 inside strings is not its concern."""

_SELF_DELIMITING: Final = (b"{", b"[", b'"')


def is_whole_json(data: bytes) -> bool:
    """``data`` is one whole object, array or string, with or without white space around it.

    Bare numbers and words are not taken: a number that was cut short is still a number.
    """
    if not data.lstrip().startswith(_SELF_DELIMITING):
        return False
    try:
        _VALIDATOR.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
