"""The one observer of the data plane: metrics, spans and log lines of every request.

Owns what the loop does at a request's end, and the order in which the parts begin and stop. Must not know how any of
them works, nor the data plane.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from sidecar.telemetry.waiting import Waiting, make_writable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.record import Record, Trace
    from sidecar.telemetry.line_output import LineOutput
    from sidecar.telemetry.span_export import SpanExport
    from sidecar.telemetry.tracing import Tracing

CLOSE_TIMEOUT_S: Final = 3.0
"""How long each exporter may take to send what is left when the process ends."""

CONTENT_BYTES: Final = 64 * 1024
"""Of a request, and of its answer, where content is captured at all."""


class MetricsKept(Protocol):
    """The process's metrics. `started`, `ended` and `turned` are the loop's."""

    def started(self) -> None:
        """A request's head has been read."""

    def ended(self, record: Record) -> None:
        """A request is over."""

    def turned(self, late_s: float) -> None:
        """The loop came round."""

    def prometheus(self, accept: str = "") -> tuple[bytes, str]:
        """The page that is scraped, and its content type."""


class Sender(Protocol):
    """A thread that sends something on."""

    def start(self) -> None:
        """Begin."""

    def close(self, timeout_s: float) -> None:
        """Send what is left, within this time."""


class Telemetry:
    """Fulfils `sidecar.record.Observer`. Each part may be missing: what is not wanted costs nothing.

    ``clock`` is the data plane's monotonic clock in seconds, ``wall_clock_ns`` counts from 1970. ``lines`` belongs to
    the whole process and is neither started nor closed here.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        wall_clock_ns: Callable[[], int],
        *,
        tracing: Tracing | None = None,
        metrics: MetricsKept | None = None,
        metric_export: Sender | None = None,
        spans: SpanExport | None = None,
        lines: LineOutput | None = None,
        captures_content: bool = False,
    ) -> None:
        self.content_bytes = CONTENT_BYTES if captures_content and spans is not None else 0
        """How much of what either side says is to be kept for the spans; 0 for nothing."""
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._tracing = tracing
        self._metrics = metrics
        self._spans = spans
        self._lines = lines if lines is not None and lines.tells_streams else None
        self._senders: list[Sender] = [sender for sender in (spans, metric_export) if sender is not None]

    # The data loop's.

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        """The place of a request with these headers in a trace; None where OpenTelemetry is switched off."""
        return None if self._tracing is None else self._tracing.trace(headers)

    def started(self) -> None:
        """A request's head has been read."""
        if self._metrics is not None:
            self._metrics.started()

    def ended(self, record: Record) -> None:
        """A request is over. The record is ours from here on."""
        make_writable(record)
        if self._metrics is not None:
            self._metrics.ended(record)
        is_exported = self._spans is not None and record.trace is not None and record.trace.is_sampled
        if not is_exported and self._lines is None:
            return
        # Anchored once, at the end: all marks of a request then move together, whatever the wall clock does meanwhile.
        waiting = Waiting(record, self._wall_clock_ns() - int(self._clock() * 1e9))
        if self._lines is not None:
            self._lines.stream(waiting if record.content is None else _without_content(waiting))
        if is_exported and self._spans is not None:
            self._spans.put(waiting)

    def turned(self, late_s: float) -> None:
        """The loop came round to its sweep, so late."""
        if self._metrics is not None:
            self._metrics.turned(late_s)

    # Anybody's.

    @property
    def has_metrics(self) -> bool:
        """There is a page to be scraped."""
        return self._metrics is not None

    def prometheus(self, accept: str = "") -> tuple[bytes, str]:
        """The page that Prometheus scrapes and its content type. Takes milliseconds: not for a loop."""
        return (b"", "text/plain") if self._metrics is None else self._metrics.prometheus(accept)

    def start(self) -> None:
        """Begin sending. Not before a fork."""
        for sender in self._senders:
            sender.start()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is left, for at most ``timeout_s`` and a moment. Blocks: not for a loop."""
        closings = [threading.Thread(target=sender.close, args=(timeout_s,)) for sender in self._senders]
        for closing in closings:
            closing.start()
        for closing in closings:
            closing.join()


def _without_content(waiting: Waiting) -> Waiting:
    """Log lines tell no content, so what waits for a reader of lines must not hold any."""
    return Waiting(msgspec.structs.replace(waiting.record, content=None), waiting.anchor_ns)
