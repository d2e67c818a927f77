"""What is known of a request when it is over: one record, made once, for whoever tells people about it.

Owns the nouns between the data plane and its observers. Must not know who observes, nor how: no OpenTelemetry, no log
lines, no clock. All times are seconds of the data plane's one monotonic clock; None where the mark was never reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.errors import Failure, Outcome
    from sidecar.events import Usage


class Trace(msgspec.Struct, gc=False):
    """One request's place in a trace, decided before its upstream is called.

    Ids are lower-case hex as W3C Trace Context writes them: 32 digits for a trace, 16 for a span. ``parent_id`` is the
    caller's span, "" where the trace begins here. ``state`` is the tracestate that travels on unchanged.
    """

    trace_id: str
    server_id: str
    """The span of the client's request."""
    client_id: str
    """The span of the logical call behind it, which upstreams see as their parent."""
    parent_id: str = ""
    state: str = ""
    is_sampled: bool = True

    @property
    def traceparent(self) -> bytes:
        """The header that makes an upstream's spans children of the call (W3C Trace Context, section 3.2)."""
        return b"00-%b-%b-%b" % (self.trace_id.encode(), self.client_id.encode(), b"01" if self.is_sampled else b"00")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What an upstream is sent of it, names in lower case."""
        own = [(b"traceparent", self.traceparent)]
        return [*own, (b"tracestate", self.state.encode("latin-1", "replace"))] if self.state else own


class Content(msgspec.Struct, gc=False):
    """What was said, where the configuration asks for it to be kept: bounded, and cut where it was longer."""

    request: str = ""
    """The request's body."""
    answer: str = ""
    """The visible text of all choices."""
    is_cut: bool = False


class Record(msgspec.Struct, gc=False, kw_only=True):
    """One request from its head to its outcome. "" and None are what was not known or never happened."""

    stream_id: str
    outcome: Outcome
    failure: Failure | None = None
    trace: Trace | None = None

    method: str
    path: str
    """Without its query; decoded, as routes match it, where it is one that may be."""
    scheme: str = "http"
    http_version: str = "1.1"
    status: int | None = None
    """What the client was answered; None where nothing was sent."""
    upstream_status: int | None = None
    """What the upstream answered; of several tried, the last."""

    route: str = ""
    """The route's name."""
    route_path: str = ""
    """The pattern the request's path fitted."""
    upstream: str = ""
    """The upstream's name; of several tried, the last."""
    server_address: str = ""
    server_port: int = 0
    dialect: str = ""
    """The language of the answer, or of the path where the answer told none; "" where neither did."""
    format: str = "native"
    is_stream: bool = False
    """A stream was asked for, or one came."""
    attempts: int = 0
    """How many times an upstream was asked or dialled."""

    requested_model: str = ""
    sent_model: str = ""
    """After the upstream's model_map."""
    response_model: str = ""
    response_id: str = ""
    finish_reasons: tuple[str, ...] = ()
    usage: Usage | None = None
    """The last that was reported, however it ended; ``native`` has its own counts alone."""
    warnings: tuple[str, ...] = ()

    received_at: float
    """t0: its head had been read."""
    body_read_at: float | None = None
    """tb: its body was complete; of one that is streamed through, along with t1."""
    queued_s: float | None = None
    """tq: how long it waited for a place, between tb and t1; None where it had one at once."""
    sent_at: float | None = None
    """t1: the upstream had been sent it; of several tried, the last. None where content came first."""
    first_content_at: float | None = None
    """t2: the first event with content was decoded."""
    first_sent_at: float | None = None
    """t3: its bytes were handed to the client's transport."""
    last_content_at: float | None = None
    """t4: the last content."""
    ended_at: float
    """t5."""
    content_events: int = 0
    largest_gap_s: float | None = None
    """The longest wait between two events with content; None where there were fewer than two."""
    content: Content | None = None


class Observer(Protocol):
    """Who is told of requests. Every call returns at once: none may wait, fail or keep the caller's data plane busy."""

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        """The place in a trace of a request with these headers; None where nobody traces."""

    def started(self) -> None:
        """A request's head has been read; one `ended` follows."""

    def ended(self, record: Record) -> None:
        """A request is over. Called exactly once for each, refused ones too."""

    def turned(self, late_s: float) -> None:
        """The loop came round to its sweep of every 250 ms, ``late_s`` after it was due."""


class Nobody:
    """The observer of a process that nobody watches."""

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        """There is no trace."""

    def started(self) -> None:
        """Nobody wants to know."""

    def ended(self, record: Record) -> None:
        """Nobody wants to know."""

    def turned(self, late_s: float) -> None:
        """Nobody wants to know."""


NOBODY: Final = Nobody()
