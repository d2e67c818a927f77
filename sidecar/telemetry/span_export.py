"""Spans on their way out: a bounded queue of records, and the thread that sends what becomes of them.

Owns how much may wait, how it is batched, and what is lost when the collector is down, slow or wrong: counted, and said
once. Must not know attributes (`spans`) nor protocols (`otlp`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry.sdk.trace.export import SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from sidecar.telemetry.choices import Queue
    from sidecar.telemetry.waiting import Waiting

logger = logging.getLogger("sidecar.telemetry")

SIGNAL: Final = "traces"
QUEUE_FULL: Final = "queue_full"
EXPORT_FAILED: Final = "export_failed"
CLOSED: Final = "closed"

MAX_CONTENT_CHARS: Final = 8 * 1024 * 1024
"""Of captured content, all that may wait. What is beyond it counts as the queue being full."""

_ABORT_TIMEOUT_S: Final = 0.5
"""How long a thread whose exporter was shut down under it gets to notice."""


class Counts(Protocol):
    """Whoever counts what became of telemetry. Called from the loop and from the exporting threads."""

    def dropped(self, signal: str, reason: str, items: int) -> None:
        """So many were given up."""

    def exported(self, signal: str, items: int) -> None:
        """So many were delivered."""


class SpanExport:
    """One item is one request, whatever spans it becomes. `put` is the loop's; everything else happens in a thread.

    ``last_complaint`` says why the thread's last export failed, in words that may be logged.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        build: Callable[[Waiting], Sequence[ReadableSpan]],
        counts: Counts,
        queue: Queue,
        last_complaint: Callable[[], str] = str,
    ) -> None:
        self._exporter = exporter
        self._build = build
        self._counts = counts
        self._bounds = queue
        self._last_complaint = last_complaint
        self._queue: deque[Waiting] = deque()
        self._put_chars = self._taken_chars = 0  # one for each thread, so that no addition of the other is lost
        self._wake = threading.Event()
        self._is_closing = self._is_over = False
        self._exporting = 0
        self._is_failing = self._is_full = self._was_full = self._has_misbuilt = False
        self._thread: threading.Thread | None = None

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queue)

    def start(self) -> None:
        """Begin sending. Not before a fork: a thread lives in one process."""
        self._thread = threading.Thread(target=self._run, name="sidecar-spans", daemon=True)
        self._thread.start()

    def put(self, waiting: Waiting) -> None:
        """Take a record, or drop it where too much waits. Never waits."""
        content = waiting.record.content
        chars = 0 if content is None else len(content.request) + len(content.answer)
        waiting_chars = self._put_chars - self._taken_chars
        if len(self._queue) >= self._bounds.items or waiting_chars + chars > MAX_CONTENT_CHARS:
            self._is_full = True
            self._counts.dropped(SIGNAL, QUEUE_FULL, 1)
            return
        self._put_chars += chars
        self._queue.append(waiting)
        if len(self._queue) == self._bounds.batch:
            self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most ``timeout_s``, and count the rest as dropped."""
        if self._thread is None:
            return
        self._is_closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        self._is_over = True
        self._exporter.shutdown()  # ends a wait for the next try, and with it the thread
        self._thread.join(min(_ABORT_TIMEOUT_S, timeout_s))
        left = len(self._queue) + (self._exporting if self._thread.is_alive() else 0)
        if left:
            self._give_up(left)
        self._queue.clear()
        self._thread = None

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.wait(self._bounds.delay_s)
            self._wake.clear()
            self._send_all()
            self._say_full()
        self._send_all()

    def _send_all(self) -> None:
        """What waits now; of what comes meanwhile, whole batches."""
        while not self._is_over and (batch := self._take()):
            self._exporting = len(batch)
            self._send(batch)
            self._exporting = 0
            if len(self._queue) < self._bounds.batch and not self._is_closing:
                break

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        while self._queue and len(batch) < self._bounds.batch:
            waiting = self._queue.popleft()
            content = waiting.record.content
            if content is not None:
                self._taken_chars += len(content.request) + len(content.answer)
            batch.append(waiting)
        return batch

    def _send(self, batch: list[Waiting]) -> None:
        spans, built = self._built(batch)
        if not built:
            return
        try:
            is_sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
            why = "" if is_sent else self._last_complaint()
        except Exception as error:  # noqa: BLE001 - an exporter's fault is a lost batch, and said like any other
            is_sent, why = False, type(error).__name__
        if self._is_over and not is_sent:
            self._give_up(built)
            return
        if is_sent:
            self._counts.exported(SIGNAL, built)
        else:
            self._counts.dropped(SIGNAL, EXPORT_FAILED, built)
        self._say(is_sent, why)

    def _built(self, batch: list[Waiting]) -> tuple[list[ReadableSpan], int]:
        """Spans, and of how many items: one that nothing can be made of costs nobody else theirs."""
        spans: list[ReadableSpan] = []
        built = 0
        for waiting in batch:
            try:
                spans += self._build(waiting)
                built += 1
            except Exception as error:  # noqa: BLE001 - a bug of ours, which the others must not pay for
                self._counts.dropped(SIGNAL, EXPORT_FAILED, 1)
                if not self._has_misbuilt:
                    self._has_misbuilt = True
                    why = type(error).__name__  # its text may quote the request
                    logger.error("no spans can be made of a request (%s); it is dropped and counted", why)  # noqa: TRY400
        return spans, built

    def _give_up(self, items: int) -> None:
        self._counts.dropped(SIGNAL, CLOSED, items)
        if not self._is_failing:  # else it has been said
            self._is_failing = True
            logger.warning("traces could not be exported before the end; they are dropped and counted")

    def _say(self, is_sent: bool, why: str) -> None:
        """Once when it begins to fail, and once when it works again."""
        if is_sent and self._is_failing:
            logger.info("traces are exported again")
        elif not is_sent and not self._is_failing:
            logger.warning("traces cannot be exported%s; they are dropped and counted", f" ({why})" if why else "")
        self._is_failing = not is_sent

    def _say_full(self) -> None:
        if self._is_full and not self._was_full:
            self._was_full = True
            logger.warning("traces come faster than they are exported; some are dropped and counted")
        elif self._was_full and len(self._queue) * 2 < self._bounds.items:
            self._is_full = self._was_full = False
