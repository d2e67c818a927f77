"""The bound on everything a stream numbers: choices, calls, blocks, items and their pieces.

Owns the bound and what becomes of that which lies beyond it. Must not know what is numbered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeVar

from sidecar.dialects.payloads import named_extension
from sidecar.events import Event

MAX_NUMBERED: Final = 4096
"""The numbers one stream may have in use. An upstream is free to put a new one into every frame, and each has to be
remembered; the longest honest streams, of agents that search for an hour, have some two thousand."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class TooManyError(Exception):
    """A number beyond the bound. Never leaves a dialect: `within_bounds` tells it."""


class Room:
    """What is left of the bound to all that shares it."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_NUMBERED

    def take(self) -> None:
        """One number more. Raises TooManyError, and then nothing may be kept."""
        if not self.left:
            raise TooManyError
        self.left -= 1


class Numbered(dict[_Key, _Value]):
    """What is known of each number in use. A new one beyond the bound raises TooManyError."""

    __slots__ = ()

    def __setitem__(self, number: _Key, value: _Value) -> None:
        """Know ``value`` of ``number`` from now on."""
        if len(self) >= MAX_NUMBERED and number not in self:
            raise TooManyError
        super().__setitem__(number, value)


def within_bounds(events: Iterator[Event], name: str, payload: Any) -> Iterator[Event]:
    """``events``; from the first number beyond the bound on, ``payload`` as it is in their place, which nothing is
    kept of."""
    try:
        yield from events
    except TooManyError:
        yield named_extension(name, payload)
