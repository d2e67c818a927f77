"""The line: upstream bytes in, client bytes out, in one synchronous pass.

Owns the order of the steps (frames, events, session, encoding, log) and the verdict on how a body ended. Must not know
sockets, HTTP, deadlines or who calls it; the time is passed in.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.errors import Failure, FrameTooLargeError, Outcome
from sidecar.events import Event, Extension, Frame, Reasoning, Token
from sidecar.rejection import rejection
from sidecar.stencil import check_json_string, cut_stencil

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.framing.inflate import Inflater
    from sidecar.log import Log
    from sidecar.ports import Dialect, Format, Framing
    from sidecar.session import Session

_NO_EVENTS: Final[tuple[Event, ...]] = ()
_NO_FRAME: Final = Frame(None, b"")
_CR: Final = 13  # as a number it is found by one memchr; as b"\r" it costs six times that


class BodyRelay(Protocol):
    """What a stream does with an upstream body, whatever kind it is."""

    is_terminated: bool
    """The dialect's own terminator has been relayed; the rest of the body means nothing."""
    is_last_read: bool
    """The body ends in the read that is fed now: what it makes may wait for `close`, to leave in one write."""

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame held back."""

    @property
    def is_between_frames(self) -> bool:
        """What the client has been sent ends with a whole frame: a heartbeat may follow."""

    def feed(self, data: bytes, now: float) -> None:
        """Relay one read. May raise FrameTooLargeError or Failure."""

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """The body is over, cleanly or by ``failure``: relay what is left and say how the stream ended."""

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> bytes:
        """The client's last bytes for this ending, still to be sent."""


