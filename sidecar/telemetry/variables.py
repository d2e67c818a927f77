"""Environment variables as OpenTelemetry's users write them, and what was found wrong in them.

Owns the reading of one value. Must not know what any variable means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_MAX_DIGITS: Final = 9


class Variables:
    """The environment, and what was found wrong in it. A value is never repeated: it may be a secret gone astray."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.warnings: list[str] = []

    def warn(self, name: str, message: str) -> None:
        self.warnings.append(f"{name}: {message}")

    def text(self, name: str) -> str:
        """An empty variable is an unset one."""
        return self._environ.get(name, "").strip()

    def word(self, name: str) -> str:
        """In lower case."""
        return self.text(name).lower()

    def words(self, name: str, known: Collection[str]) -> set[str]:
        """Those of a list that are known; others are warned of."""
        found = {word.strip() for word in self.word(name).split(",")} - {""}
        if found - set(known):
            self.warn(name, f"holds what is not supported; known are {', '.join(known)}")
        return found & set(known)

    def one_of(self, name: str, known: Collection[str], default: str) -> str:
        """A known word; any other is warned of."""
        word = self.word(name)
        if word and word not in known:
            self.warn(name, f"is none of {', '.join(known)}, so {default} is used")
        return word if word in known else default

    def number(self, name: str, default: int) -> int:
        """A whole number above zero; anything else is warned of."""
        text = self.text(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS or int(text) == 0:
            self.warn(name, f"is no whole number above zero, so {default or 'none'} is used")
            return default
        return int(text)

    def share(self, name: str) -> float:
        """As the SDK has it, everything where the argument is missing or wrong."""
        try:
            share = float(self.text(name) or "1.0")
        except ValueError:
            share = -1.0
        if not 0.0 <= share <= 1.0:
            self.warn(name, "is no share from 0.0 to 1.0, so 1.0 is used")
            return 1.0
        return share
