"""A request's body between its reading and its answer.

Owns the one reference to its bytes. Must not know where they came from or go to.
"""

from __future__ import annotations


class HeldBody:
    """A request's body, kept until an answer has begun: another connection or upstream may need it.

    The one reference to it, so that letting go here frees it, however long the stream goes on.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
