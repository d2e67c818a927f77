"""Who may have a stream: permits, each held until its stream ends.

Owns the limits and what is said of them. Must not know requests, clients or clocks; where streams are counted is its
`Counts`' business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.ports import Counts, Scope


class Permit:
    """The right to hold one active stream in ``scopes``, and at one upstream at a time; at two while a hedge runs."""

    __slots__ = ("_beside", "_counts", "_scopes", "_upstream")

    def __init__(self, counts: Counts, scopes: Sequence[Scope]) -> None:
        self._counts = counts
        self._scopes = scopes
        self._upstream: Scope | None = None
        self._beside: Scope | None = None

    def enter(self, upstream: Scope) -> bool:
        """The stream turns to this upstream and leaves the one before. False, and nothing changed, where it is full."""
        if self._upstream == upstream:
            return True
        if self._counts.take((upstream,)) is not None:
            return False
        if self._upstream is not None:
            self._counts.give((self._upstream,))
        self._upstream = upstream
        return True

    def also(self, upstream: Scope) -> bool:
        """A place at a second upstream, beside the one the stream is at. False where that is full."""
        if self._beside is not None or self._counts.take((upstream,)) is not None:
            return False
        self._beside = upstream
        return True

    def leave(self, upstream: Scope) -> None:
        """The stream is at the other of its two upstreams alone. Nothing where it is at one."""
        if self._beside is None:
            return
        if upstream != self._beside:
            self._upstream, self._beside = self._beside, self._upstream
        if self._beside is not None:
            self._counts.give((self._beside,))
            self._beside = None

    def release(self) -> None:
        """The stream is over. Idempotent."""
        if self._beside is not None:
            self._counts.give((self._beside,))
            self._beside = None
        if self._upstream is not None:
            self._counts.give((self._upstream,))
        self._counts.give(self._scopes)
        self._scopes, self._upstream = (), None
