"""A plain JSON answer where a stream was asked for: an error told under a status of success, or an answer after all.

Owns that neither head nor body reaches the client before that is known. Must not know what either head is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakMethod

from sidecar.errors import Failure
from sidecar.rejection import said_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.answer import Answer
    from sidecar.errors import Outcome
    from sidecar.framing.inflate import Inflater
    from sidecar.session import Session

MAX_ERROR_BYTES: Final = 64 * 1024
"""No error is longer than this; a body that is, is an answer."""


class WithheldRelay:
    """Keeps a body back until it is whole, or too long for an error, and has one of two answers ``begin`` then.

    ``as_it_is`` passes the body on; ``as_stream`` is the stream that was asked for, which tells the error and ends.
    ``inflater`` undoes the body's content coding, None where it has none.
    """

    __slots__ = (
        "_as_it_is",
        "_as_stream",
        "_begin",
        "_begun",
        "_held",
        "_inflater",
        "_session",
        "is_last_read",
        "is_terminated",
    )

    def __init__(
        self,
        as_it_is: Answer,
        as_stream: Answer,
        begin: Callable[[Answer], None],
        session: Session,
        inflater: Inflater | None,
    ) -> None:
        self._as_it_is = as_it_is
        self._as_stream = as_stream
        # The stream refers to this relay; a cycle would outlive a stream that ends before its answer begins.
        self._begin = WeakMethod(begin)
        self._begun: Answer | None = None
        self._session = session
        self._inflater = inflater
        self._held = bytearray()
        self.is_terminated = False
        self.is_last_read = False

    @property
    def pending(self) -> int:
        """Bytes of the body kept back."""
        return len(self._held)

    @property
    def is_between_frames(self) -> bool:
        """Never: nothing is sent."""
        return False

    def feed(self, data: bytes, now: float) -> None:
        """Keep one read; with one too many, pass all of them on."""
        self._held += data
        if len(self._held) > MAX_ERROR_BYTES:
            self._pass_on(now)

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """A whole body is told as the error it says, or passed on; of a broken one nothing is sent."""
        if failure is not None:
            return failure.outcome, failure
        error = said_error(self._plain_body())
        if error is None:
            return self._pass_on(now).relay.finish(None, now)
        self._session.advance((error,), now)
        self._start(self._as_stream)
        return self._as_stream.relay.finish(None, now)

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> bytes:
        """The last words of the answer that was begun."""
        return b"" if self._begun is None else self._begun.relay.close(outcome, failure, now)

    def _start(self, answer: Answer) -> None:
        self._begun = answer
        answer.relay.is_last_read = self.is_last_read
        begin = self._begin()
        if begin is not None:
            begin(answer)

    def _pass_on(self, now: float) -> Answer:
        self._start(self._as_it_is)
        body = bytes(self._held)
        self._held.clear()
        if body:
            self._as_it_is.relay.feed(body, now)
        return self._as_it_is

    def _plain_body(self) -> bytes:
        if self._inflater is None:
            return bytes(self._held)
        try:
            return b"".join(self._inflater.feed(bytes(self._held)))
        except Failure:
            return b""  # what cannot be read here may well be read by the client
