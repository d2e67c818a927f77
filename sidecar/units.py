"""Sizes and durations as people write them: "256KiB" → bytes, "500ms" → seconds, and back.

Owns the unit tables. Must not know which setting a value belongs to.
"""

from __future__ import annotations

import re
from typing import Final

SIZE_UNITS: Final[dict[str, int]] = {
    "B": 1,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
}
"""Unit → bytes. Case matters, so that no one reads Mb as megabits."""

DURATION_UNITS: Final[dict[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
"""Unit → seconds."""

MAX_SIZE_BYTES: Final = 1024**4
MAX_DURATION_S: Final = 366 * 24 * 3600.0

_SIZE_HELP: Final = f"one of {', '.join(SIZE_UNITS)}, as in 256KiB"
_DURATION_HELP: Final = f"one of {', '.join(DURATION_UNITS)}, as in 30s"
_QUANTITY: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s?([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Bytes of a size such as "256KiB". Raises ValueError, whose message says what is wrong and which units exist."""
    number, unit = _split(text, "a size", _SIZE_HELP)
    if unit not in SIZE_UNITS:
        raise ValueError(_unit_complaint(unit, _SIZE_HELP))
    size_bytes = number * SIZE_UNITS[unit]
    if not size_bytes.is_integer():
        raise ValueError("is not a whole number of bytes")
    if size_bytes > MAX_SIZE_BYTES:
        raise ValueError("is more than 1024GiB")
    return int(size_bytes)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "500ms", "30s", "5m" or "1h". Raises ValueError as `parse_size` does."""
    number, unit = _split(text, "a duration", _DURATION_HELP)
    if unit not in DURATION_UNITS:
        raise ValueError(_unit_complaint(unit, _DURATION_HELP))
    duration_s = number * DURATION_UNITS[unit]
    if duration_s > MAX_DURATION_S:
        raise ValueError("is more than a year (8784h)")
    return duration_s


def format_size(size_bytes: int) -> str:
    """The shortest exact way to write ``size_bytes`` in binary units."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SIZE_UNITS[unit] == 0:
            return f"{size_bytes // SIZE_UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def format_duration(duration_s: float) -> str:
    """``duration_s`` in the largest unit that writes it as a whole number, else in milliseconds."""
    duration_ms = round(duration_s * 1000)
    for unit, unit_ms in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if duration_ms and duration_ms % unit_ms == 0:
            return f"{duration_ms // unit_ms}{unit}"
    return f"{duration_ms}ms"


def _split(text: str, what: str, help_text: str) -> tuple[float, str]:
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"is not {what}: write a number and its unit, {help_text}")
    return float(found[1]), found[2]


def _unit_complaint(unit: str, help_text: str) -> str:
    return f"has an unknown unit: write {help_text}" if unit else f"needs a unit: {help_text}"
