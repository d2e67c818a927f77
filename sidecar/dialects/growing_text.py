"""Text that is sent whole again and again, longer each time: what of it is news.

Owns that reckoning, in a state that does not grow with the text. Must not know who sends it.
"""

from __future__ import annotations


class GrowingText:
    """The text of one choice, as far as it has been told.

    Only its length and hash are kept: they say whether another text begins with it as surely as the text itself would.
    """

    __slots__ = ("_hash", "_length")

    def __init__(self, text: str = "") -> None:
        self._length = len(text)
        self._hash = hash(text)

    def news(self, text: str) -> tuple[str, bool]:
        """What ``text`` has beyond what was told, and whether it really begins with that. ``text`` is then told.

        Where it does not (the server took something back), only what lies beyond the old length is news, as to every
        client that prints a growing text."""
        told = text[: self._length]
        does_extend = len(told) == self._length and hash(told) == self._hash
        news = text[self._length :]
        self._length, self._hash = len(text), hash(text)
        return news, does_extend
