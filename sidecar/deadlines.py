"""When a stream's upstream has to have done what, and which of that is overdue.

Owns the arithmetic of the ``first_token``, ``idle`` and ``total`` deadlines and of the short wait behind a terminator.
Must not know what happens when one passes, nor look at any clock; ``connect`` is the dialling's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from sidecar.errors import Failure

if TYPE_CHECKING:
    from sidecar.settings import Timeouts

NEVER: Final = float("inf")

AFTER_TERMINATOR_S: Final = 1.0
"""How long a native stream waits for its body's own end once its terminator has been relayed."""


class UpstreamTimes(TypedDict):
    """What deadlines are judged by."""

    last_bytes_at: float
    has_content: bool
    is_paused: bool


class Deadlines:
    """One stream's deadlines towards one upstream. All times are seconds of one monotonic clock."""

    __slots__ = ("_first_token_at", "_over_at", "_timeouts", "total_at")

    def __init__(self, timeouts: Timeouts, received_at: float) -> None:
        self._timeouts = timeouts
        self.total_at = received_at + timeouts.total_s
        self._first_token_at = NEVER
        self._over_at = NEVER

    @property
    def shortest_s(self) -> float:
        """No deadline that begins to run passes sooner than this."""
        return min(self._timeouts.first_token_s, self._timeouts.idle_s)

    def request_sent(self, now: float) -> None:
        """From here to the first content ``first_token`` runs."""
        self._first_token_at = now + self._timeouts.first_token_s

    def head_was_enough(self) -> None:
        """Nothing in this answer counts as content: its head ends ``first_token``."""
        self._first_token_at = NEVER

    def terminated(self, now: float) -> None:
        """The terminator has been relayed: the rest of the body is waited for a little, once."""
        if self._over_at == NEVER:
            self._over_at = now + AFTER_TERMINATOR_S

    def is_over(self, now: float) -> bool:
        """The little wait behind the terminator has passed."""
        return now >= self._over_at

    def missed_total(self, now: float) -> Failure | None:
        """The failure of a stream that takes too long altogether."""
        if now < self.total_at:
            return None
        return Failure("total_timeout", f"the stream took longer than {self._timeouts.total_s:g} s")

    def missed(self, now: float, *, last_bytes_at: float, has_content: bool, is_paused: bool) -> Failure | None:
        """The failure of an upstream that is too slow. ``idle`` stands still while we have paused it ourselves."""
        if not has_content and now >= self._first_token_at:
            return Failure("first_token_timeout", f"no content within {self._timeouts.first_token_s:g} s")
        awaits_content = not has_content and self._first_token_at != NEVER
        if is_paused or awaits_content or self._over_at != NEVER or now < last_bytes_at + self._timeouts.idle_s:
            return None
        return Failure("idle_timeout", f"the upstream sent nothing for {self._timeouts.idle_s:g} s")

    def next_at(self, *, last_bytes_at: float, has_content: bool, is_paused: bool) -> float:
        """When the nearest of all is due, as things are now."""
        nearest = min(self.total_at, self._over_at)
        if not has_content and self._first_token_at != NEVER:
            return min(nearest, self._first_token_at)
        return nearest if is_paused else min(nearest, last_bytes_at + self._timeouts.idle_s)
