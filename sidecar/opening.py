"""An answer that began before its upstream's: what stands in for the relay until there is one.

Owns that such a client is told of every failure in its stream, since it has had its head. Must not know heads,
dialects or who is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import Failure
from sidecar.relay import Collector

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.errors import Outcome
    from sidecar.ports import Ended
    from sidecar.relay import BodyRelay
    from sidecar.session import Session


class Opening:
    """No body yet. ``last_words`` is how a format, or a dialect, ends a stream in which nothing has been said."""

    __slots__ = ("_last_words", "_session", "is_last_read", "is_terminated")

    def __init__(self, session: Session, last_words: Callable[[Ended], bytes]) -> None:
        self._session = session
        self._last_words = last_words
        self.is_terminated = False
        self.is_last_read = False

    @property
    def pending(self) -> int:
        """Nothing has come."""
        return 0

    @property
    def is_between_frames(self) -> bool:
        """Always: there are none."""
        return True

    def feed(self, data: bytes, now: float) -> None:
        """Never asked for: whatever sends a body has a relay of its own."""
        raise NotImplementedError

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """Nobody answered, for this reason."""
        failure = failure or Failure("upstream_truncated", "the upstream gave no answer")
        return failure.outcome, failure

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> bytes:
        """All that the client is ever told."""
        return self._last_words(self._session.ended(outcome, failure, now))


class ToldRejection(Collector):
    """An upstream's error answer that its client is told of in the stream it has."""

    __slots__ = ("_opening",)

    def __init__(self, status: int, limit_bytes: int, retry_after: str, error_type: str, opening: BodyRelay) -> None:
        super().__init__(status, limit_bytes, retry_after, error_type)
        self._opening = opening

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> bytes:
        """The rejection, in the words of a stream in which nothing has been said."""
        return self._opening.close(outcome, failure, now)
