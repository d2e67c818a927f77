"""A request between its reading and its answer.

Owns the one reference to what was read of it. Must not know where that came from or goes to.
"""

from __future__ import annotations

from typing import Any


class HeldRequest:
    """What another connection or upstream may need: kept until an answer has begun.

    ``body`` is None for one that is streamed through; ``head`` is the door's own record of the rest. The one reference
    to either, so that letting go here frees it, however long the stream goes on.
    """

    __slots__ = ("body", "head")

    def __init__(self, body: bytes | None = b"", head: Any = None) -> None:
        self.body = body
        self.head = head

    @property
    def held_bytes(self) -> int:
        """How much of it counts as buffered."""
        return len(self.body or b"")

    def let_go(self) -> None:
        """Nobody will ask for it again. What is streamed through is still being read, and stays."""
        if self.body is not None:
            self.body = b""
            self.head = None
