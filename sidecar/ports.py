"""The verbs: what each floor asks of the floor that fulfils it.

Owns the Protocols through which core and doors use codecs and edges. Must not know any implementation.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

if TYPE_CHECKING:
    from sidecar.errors import Failure
    from sidecar.events import Event, Frame, Reasoning, Token


class Framing(Protocol):
    """Bytes to frames. Holds at most one partial frame; takes linear time over any input."""

    name: ClassVar[str]
    media_types: ClassVar[frozenset[str]]
    """The content types of bodies framed so, in lower case and without parameters."""
    frame_end: ClassVar[bytes]
    """What ends a frame on the wire; b"" where a read is a frame."""

    @property
    def max_frame_bytes(self) -> int:
        """The bound on one frame; 0 where a read is a frame, which needs none."""

    @property
    def is_passing(self) -> bool:
        """Within a frame too large to hold, which is handed out in pieces."""

    @property
    def is_settled(self) -> bool:
        """Nothing of an earlier read bears on the next one."""

    @property
    def pending(self) -> int:
        """Bytes of the partial frame held back."""

    @property
    def flaw(self) -> Failure | None:
        """What is broken in the framing itself, so that no frame can be told from here on (a checksum, say), or what
        `flush` found missing at the end (a bracket); None as long as all is well. What follows a flaw is handed out
        in pieces with ``data=None``."""

    @classmethod
    def joint(cls, last: bytes) -> bytes:
        """What has to stand between ``last``, the latest whole frames relayed (b"" for none), and a frame of ours."""

    def feed(self, data: bytes) -> Sequence[Frame]:
        """The frames completed by ``data``. Raises FrameTooLargeError in strict mode; lenient framings
        hand an oversized frame through in pieces with ``data=None`` instead."""

    def flush(self) -> Sequence[Frame]:
        """At the end of the body: what is left, where it still makes a whole frame; else nothing.

        Bytes that make no whole frame stay in ``pending``."""

    def take_pending(self) -> bytes:
        """The bytes of the partial frame, which are then no longer held."""


class Dialect(Protocol):
    """Frames to events, for one stream. Keeps what it needs to number choices and calls, nothing that grows."""

    @property
    def name(self) -> str:
        """What it is called in the configuration; of one that is yet to be told, what it is taken for."""

    @property
    def has_terminator(self) -> bool:
        """There is a frame that says "this was all"; without one the finish marks and the body's end say so."""

    @property
    def completes_on_clean_end(self) -> bool:
        """A whole body is a whole stream: there is neither terminator nor finish mark (raw text, unknown streams)."""

    @property
    def tolerates_partial_frame(self) -> bool:
        """Where a clean end completes: also one within a frame. Else such an end is a cut, whoever made it."""

    @property
    def terminated(self) -> bool:
        """The dialect's own terminator has been seen; whatever follows is ignored."""

    @property
    def plain_start(self) -> bytes:
        """How the dialect's commonest frame begins on the wire; between this and the frame's end lies its payload."""

    def decode_plain(self, payload: bytes) -> Event | None:
        """The one event of a frame that is nothing but a piece of content; None for any other, which changes nothing
        here and goes through `decode`. The plain lane and the full one give the same events."""

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame with data. Never raises: what cannot be parsed is an Extension."""

    def finish(self) -> Sequence[Event]:
        """At the end of the stream: events still held back (an id that never came)."""

    @property
    def is_finished(self) -> bool:
        """A finish mark has come for every choice that began, and at least one did."""

    def error_frame(self, failure: Failure, framing: str) -> bytes:
        """The dialect's own way to say, inside a stream of ``framing``, that it failed; b"" where it has none."""


class DialectKind(Protocol):
    """What the table of dialects holds: the class of each, which makes a `Dialect` and knows where it is spoken."""

    @property
    def name(self) -> str:
        """What it is called in the configuration."""

    @property
    def framings(self) -> tuple[str, ...]:
        """The framings it is spoken in, by their names."""

    @property
    def paths(self) -> tuple[str, ...]:
        """How the paths end that it is asked for at: ``*`` is any part of one segment, ``**`` any number of
        segments."""

    @property
    def streams_by_default(self) -> bool:
        """A request to one of ``paths`` that says nothing of streaming asks for a stream."""

    def recognises(self, frame: Frame) -> bool:
        """Whether a stream that begins with ``frame``, asked for at a path nobody knows, is one of this dialect's."""

    def __call__(self) -> Dialect:
        """A fresh dialect for one stream."""


class Ended(msgspec.Struct, gc=False):
    """What a format needs to close a stream; all times in milliseconds."""

    status: str
    finish_reasons: list[Any]
    ttft_ms: float | None
    duration_ms: float
    content_events: int
    warnings: list[str]
    usage: Any = None
    failure: Any = None


