"""The line: upstream bytes in, client bytes out, in one synchronous pass.

Owns the order of the steps (frames, events, session, encoding, log) and the verdict on how a body ended. Must not know
sockets, HTTP, deadlines or who calls it; the time is passed in.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.errors import Failure, Outcome
from sidecar.events import Event, Frame
from sidecar.rejection import rejection

if TYPE_CHECKING:
    from sidecar.framing.inflate import Inflater
    from sidecar.log import Log
    from sidecar.ports import Dialect, Format, Framing
    from sidecar.session import Session

_NO_EVENTS: Final[tuple[Event, ...]] = ()
_NO_FRAME: Final = Frame(None, b"")


class BodyRelay(Protocol):
    """What a stream does with an upstream body, whatever kind it is."""

    is_terminated: bool
    """The dialect's own terminator has been relayed; the rest of the body means nothing."""

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame held back."""

    def feed(self, data: bytes, now: float) -> None:
        """Relay one read. May raise FrameTooLargeError or Failure."""

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """The body is over, cleanly or by ``failure``: relay what is left and say how the stream ended."""

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> None:
        """Append the client's last bytes for this ending."""


class Relay:
    """One framed stream: decode beside (native) or into (typed) what the client is sent."""

    __slots__ = ("_dialect", "_format", "_framing", "_log", "_session", "is_terminated")

    def __init__(self, framing: Framing, dialect: Dialect, format_: Format, session: Session, log: Log) -> None:
        self._framing = framing
        self._dialect = dialect
        self._format = format_
        self._session = session
        self._log = log
        self.is_terminated = False

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame held back."""
        return self._framing.pending

    def feed(self, data: bytes, now: float) -> None:
        """The straight line of one read: frames → events → session → encoding → log → transport."""
        frames = self._framing.feed(data)
        if len(frames) == 1:
            out = self._step(frames[0], now)
        else:
            out = b"".join([self._step(frame, now) for frame in frames])
        if out:
            self._log.append(out)

    def _step(self, frame: Frame, now: float) -> bytes:
        """One frame through the codecs."""
        if frame.data is None or self.is_terminated:
            return self._format.encode(frame, _NO_EVENTS)
        events = self._dialect.decode(frame)
        self._session.advance(events, now)
        self.is_terminated = self._dialect.terminated
        return self._format.encode(frame, events)

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """Relay a last frame that lacks only its end mark, then judge by the endings table."""
        out = [self._step(frame, now) for frame in self._framing.flush()]
        held_back = self._dialect.finish()
        if held_back:
            self._session.advance(held_back, now)
            out.append(self._format.encode(_NO_FRAME, held_back))
        outcome, verdict = self._judge(failure)
        if outcome is Outcome.COMPLETED:
            out.append(self._format.encode(Frame(None, self._framing.take_pending()), _NO_EVENTS))
        if last := b"".join(out):
            self._log.append(last)
        return outcome, verdict

    def _judge(self, failure: Failure | None) -> tuple[Outcome, Failure | None]:
        """The endings table for a body that is over: what was said in the stream outranks how it stopped."""
        if (error := self._session.upstream_error) is not None:
            said = Failure(
                "upstream_error",
                error.message,
                upstream_status=error.upstream_status,
                native=error.native,
                provider_code=error.provider_code,
                retryable=error.retryable,
            )
            return said.outcome, said
        if self._dialect.terminated:
            return Outcome.COMPLETED, None
        if self._dialect.is_finished:
            self._session.warnings = ("terminator_missing",)
            return Outcome.COMPLETED, None
        if failure is None:
            if self._dialect.completes_on_clean_end:
                return Outcome.COMPLETED, None
            failure = Failure("upstream_truncated", "the upstream's stream ended before its end mark")
        return failure.outcome, failure

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> None:
        """The format's last words."""
        if last := self._format.close(self._session.ended(outcome, failure, now)):
            self._log.append(last)


class CompressedRelay(Relay):
    """A stream the upstream compressed although it was asked not to.

    Typed: inflated for the relay. Native: the compressed bytes pass unchanged and are inflated beside it, only to
    observe; nothing of ours can be put into such a body.
    """

    __slots__ = ("_inflater", "_passes_raw")

    def __init__(
        self,
        framing: Framing,
        dialect: Dialect,
        format_: Format,
        session: Session,
        log: Log,
        inflater: Inflater,
        *,
        passes_raw: bool,
    ) -> None:
        super().__init__(framing, dialect, format_, session, log)
        self._inflater = inflater
        self._passes_raw = passes_raw

    def feed(self, data: bytes, now: float) -> None:
        """Inflate one read, in bounded pieces, and relay or observe it."""
        if not self._passes_raw:
            for piece in self._inflater.feed(data):
                super().feed(piece, now)
            return
        self._log.append(data)
        for piece in self._inflater.feed(data):
            for frame in self._framing.feed(piece):
                self._step(frame, now)

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """As for a plain stream, but raw native bytes have all been sent already."""
        if not self._passes_raw:
            return super().finish(failure, now)
        for frame in self._framing.flush():
            self._step(frame, now)
        self._session.advance(self._dialect.finish(), now)
        return self._judge(failure)

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> None:
        """A compressed body takes no plain last words."""
        if not self._passes_raw:
            super().close(outcome, failure, now)


class PlainRelay:
    """A body that is no stream of events: passed on as it comes, complete when its HTTP framing says so."""

    __slots__ = ("_log", "_status", "is_terminated")

    def __init__(self, log: Log, status: int) -> None:
        self._log = log
        self._status = status
        self.is_terminated = False

    @property
    def pending(self) -> int:
        """Nothing is ever held back."""
        return 0

    def feed(self, data: bytes, now: float) -> None:
        """Pass one read on."""
        self._log.append(data)

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """Complete unless the transport failed; a whole error answer is the upstream's rejection, passed on."""
        if failure is None and self._status >= HTTPStatus.BAD_REQUEST:
            failure = Failure("upstream_status", "the upstream rejected the request", upstream_status=self._status)
        return (Outcome.COMPLETED, None) if failure is None else (failure.outcome, failure)

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> None:
        """A plain body has no last words: an unfinished one ends without its last chunk."""


class Collector:
    """The body of an upstream's error answer, kept to be put into our own words; never sent as it is."""

    __slots__ = ("_limit_bytes", "_parts", "_size", "_status", "is_terminated")

    def __init__(self, status: int, limit_bytes: int) -> None:
        self._status = status
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self.is_terminated = False

    @property
    def pending(self) -> int:
        """Bytes collected."""
        return self._size

    def feed(self, data: bytes, now: float) -> None:
        """Keep one read; beyond the limit the rest is not waited for."""
        self._parts.append(data[: self._limit_bytes - self._size])
        self._size += len(self._parts[-1])
        self.is_terminated = self._size >= self._limit_bytes

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """The upstream rejected the request, in its own words as far as they came."""
        rejected = rejection(self._status, b"".join(self._parts))
        return rejected.outcome, rejected

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> None:
        """Nothing was sent, so nothing is closed: the door answers with the failure's status."""
