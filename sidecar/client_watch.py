"""Whether a client takes what it is sent, and when it is due a sign of life.

Owns how far behind is too far, and the two clocks of the client's side: progress while it is full, silence while all is
quiet. Must not know sockets or policy; it is told times and byte counts by the stream, never per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.settings import Limits

_NEVER: Final = float("inf")


def is_far_behind(lag_bytes: int, limits: Limits) -> bool:
    """The upstream is to be paused: a quarter of the buffer is used, and the read that went over the mark may have
    brought as much as the kernel held for us (twice SO_RCVBUF and a segment)."""
    return lag_bytes > limits.buffer_bytes // 4


def is_nearly_level(held_bytes: int, limits: Limits) -> bool:
    """The upstream may be read on."""
    return held_bytes <= limits.buffer_bytes // 8


class ClientWatch:
    """One client's progress and silence. All times are seconds of one monotonic clock."""

    __slots__ = ("_progress_at", "_quiet_at", "_sent_bytes", "_undelivered_bytes")

    def __init__(self, now: float) -> None:
        self._undelivered_bytes = self._progress_at = _NEVER
        self._quiet_at = now
        self._sent_bytes = 0

    def blocked(self, now: float) -> None:
        """The client's transport is full: from now on it has to make progress."""
        self._undelivered_bytes = _NEVER
        self._progress_at = now

    def is_stalled(self, undelivered_bytes: int, now: float, stall_timeout_s: float) -> bool:
        """A full client took nothing for ``stall_timeout_s``: progress is that what it has not taken gets less."""
        if undelivered_bytes < self._undelivered_bytes:
            self._undelivered_bytes = undelivered_bytes
            self._progress_at = now
            return False
        return now >= self._progress_at + stall_timeout_s

    def quiet_since(self, sent_bytes: int, last_bytes_at: float) -> float:
        """Since when the client has been sent nothing: ``sent_bytes`` is all it was ever sent, ``last_bytes_at`` the
        latest that some of it can have been."""
        if sent_bytes != self._sent_bytes:
            self._sent_bytes = sent_bytes
            self._quiet_at = last_bytes_at
        return self._quiet_at

    def heartbeat_sent(self, now: float) -> None:
        """The silence begins anew."""
        self._quiet_at = now
