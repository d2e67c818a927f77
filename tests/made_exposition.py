"""A made sidecar's ``/metrics``: every metric of the tables, growing alike from one scrape to the next.

Owns the numbers. Must not know who scrapes them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from sidecar.telemetry import names
from sidecar.telemetry.names import Metric, prometheus_label

PER_SCRAPE: Final = 100
"""How many streams end between two scrapes."""
QUICK_S, SLOW_S = 0.2, 0.8
VALUES: Final = {names.OUTCOME: "completed", names.ERROR_TYPE: "", names.STAGE: "", names.REQUEST_MODEL: "some-model"}
TROUBLE: Final[tuple[Mapping[str, str], ...]] = (
    {names.OUTCOME: "upstream_rejected", names.ERROR_TYPE: "503", names.STAGE: "before_first_token"},
    {names.OUTCOME: "upstream_broken", names.ERROR_TYPE: "truncated", names.STAGE: "after_first_token"},
    {names.OUTCOME: "client_too_slow", names.STAGE: "after_first_token"},
    {names.OUTCOME: "client_cancelled", names.STAGE: "before_first_token"},
    {names.OUTCOME: "refused", names.ERROR_TYPE: "503"},
)
"""Ten of each end between two scrapes, beside those that complete."""


def page(scrape: int, slow_share: float) -> str:
    """What the scrape of this number is told: this share of all observations is `SLOW_S`, the rest `QUICK_S`."""
    lines: list[str] = []
    for metric in names.METRICS.values():
        lines.append(f"# TYPE {metric.prometheus_name} {_type(metric)}")
        if metric.kind == "histogram":
            lines += _histogram(metric, scrape * PER_SCRAPE, slow_share)
        else:
            lines.append(f"{metric.prometheus_name}{_labels(metric)} {scrape * PER_SCRAPE}")
        if metric.name == names.STREAMS_ENDED:
            lines += [f"{metric.prometheus_name}{_labels(metric, how)} {scrape * 10}" for how in TROUBLE]
    return "\n".join([*lines, ""])


def _type(metric: Metric) -> str:
    return metric.kind if metric.kind in {"histogram", "counter"} else "gauge"


def _labels(metric: Metric, values: Mapping[str, str] = {}, le: str = "") -> str:
    chosen = {name: {**VALUES, **values}.get(name, "x") for name in metric.attributes}
    written = [f'{prometheus_label(name)}="{value}"' for name, value in chosen.items() if value]
    return "{" + ",".join([*written, *([f'le="{le}"'] if le else [])]) + "}"


def _histogram(metric: Metric, count: int, slow_share: float) -> Iterator[str]:
    slow = count * slow_share
    for bound in (*metric.bounds, float("inf")):
        within = (count - slow if bound >= QUICK_S else 0) + (slow if bound >= SLOW_S else 0)
        edge = "+Inf" if bound == float("inf") else str(float(bound))
        yield f"{metric.prometheus_name}_bucket{_labels(metric, le=edge)} {within:g}"
    yield f"{metric.prometheus_name}_count{_labels(metric)} {count}"
    yield f"{metric.prometheus_name}_sum{_labels(metric)} {(count - slow) * QUICK_S + slow * SLOW_S:g}"


@contextmanager
def made_sidecar(slow_share: float) -> Iterator[str]:
    """The ``HOST:PORT`` of a server of such pages."""
    scrapes = iter(range(1, 2**31))

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_metrics = self.path == "/metrics"
            body = page(next(scrapes), slow_share).encode() if is_metrics else b""
            self.send_response(200 if is_metrics else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{serving.server_address[1]}"
        finally:
            serving.shutdown()
            thread.join()
