"""A dialect that stands before another, and is it in everything that it does not do itself.

Owns the handing on, once for all who stand so. Must not know any dialect, nor why somebody stands there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.errors import Failure
    from sidecar.events import Event, Frame
    from sidecar.ports import Dialect


class StandIn:
    """Fulfils `sidecar.ports.Dialect` by ``actual``, which a subclass may exchange for another."""

    __slots__ = ("_actual",)

    def __init__(self, actual: Dialect) -> None:
        self._actual = actual

    @property
    def name(self) -> str:
        """As the actual dialect."""
        return self._actual.name

    @property
    def has_terminator(self) -> bool:
        """As the actual dialect."""
        return self._actual.has_terminator

    @property
    def completes_on_clean_end(self) -> bool:
        """As the actual dialect."""
        return self._actual.completes_on_clean_end

    @property
    def tolerates_partial_frame(self) -> bool:
        """As the actual dialect."""
        return self._actual.tolerates_partial_frame

    @property
    def terminated(self) -> bool:
        """As the actual dialect."""
        return self._actual.terminated

    @property
    def plain_start(self) -> bytes:
        """As the actual dialect."""
        return self._actual.plain_start

    @property
    def is_finished(self) -> bool:
        """As the actual dialect."""
        return self._actual.is_finished

    def decode_plain(self, payload: bytes) -> Event | None:
        """As the actual dialect."""
        return self._actual.decode_plain(payload)

    def decode(self, frame: Frame) -> Sequence[Event]:
        """As the actual dialect."""
        return self._actual.decode(frame)

    def finish(self) -> Sequence[Event]:
        """As the actual dialect."""
        return self._actual.finish()

    def error_frame(self, failure: Failure, framing: str) -> bytes:
        """As the actual dialect."""
        return self._actual.error_frame(failure, framing)
