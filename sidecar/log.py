"""The stream's encoded bytes on their way to its subscriber: what could not be handed over yet.

Owns the order of bytes and how far behind the subscriber is. Must not know sockets, formats or policy: whoever
appends decides what being too far behind means.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.ports import Subscriber

_FLUSH_BYTES = 64 * 1024
_NO_PARTS: deque[bytes] = deque(maxlen=0)
"""A log nobody is behind, as nearly every one is: an empty deque takes 760 bytes."""


class Log:
    """An ordered run of bytes and one cursor into it.

    A subscriber that keeps up is handed each append at once and nothing is kept. One that does not is simply
    behind: ``held`` bytes wait here until `flush`. Cost per append does not grow with the stream.
    """

    __slots__ = ("_parts", "_subscriber", "end", "held")

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._parts: deque[bytes] = _NO_PARTS
        self.end = 0
        """Bytes ever appended."""
        self.held = 0
        """Bytes the subscriber is behind."""

    def append(self, data: bytes) -> None:
        """Add bytes at the end; they reach a subscriber that is caught up before this returns."""
        self.end += len(data)
        if self._subscriber.is_ready and not self.held:
            self._subscriber.write(data)
        else:
            if self._parts is _NO_PARTS:
                self._parts = deque()
            self._parts.append(data)
            self.held += len(data)

    def flush(self) -> None:
        """Hand over what is held, oldest first, for as long as the subscriber takes it."""
        parts = self._parts
        while parts and self._subscriber.is_ready:
            batch = [parts.popleft()]
            size = len(batch[0])
            while parts and size + len(parts[0]) <= _FLUSH_BYTES:
                batch.append(parts.popleft())
                size += len(batch[-1])
            self.held -= size
            self._subscriber.write(b"".join(batch))

    def drop(self) -> None:
        """Forget what is held: nobody will read it."""
        self._parts = _NO_PARTS
        self.held = 0
