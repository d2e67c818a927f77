"""The text of one SGLang choice: all of it again in every frame, or, if the server was started so, the next piece.

Owns finding out which of the two a stream is, without losing or repeating a character. Must not know frames.

Two things tell. Token ids are as many as the completion's count where they are all of them, and then so is the text.
Where they are fewer, or are not sent, the text itself tells: one that does not begin with the one before it is a piece.
One that does is all, unless that was chance (pieces ``1`` and ``10``), so a server that sends its ids in pieces has one
frame of its text held back, until the next one tells.
"""

from __future__ import annotations

from sidecar.dialects.growing_text import GrowingText


class ChoiceText:
    """One choice's text, so far."""

    __slots__ = ("_first", "_first_again", "_growing", "_held", "_held_times", "_is_in_pieces")

    def __init__(self) -> None:
        self._growing: GrowingText | None = None
        self._is_in_pieces = False
        # The first text was told as it came. What follows while nothing is certain: that text again so many times, then
        # a longer one so many times.
        self._first = ""
        self._first_again = 0
        self._held = ""
        self._held_times = 0

    def news(self, text: str, *, holds_all: bool | None, is_last: bool) -> tuple[str, bool]:
        """What is to be told now, and False where a text that should begin with what was told does not.

        ``holds_all``: the frame's token ids are all (True) or some (False) of the completion's; None without ids."""
        if self._is_in_pieces:
            return text, True
        if self._growing is not None:
            return self._growing.news(text)
        if not self._first:
            self._first = text
            return text, True
        last = self._held or self._first
        if not holds_all and not text.startswith(last):
            return self._take_apart() + text, True
        is_longer = len(text) > len(last)
        if holds_all or is_last or (is_longer and (holds_all is None or self._held)):
            self._growing = GrowingText(self._first)
            self._first = self._held = ""
            return self._growing.news(text)
        if is_longer or self._held:
            self._held = text
            self._held_times = 1 if is_longer else self._held_times + 1
        else:
            self._first_again += 1
        return "", True

    def release(self) -> str:
        """At the end of the stream: what is still held back, taken for all of the text, as it mostly is."""
        tail = self._held[len(self._first) :] if self._held else ""
        self._held = ""
        return tail

    def _take_apart(self) -> str:
        """The text comes in pieces: those that were taken for repetitions."""
        self._is_in_pieces = True
        pieces = self._first * self._first_again + self._held * self._held_times
        self._first = self._held = ""
        return pieces