class Relay:
    """One framed stream: decode beside (native) or into (typed) what the client is sent.

    ``proves_end``: the end of the HTTP body says that it is whole; a mere end of the connection may be a cut.
    """

    __slots__ = (
        "_dialect",
        "_format",
        "_frame_end",
        "_framing",
        "_has_frames",
        "_last",
        "_literal_at",
        "_literal_end",
        "_log",
        "_max_frame_bytes",
        "_passes_raw",
        "_payload_at",
        "_plain_start",
        "_proves_end",
        "_session",
        "_stencil_head",
        "_stencil_tail",
        "_text_template",
        "is_last_read",
        "is_terminated",
    )

    def __init__(
        self,
        framing: Framing,
        dialect: Dialect,
        format_: Format,
        session: Session,
        log: Log,
        *,
        proves_end: bool = True,
    ) -> None:
        self._framing = framing
        self._dialect = dialect
        self._format = format_
        self._session = session
        self._log = log
        self._proves_end = proves_end
        self._plain_start = dialect.plain_start
        self._payload_at = len(dialect.plain_start)
        self._frame_end = framing.frame_end
        self._max_frame_bytes = framing.max_frame_bytes
        self._passes_raw = format_.passes_raw
        self._stencil_head: bytes | tuple[()] = ()
        self._stencil_tail: bytes | tuple[()] = ()
        self._literal_at = self._literal_end = 0
        self._text_template = b""
        self._last = b""
        self._has_frames = False
        self.is_terminated = False
        self.is_last_read = False

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame held back."""
        return self._framing.pending

    @property
    def is_between_frames(self) -> bool:
        """Always in typed; in native not within a frame that passes in pieces, being too large to hold."""
        return not self._passes_raw or not self._framing.is_passing

    def feed(self, data: bytes, now: float) -> None:
        """The straight line of one read: frames → events → session → encoding → log → transport.

        Nearly every read of a generating model is one frame that differs from the one before in nothing but its text:
        the stencil knows it for one, and it takes the fewest steps there are. Any other read takes `_feed_plain`, and
        what is not plain there, the whole way.
        """
        if (
            data.startswith(self._stencil_head)
            and data.endswith(self._stencil_tail)
            and self._framing.is_settled
            and len(data) <= self._max_frame_bytes
        ):
            literal = data[self._literal_at : self._literal_end]
            try:
                is_text = check_json_string(literal) != ""
            except ValueError:
                is_text = False
            if is_text:
                session = self._session
                session.content_events += 1
                gap_s = now - session.last_content_at
                if gap_s > session.largest_gap_s:
                    session.largest_gap_s = gap_s
                session.last_content_at = now
                self._log.append(data if self._passes_raw else self._format.encode_text(self._text_template, literal))
                return
        self._feed_plain(data, now)

    def _feed_plain(self, data: bytes, now: float) -> None:
        """One frame that is one piece of content, cut without the framing; the stream's first content goes elsewhere,
        since the session has more to note of it."""
        start, end = self._payload_at, self._frame_end
        session = self._session
        if (
            session.first_content_at is not None
            and data.startswith(self._plain_start)
            and data.endswith(end)
            and data.find(b"\n", start) == len(data) - len(end)
            and _CR not in data
            and len(data) <= self._max_frame_bytes
            and self._framing.is_settled
            and (event := self._dialect.decode_plain(data[start : -len(end)])) is not None
        ):
            session.content_events += 1
            gap_s = now - session.last_content_at
            if gap_s > session.largest_gap_s:
                session.largest_gap_s = gap_s
            session.last_content_at = now
            self._log.append(data if self._passes_raw else self._format.encode_one(event))
            self._learn(data, event)
        else:
            self._feed(data, now)

    def _learn(self, frame: bytes, event: Event) -> None:
        """Cut a stencil, at every doubling of the stream's length: one whose frames keep changing is left alone."""
        count = self._session.content_events
        if count & (count - 1):
            return
        stencil = cut_stencil(
            frame,
            event,
            payload_at=self._payload_at,
            end_bytes=len(self._frame_end),
            decode_plain=self._dialect.decode_plain,
        )
        if stencil is not None and isinstance(event, Token | Reasoning):
            head, tail = self._stencil_head, self._stencil_tail = stencil
            self._literal_at, self._literal_end = len(head) - 1, 1 - len(tail)
            self._text_template = self._format.text_template(type(event), event.index)

    def _feed(self, data: bytes, now: float) -> None:
        try:
            frames = self._framing.feed(data)
        except FrameTooLargeError as error:
            self._framing.take_pending()
            self._relay(error.frames, now)
            raise
        self._relay(frames, now)
        if self._framing.flaw is not None and not self._passes_raw and not self.is_terminated:
            raise self._framing.flaw
        if self._dialect.plain_start != self._plain_start:  # the first frame said what it speaks
            self._plain_start = self._dialect.plain_start
            self._payload_at = len(self._plain_start)

    def _relay(self, frames: Sequence[Frame], now: float) -> None:
        if len(frames) == 1:
            out = self._step(frames[0], now)
        else:
            out = b"".join([self._step(frame, now) for frame in frames])
        if self.is_last_read or (self.is_terminated and not self._passes_raw):
            self._last += out  # it leaves with the stream's last words, in one write
        elif out:
            self._log.append(out)

    def _step(self, frame: Frame, now: float) -> bytes:
        """One frame through the codecs."""
        if frame.data is None or self.is_terminated:
            return self._format.encode(frame, _NO_EVENTS)
        self._has_frames = True
        events = self._dialect.decode(frame)
        self._session.advance(events, now)
        is_known = not self._dialect.completes_on_clean_end
        if self._session.first_content_at is None and _is_unread(events, is_known=is_known):
            self._session.is_unobserved = True  # nothing in a stream of unknown meaning will ever be content
        if self._dialect.terminated:
            self.is_terminated = True
            self._stencil_head = self._stencil_tail = ()
        return self._format.encode(frame, events)

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """Relay a last frame that lacks only its end mark, then judge by the endings table."""
        out = [self._step(frame, now) for frame in self._framing.flush()]
        held_back = self._dialect.finish()
        if held_back:
            self._session.advance(held_back, now)
            out.append(self._format.encode(_NO_FRAME, held_back))
        outcome, verdict = self._judge(failure)
        # A whole body without a single frame is in another framing than was thought: the client may well read it.
        is_unread = failure is None and self._framing.flaw is None and not self._has_frames
        if outcome is Outcome.COMPLETED or (is_unread and self._passes_raw):
            out.append(self._format.encode(Frame(None, self._framing.take_pending()), _NO_EVENTS))
        self._last += b"".join(out)
        return outcome, verdict

    def _judge(self, failure: Failure | None) -> tuple[Outcome, Failure | None]:
        """The endings table for a body that is over: what was said in the stream outranks how it stopped, unless it
        was we who failed."""
        if failure is not None and failure.outcome is Outcome.INTERNAL:
            return failure.outcome, failure
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
        flaw = self._framing.flaw
        if flaw is not None:
            said = flaw if failure is None or flaw.code == "malformed_upstream" else failure
            return said.outcome, said
        # Without a terminator, half a frame behind the finish marks is more of the answer that was cut off.
        if self._dialect.is_finished and (self._dialect.has_terminator or not self._framing.pending):
            if self._dialect.has_terminator:
                self._session.warnings = ("terminator_missing",)
            return Outcome.COMPLETED, None
        if failure is None:
            is_cut = self._framing.pending > 0 and not self._dialect.tolerates_partial_frame
            if self._dialect.completes_on_clean_end and self._proves_end and not is_cut:
                return Outcome.COMPLETED, None
            failure = Failure("upstream_truncated", "the upstream's stream ended before its end mark")
        return failure.outcome, failure

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> bytes:
        """What `finish` had left to relay, and the format's last words."""
        return self._last + self._format.close(self._session.ended(outcome, failure, now))


def _is_unread(events: Sequence[Event], *, is_known: bool) -> bool:
    """Output that cannot be read here; of a language that is not known, anything may be that."""
    for event in events:  # noqa: SIM110 - any() makes a generator of it, for every frame before the first content
        if event.__class__ is Extension and (event.is_output or not is_known):
            return True
    return False


