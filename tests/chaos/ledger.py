"""What was really sent and asked in a chaos run, written down by those who did it.

Owns the entries of both ends. Must not know faults, sockets or the sidecar; the oracle compares them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tests.chaos.answers import Language


@dataclass
class Sent:
    """One answer of an upstream, as far as it was sent. ``body`` is without its transfer coding."""

    upstream: str
    fault: str
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    text: str = ""
    """What the whole frames in ``body`` tell."""
    broken_frames: int = 0
    has_end_mark: bool = False
    is_finished: bool = False
    """It told that it is finished, whether or not the end mark followed."""
    is_framed_whole: bool = False
    """The body was ended as its head said that it would be."""
    is_unproven: bool = False
    """Only the end of the connection ends it."""

    @property
    def may_complete(self) -> bool:
        """A client may be told that this was a complete answer to its request for a stream."""
        return self.has_end_mark or self.is_finished


@dataclass
class Got:
    """One request of a client, and what came of it. ``is_whole``: its body was ended as its head had said."""

    number: int
    kind: str
    language: Language | None = None
    is_typed: bool = False
    body: bytes = b""
    """The request's own."""
    began: bool = False
    """All of the request was sent."""
    left: str = ""
    """How the client left before the end of the answer; "" where it stayed."""
    status: int = 0
    stream_id: str = ""
    format: str = ""
    answer: bytes = b""
    is_whole: bool = False
    is_until_close: bool = False
    """Only the end of the connection can end its body, which proves nothing."""


@dataclass
class Ledger:
    """All entries of one round."""

    sent: defaultdict[int, list[Sent]] = field(default_factory=lambda: defaultdict(list))
    """By the request's number."""
    received: defaultdict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    """Request bodies that an upstream took for whole, by number."""
    got: list[Got] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
