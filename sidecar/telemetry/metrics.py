"""The process's metrics: told of every request by the data loop, read by whoever scrapes or sends them.

Owns the cells and the one lock on them. Must not know HTTP, threads or exporters. The loop holds the lock for a few
requests' microseconds, a reader for those of one series, so neither waits for the other's work.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from sidecar.telemetry import calls, names
from sidecar.telemetry.exposition import exposition
from sidecar.telemetry.model_names import ModelNames
from sidecar.telemetry.process import process_gauges
from sidecar.telemetry.rows import Families, Row
from sidecar.telemetry.snapshot import Clocks, Gauge, Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.metrics.export import MetricsData

    from sidecar.record import Record
    from sidecar.telemetry.cells import Value
    from sidecar.telemetry.metric_settings import Temporality
    from sidecar.telemetry.snapshot import Reading

MODEL_LIMIT: Final = 100
BATCH_ITEMS: Final = 16
"""How many requests are counted in one go, some 60 µs."""
_MAX_ROWS: Final = 4096
"""How many kinds of requests are remembered; they are found anew after that, for some 30 µs each."""
_OK: Final = 200
_REDIRECT: Final = 300


class Metrics:
    """All metrics of one process.

    ``models`` always have series of their own, besides ``model_limit`` others; ``resource`` describes the process;
    ``gauges`` are read whenever somebody asks, in the asker's thread; ``exemplars`` says whether buckets point at
    traces. `started`, `ended` and `turned` belong to the data loop; all else may be called from any thread.
    """

    def __init__(
        self,
        *,
        resource: Mapping[str, str | int],
        models: Sequence[str] = (),
        model_limit: int = MODEL_LIMIT,
        gauges: Mapping[str, Callable[[], Reading]] | None = None,
        exemplars: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._families = Families()
        self._lock = threading.Lock()
        self._rows: dict[tuple[object, ...], Row] = {}
        self._request_models = ModelNames(models, model_limit)
        self._response_models = ModelNames(models, model_limit)
        self._has_exemplars = exemplars
        self._active = 0
        self._uncounted: deque[Record] = deque()
        self._lag = self._families.lag.cell({})
        self._gauges = [Gauge(name, read) for name, read in (gauges or {}).items()]
        self._gauges += [Gauge(names.SERVER_ACTIVE_REQUESTS, lambda: self._active), *process_gauges()]
        self._snapshots = Snapshots(resource, self._families, self._lock, Clocks(clock, wall_clock_ns))

    # The data loop's.

    def started(self) -> None:
        """A request's head has been read."""
        self._active += 1

    def ended(self, record: Record) -> None:
        """A request is over. It is counted along with the next few: one after the other they take half the time that
        each takes alone, with everything else in between."""
        if self._active > 0:
            self._active -= 1
        self._uncounted.append(record)
        if len(self._uncounted) >= BATCH_ITEMS:
            with self._lock:
                self._count()

    def _count(self) -> None:
        """Take in what has ended, in whichever thread; the lock is held. No request waits for more than a batch."""
        uncounted = self._uncounted
        while uncounted:
            self._count_one(uncounted.popleft())

    def _count_one(self, record: Record) -> None:
        is_answered = record.upstream_status is not None and _OK <= record.upstream_status < _REDIRECT
        asked_model = record.sent_model or record.requested_model
        request_model = self._request_models.labels.get(asked_model)
        if request_model is None:
            request_model = self._request_models.admit(asked_model, is_answered=is_answered)
        response_model = self._response_models.labels.get(record.response_model)
        if response_model is None:
            response_model = self._response_models.admit(record.response_model, is_answered=is_answered)
        alike = (
            record.route,
            record.route_path,
            record.upstream,
            record.server_address,
            record.server_port,
            record.dialect,
            record.dialect in calls.OPERATIONS or calls.operation(record),  # only unknown dialects' go by the path
            request_model,
            response_model,
            record.outcome,
            record.failure and calls.error_type(record),
            record.first_sent_at is None,
            record.status,
            calls.method(record),
            record.scheme,
            record.http_version,
        )
        trace = record.trace if self._has_exemplars else None
        if trace is not None and not trace.is_sampled:
            trace = None
        row = self._rows.get(alike)
        if row is None:
            row = self._remember(alike, Row(self._families, record, request_model, response_model))
        row.add(record, trace)

    def turned(self, late_s: float) -> None:
        """The data loop turned ``late_s`` later than it was asked to."""
        with self._lock:
            self._count()
            self._lag.add(late_s if late_s > 0 else 0.0, 0.0, None)

    def _remember(self, alike: tuple[object, ...], row: Row) -> Row:
        if len(self._rows) >= _MAX_ROWS:
            self._rows.clear()
        self._rows[alike] = row
        return row

    # Anybody's.

    def dropped(self, signal: str, reason: str, count: int) -> None:
        """Telemetry was given up: ``count`` spans, points or lines of ``signal``."""
        with self._lock:
            self._families.dropped.cell({names.SIGNAL: signal, names.REASON: reason}).value += count

    def exported(self, signal: str, count: int) -> None:
        """Telemetry was delivered."""
        with self._lock:
            self._families.exported.cell({names.SIGNAL: signal}).value += count

    def watch(self, name: str, read: Callable[[], float], attributes: Mapping[str, Value] | None = None) -> None:
        """Have one more gauge read, for a part that is built after the metrics. Not while somebody may be asking."""
        self._gauges.append(Gauge(name, read, tuple((attributes or {}).items())))

    def collect(self, temporality: Temporality = "cumulative") -> MetricsData:
        """All that is known now, for the one reader who is told of each exemplar and each delta once."""
        with self._lock:
            self._count()
        return self._snapshots.tell(self._gauges, temporality)

    def prometheus(self, accept: str = "") -> tuple[bytes, str]:
        """What a scraper is shown and its content type; as OpenMetrics, exemplars with it, where ``accept`` has it."""
        with self._lock:
            self._count()
        return exposition(self._snapshots.show(self._gauges), accept)
