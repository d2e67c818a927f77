"""JSON as upstreams really send it: strict and fast first, then forgiving.

Owns how bytes become JSON values and how loosely typed values are read without raising. Must not know what any
dialect means by them.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

MAX_DEPTH = 128
"""Deeper nesting counts as unparseable: what is parsed here must leave room to be encoded again, inside an event."""

_INT_BOUND = 1 << 63
_MAX_DIGITS = 18
_decode_strict = msgspec.json.decode


class UnparseableError(ValueError):
    """The bytes are no JSON value, or one nested beyond `MAX_DEPTH`."""


def parse(data: bytes) -> Any:
    """The JSON value of ``data``; broken UTF-8 and lone surrogates become U+FFFD, NaN and infinities are accepted.

    Raises UnparseableError and nothing else.
    """
    try:
        value = _decode_strict(data)
    except (ValueError, RecursionError):
        value = _parse_forgiving(data)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        raise UnparseableError(f"nested deeper than {MAX_DEPTH}")
    return value


def text_of(data: bytes) -> str:
    """``data`` as text, broken UTF-8 as U+FFFD. Never raises."""
    return data.decode("utf-8", "replace")


def _parse_forgiving(data: bytes) -> Any:
    try:
        value = json.loads(text_of(data))
    except (ValueError, RecursionError) as error:
        raise UnparseableError(str(error)) from None
    # Depth is checked before the recursive walk below, which must not run out of stack itself.
    if _is_too_deep(value):
        raise UnparseableError(f"nested deeper than {MAX_DEPTH}")
    return _without_surrogates(value)


def _is_too_deep(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        # Two halves escaped apart from each other join here; a half alone becomes U+FFFD.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def as_dict(value: Any) -> dict[str, Any]:
    """``value`` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """``value`` if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """``value`` if it is a string, else ""."""
    return value if isinstance(value, str) else ""


def as_int(value: Any) -> int | None:
    """``value`` if it is a whole number of at most 64 bits, also one written as a float or as digits; else None."""
    number = value if type(value) is int else _loose_int(value)
    return number if number is not None and -_INT_BOUND <= number < _INT_BOUND else None


def _loose_int(value: Any) -> int | None:
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    is_digits = isinstance(value, str) and len(value) <= _MAX_DIGITS and value.isascii() and value.isdigit()
    return int(value) if is_digits else None


def compact(value: Any) -> str:
    """``value`` as JSON text without spaces."""
    return msgspec.json.encode(value).decode()
