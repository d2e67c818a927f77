"""Log lines on their way to standard error: a bounded queue, and the thread that writes.

Owns that nobody who has something to say ever waits for whoever reads it: a blocked pipe blocks the thread alone, and
lines that find the queue full are dropped, counted, and said once. Must not know fields (`lines`).
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from sidecar.telemetry.lines import LEVELS, process_line, stream_level, stream_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.settings import Logs
    from sidecar.telemetry.waiting import Waiting

SIGNAL: Final = "logs"
QUEUE_ITEMS: Final = 8192
BATCH_ITEMS: Final = 64
DELAY_S: Final = 0.2
"""How long a request's line may wait for company: waking a thread for each costs the loop more than the line does."""


class LineOutput(logging.Handler):
    """The one way to ``descriptor`` (standard error's): the process's own logging, and the lines of requests.

    `start` begins; `close` writes what is left, for a bounded time. ``dropped`` and ``written`` may be set to whoever
    counts lines. Where the descriptor ``is_shared`` with other processes, no write is longer than a pipe takes whole,
    unless one line is, so that nobody's lines are torn.
    """

    def __init__(
        self, settings: Logs, descriptor: int = 2, queue_items: int = QUEUE_ITEMS, *, is_shared: bool = False
    ) -> None:
        super().__init__(LEVELS[settings.level])
        self.tells_streams = settings.streams
        self.dropped: Callable[[str, int], None] = _nobody_counts_dropped
        self.written: Callable[[int], None] = _nobody_counts_written
        self._format = settings.format
        self._descriptor = descriptor
        self._is_shared = is_shared
        self._queue_items = queue_items
        self._queue: deque[str | Waiting] = deque()
        self._wake = threading.Event()
        self._is_closing = self._is_stuck = False
        self._lost = 0  # since it was last said
        self._thread: threading.Thread | None = None

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queue)

    def start(self) -> None:
        """Begin writing. Not before a fork: a thread lives in one process."""
        self._thread = threading.Thread(target=self._run, name="sidecar-lines", daemon=True)
        self._thread.start()

    def stream(self, waiting: Waiting) -> None:
        """A request is over. Takes its record as it is; the line is made in the thread."""
        if LEVELS[stream_level(waiting.record)] >= self.level:
            self._put(waiting)
            if len(self._queue) == BATCH_ITEMS:
                self._wake.set()

    def emit(self, record: logging.LogRecord) -> None:
        """The process says something. Its line is made here, as the record's arguments may change; and written here,
        where no thread runs yet or any more."""
        try:
            line = process_line(record, self._format)
        except Exception:  # noqa: BLE001 - as every handler: a line that cannot be made is no reason to fail
            line = f"a line of {record.name} cannot be formatted"
        if self._thread is not None:
            self._put(line)
            self._wake.set()
        elif not self._is_stuck:
            self._write(f"{line}\n".encode("utf-8", "backslashreplace"))

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for at most ``timeout_s``. What a blocked reader leaves is given up."""
        thread = self._thread
        if thread is not None:
            self._is_closing = True
            self._wake.set()
            thread.join(timeout_s)
            self._thread = None
            self._is_stuck = thread.is_alive()
            if self._queue:
                self.dropped("closed", len(self._queue))
                self._queue.clear()
        super().close()

    def _put(self, item: str | Waiting) -> None:
        if len(self._queue) >= self._queue_items:
            self._lost += 1
            self.dropped("queue_full", 1)
            return
        self._queue.append(item)

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.wait(DELAY_S)
            self._wake.clear()
            self._write_all()
        self._write_all()

    def _write_all(self) -> None:
        while self._queue:
            items = [self._queue.popleft() for _ in range(min(BATCH_ITEMS, len(self._queue)))]
            lines = [item if isinstance(item, str) else self._stream_line(item) for item in items]
            lost, self._lost = self._lost, 0
            if lost:
                lines.append(self._loss(lost))
            if all(map(self._write, self._pieces("\n".join([*lines, ""]).encode("utf-8", "backslashreplace")))):
                self.written(len(items))
            else:
                self.dropped("export_failed", len(items))

    def _stream_line(self, waiting: Waiting) -> str:
        try:
            return stream_line(waiting, self._format)
        except Exception as error:  # noqa: BLE001 - the thread has other lines to write
            return f"the line of stream {waiting.record.stream_id} cannot be formatted: {type(error).__name__}"

    def _loss(self, items: int) -> str:
        said = {"name": __name__, "levelname": "WARNING", "msg": "%d log lines were dropped, since nobody read them"}
        return process_line(logging.makeLogRecord({**said, "args": (items,)}), self._format)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """``data`` in whole lines, as many at once as others' cannot come between."""
        while self._is_shared and len(data) > select.PIPE_BUF:
            end = data.rfind(b"\n", 0, select.PIPE_BUF) + 1 or data.find(b"\n") + 1
            yield data[:end]
            data = data[end:]
        if data:
            yield data

    def _write(self, data: bytes) -> bool:
        """Whether it could be written. Where standard error is set not to block, waiting for it happens here."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [], DELAY_S)
            except OSError:
                return False
        return True


def _nobody_counts_dropped(reason: str, items: int) -> None:
    del reason, items


def _nobody_counts_written(items: int) -> None:
    del items


def redirect_logging(output: LineOutput, level: str) -> None:
    """Everything the process logs goes there, and nowhere else. Others' libraries are heard from ``warning`` on: what
    they say below it may hold URLs with keys in them."""
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(logging.WARNING)
    logging.getLogger("sidecar").setLevel(LEVELS[level])
