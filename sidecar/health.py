"""Whether an upstream may be asked: what streams and checks met there lately.

Owns the circuit's states and their times. Must not know sockets, routes or who checks; the time is passed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.errors import Failure


class Health:
    """One upstream's. Times are seconds of one monotonic clock."""

    __slots__ = ("_resting_until",)

    def __init__(self) -> None:
        self._resting_until = float("-inf")

    def admits(self, now: float) -> bool:
        """Whether a stream may be sent there now. While the circuit is half open one may, and that call takes it."""
        return now >= self._resting_until

    def refusal(self, now: float) -> Failure | None:
        """Why none may: ``upstream_starting`` or ``upstream_unavailable``, with its Retry-After. None where one may.
        Takes nothing."""

    def succeeded(self, now: float) -> None:
        """A stream's answer began there, or a check was answered."""

    def failed(self, failure: Failure, now: float) -> None:
        """A stream, or a check, met this there. Failures that say nothing of its health change nothing."""

    def untold(self) -> None:
        """What was taken by `admits` came to no verdict: the client left first, say."""

    def rest(self, until: float) -> None:
        """It asked to be left alone until then (its Retry-After)."""
        self._resting_until = max(self._resting_until, until)