class Format(Protocol):
    """Events to what the client is sent, for one stream."""

    name: ClassVar[str]
    content_type: str | None
    """What the client is told; None keeps the upstream's own."""
    heartbeat: bytes
    """Bytes that say "still here" between frames; b"" where that is not safe."""

    passes_raw: ClassVar[bool]
    """What is sent for a frame is the frame itself."""

    def text_template(self, kind: type[Token | Reasoning], index: int) -> bytes:
        """What `encode_text` makes events of ``kind`` for choice ``index`` from."""

    def encode_text(self, template: bytes, literal: bytes) -> bytes:
        """`encode_one` for an event whose text is ``literal``, a JSON string as it came from the upstream."""

    def encode_one(self, event: Event) -> bytes:
        """`encode` for the one event of a frame within a stream that has begun."""

    def encode(self, frame: Frame, events: Sequence[Event]) -> bytes:
        """What the client is sent for one frame and the events it decoded to; b"" for nothing."""

    def close(self, ended: Ended) -> bytes:
        """The last bytes of the stream, whatever its outcome. Called once."""


class ResponseHead(msgspec.Struct, gc=False):
    """An upstream's final answer, before its body. ``headers`` keep order and spelling; names are as sent."""

    status: int
    reason: str
    headers: list[tuple[bytes, bytes]]
    http_version: str
    is_eof_delimited: bool
    """Nothing but the end of the connection ends this body."""


class ResponseSink(Protocol):
    """Who is told what an upstream answers. Every call is synchronous, inside the connection's data callback.

    Order: on_head, any number of on_body, then exactly one of on_end or on_fail; or on_fail alone. None of them is
    called again after ``Exchange.abort``.
    """

    def on_head(self, head: ResponseHead) -> None:
        """The final (not 1xx) status and headers have come."""

    def on_body(self, data: bytes) -> None:
        """A piece of the decoded (not chunked) body, as it came from one read; never empty."""

    def on_last_body(self, data: bytes) -> None:
        """`on_body` for the read that ends the body: on_end or on_fail follows in this very turn."""

    def on_end(self) -> None:
        """The body is whole: last chunk, full Content-Length, or EOF where only that ends it."""

    def on_fail(self, failure: Failure, *, may_resend: bool) -> None:
        """The exchange is over. ``may_resend``: a reused connection gave not one byte, so the request was not seen."""


class Exchange(Protocol):
    """One request on one upstream connection."""

    def pause(self) -> None:
        """Stop reading the upstream. Idempotent."""

    def resume(self) -> None:
        """Read on. Idempotent."""

    def abort(self) -> None:
        """Drop the connection now, in this turn of the loop; the sink hears nothing more. Idempotent."""

    def hand_to(self, sink: ResponseSink) -> None:
        """From now on ``sink`` is told what comes, in place of the one before."""

    def drain(self) -> None:
        """The sink wants no more: take the rest of the body in silence so the connection can be used again,
        within small bounds of bytes and time, else abort."""

    @property
    def is_writable(self) -> bool:
        """The request body may be written on: the connection's write buffer is below its mark."""

    async def wait_writable(self) -> None:
        """Suspends until ``is_writable`` or the connection is lost. Never raises for a lost connection."""

    def write_body(self, data: bytes) -> None:
        """Send a piece of the request body (framed as its head promised)."""

    def end_body(self) -> None:
        """The request body is whole."""


class Waiter(Protocol):
    """Something a door waits for; a future of its loop."""

    def done(self) -> bool:
        """It has been resolved."""

    def set_result(self, result: None, /) -> None:
        """Let the door go on. Once only."""

    def __await__(self) -> Generator[Any, None, None]:
        """Suspends until resolved."""


class Cancellable(Protocol):
    """Work that can be called off: a task of the registry's, or a timer."""

    def cancel(self) -> object:
        """Call it off. Idempotent."""


class Subscriber(Protocol):
    """One client connection reading a stream."""

    is_ready: bool
    """It takes bytes now; False while its transport is full."""

    def write(self, data: bytes) -> None:
        """Hand bytes to the client's transport, framed as its HTTP version wants them."""


class ClientSide(Subscriber, Protocol):
    """What a stream asks of its client's connection beyond reading the log."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes in the transport's own buffer."""

    def start(self, head: bytes, *, is_chunked: bool) -> None:
        """Send the answer's head, now or with the body that comes in this turn; every later write is body."""

    def finish(self, last: bytes) -> None:
        """``last`` makes the body whole: send it and say so."""

    def abort(self) -> None:
        """Drop the connection now."""

    def undelivered_bytes(self) -> int:
        """Bytes written that the client's side has not acknowledged; while it is full, progress is their falling."""

    def is_peer_gone(self) -> bool:
        """The kernel knows that the client closed, though nobody has read that yet."""


class Scope(msgspec.Struct, frozen=True):
    """What a limit of active streams is about. ``kind`` is "process", "route", "upstream" or "caller"; ``limit`` 0 is
    none. Two scopes of one kind and name are counted together, whatever their limits."""

    kind: str
    name: str
    limit: int


class Counts(Protocol):
    """How many streams are active in each scope, in this process or in all that share its ports.

    Every call returns at once. ``is_shared``: others count too, so that a place may become free unheard.
    """

    @property
    def is_shared(self) -> bool:
        """Other processes count in the same scopes."""

    def take(self, scopes: Sequence[Scope]) -> Scope | None:
        """Count one stream in all of ``scopes`` and return None; or, where one is full, count nothing and return it."""

    def give(self, scopes: Sequence[Scope]) -> None:
        """One stream less in each of ``scopes``."""

    def used(self, scope: Scope) -> int:
        """How many are active in ``scope`` now."""
