"""JSON that always comes out: what an upstream said is told on, even where plain encoding would refuse it.

Owns the one way formats write JSON. Must not know what is written.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_encode: Final = msgspec.json.Encoder().encode
_MAX_DEPTH: Final = 64
_TOO_DEEP: Final = "(nested too deeply)"


def encode_json(value: Any) -> bytes:
    """``value`` (plain JSON data, or structs of it) as compact UTF-8.

    Half of a surrogate pair becomes U+FFFD; what is nested beyond the interpreter's depth is cut off.
    """
    try:
        return _encode(value)
    except (UnicodeEncodeError, RecursionError):
        return _encode(_encodable(value, _MAX_DEPTH))


def _encodable(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        # UTF-16 has units for half a pair, and its decoder knows what to put in their place.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        value = {name: field for name, field in fields.items() if field is not msgspec.UNSET}
    if isinstance(value, dict | list | tuple) and depth == 0:
        return _TOO_DEEP
    if isinstance(value, dict):
        return {_encodable(key, depth - 1): _encodable(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item, depth - 1) for item in value]
    return value
