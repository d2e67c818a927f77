"""Which models have series of their own, so that no client can make series without end.

Owns the bound on names. Must not know where a name stood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.telemetry.names import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NAME_CHARACTERS: Final = 128


class ModelNames:
    """Names that are allowed, and the first ``limit`` others that an upstream answered; what comes later is one."""

    def __init__(self, allowed: Iterable[str], limit: int) -> None:
        self.labels: dict[str, str] = {"": "", **{name: name for name in allowed}}
        """What each name that is known is called. To be read, not written."""
        self._left = limit

    def admit(self, name: str, *, is_answered: bool) -> str:
        """What a name is called that is not among ``labels``. It is learnt if an upstream has answered to it: what
        clients merely ask for costs them nothing to make up."""
        if not is_answered or self._left <= 0 or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            return OTHER
        self._left -= 1
        self.labels[name] = name
        return name
