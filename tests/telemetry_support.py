"""What the tests of telemetry share: a record as the data plane makes it, and collectors that behave and misbehave."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sidecar.record import Record, Trace
from sidecar.telemetry.waiting import Waiting
from tests.made_records import made

DEADLINE_S = 20
PLACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7")
ANCHOR_NS = 1_700_000_000 * 10**9
ENDED = made(
    stream_id="01a203e4daa6a0f8d06f8d3dc7e920bb", trace=PLACE, response_id="chatcmpl-1", finish_reasons=("stop",)
)
"""A stream of two seconds that went well."""


def ended(**changes: Any) -> Record:
    """`ENDED`, but for what is given."""
    return msgspec.structs.replace(ENDED, **changes)


def waiting(**changes: Any) -> Waiting:
    """The same, on its way out."""
    return Waiting(ended(**changes), ANCHOR_NS)


class Counted:
    """Counts what became of telemetry; may be waited for."""

    def __init__(self) -> None:
        self.dropped_items: Counter[tuple[str, str]] = Counter()
        self.exported_items: Counter[str] = Counter()
        self._changed = threading.Condition()

    def dropped(self, signal: str, reason: str, items: int) -> None:
        with self._changed:
            self.dropped_items[signal, reason] += items
            self._changed.notify_all()

    def exported(self, signal: str, items: int) -> None:
        with self._changed:
            self.exported_items[signal] += items
            self._changed.notify_all()

    @property
    def total(self) -> int:
        return self.dropped_items.total() + self.exported_items.total()

    def until(self, total: int) -> None:
        """Wait for so many items to have ended one way or the other."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.total >= total, DEADLINE_S), (total, self.total)


class Collector(ThreadingHTTPServer):
    """A collector on a free port. ``status`` is what it answers with; where ``hangs`` is set, nothing."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.location = ""
        self.spans: list[Span] = []
        self.batches: list[int] = []
        self.scopes: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.resources: list[dict[str, str]] = []
        self.hangs = threading.Event()
        self.asked = threading.Event()
        self.is_endless = False
        self.hung_up = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        collector = self.server
        collector.paths.append(self.path)
        collector.bodies.append(body)
        collector.headers.append({name.lower(): value for name, value in self.headers.items()})
        collector.asked.set()
        if collector.hangs.is_set():
            self.connection.recv(1)  # until the other side gives up
            return
        if collector.is_endless:
            self._go_on()
            return
        if collector.status == 200 and self.path.endswith("/traces"):
            self._keep(ExportTraceServiceRequest.FromString(body))
        self.send_response(collector.status)
        if collector.location:
            self.send_header("Location", collector.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _go_on(self) -> None:
        """An answer without an end."""
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while self.wfile.write(b"x" * 4096):
                pass
        self.server.hung_up.set()

    def _keep(self, request: ExportTraceServiceRequest) -> None:
        collector = self.server
        spans = [span for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
        collector.batches.append(len(spans))
        collector.spans += spans
        for each in request.resource_spans:
            collector.resources.append(values(each.resource.attributes))
            collector.scopes += [scope.scope.name for scope in each.scope_spans]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class calls it
        """Tests say what they see by failing."""


def values(attributes: Any) -> dict[str, Any]:
    """Attributes of the wire as plain Python."""
    found: dict[str, Any] = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        found[attribute.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@contextlib.contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    """A running `Collector`."""
    with Collector(status) as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join(DEADLINE_S)


def refusing_url() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
