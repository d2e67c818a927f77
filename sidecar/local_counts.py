"""Active streams counted in this process alone.

Owns the numbers. Must not know what is limited, or who waits for a place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.ports import Scope


class LocalCounts:
    """`Counts` of one process. A scope that nobody is active in is forgotten, so that callers may come and go."""

    is_shared: Final = False

    __slots__ = ("_used",)

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        return len(self._used)

    def take(self, scopes: Sequence[Scope]) -> Scope | None:
        """Count one stream in all of ``scopes`` and return None; or, where one is full, count nothing and return it."""
        used = self._used
        for scope in scopes:
            if scope.limit and used.get((scope.kind, scope.name), 0) >= scope.limit:
                return scope
        for scope in scopes:
            key = scope.kind, scope.name
            used[key] = used.get(key, 0) + 1
        return None

    def give(self, scopes: Sequence[Scope]) -> None:
        """One stream less in each of ``scopes``."""
        used = self._used
        for scope in scopes:
            key = scope.kind, scope.name
            left = used[key] - 1
            if left:
                used[key] = left
            else:
                del used[key]

    def used(self, scope: Scope) -> int:
        """How many are active in ``scope`` now."""
        return self._used.get((scope.kind, scope.name), 0)
