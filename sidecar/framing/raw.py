"""Raw text: whatever has come is a frame.

Owns that no frame ends inside a character. Must not know what the text means.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, ClassVar

from sidecar.events import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.errors import Failure


class RawFraming:
    """Frames of one text body: each read is one, less the first bytes of a UTF-8 character not yet whole.

    Broken UTF-8 is passed on as it is; only a sequence that may still become whole is held back (3 bytes at most), so
    no frame outgrows its read and neither ``max_frame_bytes`` nor ``strict`` has anything to bound.
    """

    __slots__ = ("_held",)

    name: ClassVar[str] = "raw"
    media_types: ClassVar[frozenset[str]] = frozenset({"text/plain"})
    frame_end: ClassVar[bytes] = b""
    flaw: ClassVar[Failure | None] = None
    is_settled: ClassVar[bool] = False
    is_passing: ClassVar[bool] = False
    max_frame_bytes: ClassVar[int] = 0

    def __init__(self, max_frame_bytes: int, *, strict: bool) -> None:
        self._held = b""

    @property
    def pending(self) -> int:
        """Bytes of the partial character held back."""
        return len(self._held)

    def feed(self, data: bytes) -> Sequence[Frame]:
        """One frame of every whole character of ``data``; none where it holds no whole one."""
        if not data:
            return ()
        if self._held:
            data = self._held + data
            self._held = b""
        if data[-1] >= 0x80:
            # The codec is told that more may come, so it stops before a sequence that is not whole yet.
            whole = codecs.utf_8_decode(data, "replace", False)[1]
            if whole < len(data):
                self._held = data[whole:]
                data = data[:whole]
                if not data:
                    return ()
        return (Frame(data, data),)

    @classmethod
    def joint(cls, last: bytes) -> bytes:
        """Nothing: there are no frames to tell apart."""
        return b""

    def take_pending(self) -> bytes:
        """The bytes of the partial character, which are then no longer held."""
        held, self._held = self._held, b""
        return held

    def flush(self) -> Sequence[Frame]:
        """The bytes held back, which will never become a character."""
        held = self.take_pending()
        return (Frame(held, held),) if held else ()
