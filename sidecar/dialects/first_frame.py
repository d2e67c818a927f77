"""A stream whose path says nothing: its first frame says what it speaks.

Owns that one decision and hands everything else to whoever was chosen. Must not know any dialect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.errors import Failure
    from sidecar.events import Event, Frame
    from sidecar.ports import Dialect, DialectKind


class Undecided:
    """One stream that is any of ``candidates``, the first that recognises its first frame with data; else ``fallback``.

    Until then, and where nobody does, it is the fallback's.
    """

    __slots__ = ("_actual", "_candidates")

    def __init__(self, candidates: Sequence[DialectKind], fallback: Dialect) -> None:
        self._candidates = candidates
        self._actual = fallback

    @property
    def has_terminator(self) -> bool:
        """As the dialect it is taken for."""
        return self._actual.has_terminator

    @property
    def completes_on_clean_end(self) -> bool:
        """As the dialect it is taken for."""
        return self._actual.completes_on_clean_end

    @property
    def tolerates_partial_frame(self) -> bool:
        """As the dialect it is taken for."""
        return self._actual.tolerates_partial_frame

    @property
    def terminated(self) -> bool:
        """As the dialect it is taken for."""
        return self._actual.terminated

    @property
    def plain_start(self) -> bytes:
        """As the dialect it is taken for."""
        return self._actual.plain_start

    @property
    def is_finished(self) -> bool:
        """As the dialect it is taken for."""
        return self._actual.is_finished

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame, the first of which decides."""
        if self._candidates and frame.data:
            for candidate in self._candidates:
                if candidate.recognises(frame):
                    self._actual = candidate()
                    break
            self._candidates = ()
        return self._actual.decode(frame)

    def decode_plain(self, payload: bytes) -> Event | None:
        """As the dialect it is taken for."""
        return self._actual.decode_plain(payload)

    def finish(self) -> Sequence[Event]:
        """As the dialect it is taken for."""
        return self._actual.finish()

    def error_frame(self, failure: Failure, framing: str) -> bytes:
        """As the dialect it is taken for."""
        return self._actual.error_frame(failure, framing)