class CompressedRelay(Relay):
    """A stream the upstream compressed although it was asked not to.

    Typed: inflated for the relay. Native: the compressed bytes pass unchanged and are inflated beside it, only to
    observe; nothing of ours can be put into such a body.
    """

    __slots__ = ("_inflater", "_is_observing")

    def __init__(
        self,
        framing: Framing,
        dialect: Dialect,
        format_: Format,
        session: Session,
        log: Log,
        inflater: Inflater,
        *,
        proves_end: bool = True,
    ) -> None:
        super().__init__(framing, dialect, format_, session, log, proves_end=proves_end)
        self._inflater = inflater
        self._is_observing = True

    def feed(self, data: bytes, now: float) -> None:
        """Inflate one read, in bounded pieces, and relay or observe it."""
        self.is_last_read = False  # one read makes several pieces, of which none may overtake another
        if not self._passes_raw:
            for piece in self._inflater.feed(data):
                super().feed(piece, now)
            return
        self._log.append(data)
        if self._is_observing:
            try:
                self._observe(data, now)
            except Failure:
                # What cannot be read here may well be read by the client; the body passes as it is.
                self._is_observing = False
                self._session.is_unobserved = True

    def _observe(self, data: bytes, now: float) -> None:
        for piece in self._inflater.feed(data):
            for frame in self._framing.feed(piece):
                self._step(frame, now)

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """As for a plain stream, but raw native bytes have all been sent already."""
        if not self._passes_raw:
            return super().finish(failure, now)
        if not self._is_observing:
            return self._judge_unobserved(failure)
        for frame in self._framing.flush():
            self._step(frame, now)
        self._session.advance(self._dialect.finish(), now)
        return self._judge(failure)

    def _judge_unobserved(self, failure: Failure | None) -> tuple[Outcome, Failure | None]:
        """By the HTTP body's own end, since nothing else is known; but an error that was read before stays one."""
        outcome, verdict = self._judge(failure)
        if failure is None and outcome is Outcome.UPSTREAM_BROKEN and self._proves_end:
            self._session.warnings = ("unobserved",)
            return Outcome.COMPLETED, None
        return outcome, verdict

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> bytes:
        """A compressed body takes no plain last words."""
        return b"" if self._passes_raw else super().close(outcome, failure, now)


class PlainRelay:
    """A body that is no stream of events: passed on as it comes, complete when its HTTP framing says so."""

    __slots__ = ("_log", "_status", "is_last_read", "is_terminated")

    def __init__(self, log: Log, status: int) -> None:
        self._log = log
        self._status = status
        self.is_terminated = False
        self.is_last_read = False

    @property
    def pending(self) -> int:
        """Nothing is ever held back."""
        return 0

    @property
    def is_between_frames(self) -> bool:
        """Never: there are no frames."""
        return False

    def feed(self, data: bytes, now: float) -> None:
        """Pass one read on."""
        self._log.append(data)

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """Complete unless the transport failed; a whole error answer is the upstream's rejection, passed on."""
        if failure is None and self._status >= HTTPStatus.BAD_REQUEST:
            failure = Failure("upstream_status", "the upstream rejected the request", upstream_status=self._status)
        return (Outcome.COMPLETED, None) if failure is None else (failure.outcome, failure)

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> bytes:
        """A plain body has no last words: an unfinished one ends without its last chunk."""
        return b""


class Collector:
    """The body of an upstream's error answer, kept to be put into our own words; never sent as it is."""

    __slots__ = (
        "_error_type",
        "_limit_bytes",
        "_parts",
        "_retry_after",
        "_size",
        "_status",
        "is_last_read",
        "is_terminated",
    )

    def __init__(self, status: int, limit_bytes: int, retry_after: str = "", error_type: str = "") -> None:
        self._status = status
        self._retry_after = retry_after
        self._error_type = error_type
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self.is_terminated = False
        self.is_last_read = False

    @property
    def pending(self) -> int:
        """Bytes collected."""
        return self._size

    @property
    def is_between_frames(self) -> bool:
        """Never: nothing is sent."""
        return False

    def feed(self, data: bytes, now: float) -> None:
        """Keep one read; beyond the limit the rest is not waited for."""
        self._parts.append(data[: self._limit_bytes - self._size])
        self._size += len(self._parts[-1])
        self.is_terminated = self._size >= self._limit_bytes

    def finish(self, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
        """The upstream rejected the request, in its own words as far as they came."""
        rejected = rejection(self._status, b"".join(self._parts), self._retry_after, self._error_type)
        return rejected.outcome, rejected

    def close(self, outcome: Outcome, failure: Failure | None, now: float) -> bytes:
        """Nothing was sent, so nothing is closed: the door answers with the failure's status."""
        return b""
