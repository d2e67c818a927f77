"""Keys of clients, upstreams and collectors never appear in spans, metrics or log lines of a real process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.settings import Address
from tests.app_support import SSE_HEAD as HEAD
from tests.app_support import Client, Received, answering, chunk, on_uvloop, openai_frames, plain, request, stream
from tests.processes import free_port, server, until
from tests.telemetry_support import Collector, collecting, refusing_url

QUERY_KEY, BEARER, API_KEY, COOKIE, BAGGAGE = "query-7f3a", "bearer-91bc", "api-44de", "cookie-5a5a", "baggage-8e21"
UPSTREAM_KEY, COLLECTOR_KEY, URL_KEY, USER_KEY = "upstream-c0de", "collector-beef", "url-f00d", "user-cafe"
PROMPT = "prompt-0ddb"
CLIENTS = (QUERY_KEY, BEARER, API_KEY, COOKIE, BAGGAGE, PROMPT)
SECRETS = (*CLIENTS, UPSTREAM_KEY, COLLECTOR_KEY, URL_KEY, USER_KEY)
HEADERS = [
    ("Content-Type", "application/json"),
    ("Authorization", f"Bearer {BEARER}"),
    ("x-api-key", API_KEY),
    ("x-goog-api-key", API_KEY),
    ("Cookie", f"session={COOKIE}"),
    ("baggage", f"key={BAGGAGE}"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
]
CONFIG = """\
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
{telemetry}
logs: {{format: {log_format}, level: debug}}
upstreams:
  theirs: {{url: "http://{upstream}", proxy: none, propagate: trace_and_baggage}}
  ours: {{url: "http://{upstream}", proxy: none, credentials: {{env: UPSTREAM_KEY}}}}
  gone: {{url: "{gone}", proxy: none}}
  keyless: {{url: "http://{upstream}", proxy: none, credentials: {{file: /nowhere/at/all}}}}
routes:
  - {{name: theirs, match: {{path: "/theirs/**"}}, strip_prefix: /theirs, upstreams: [theirs]}}
  - {{name: ours, match: {{path: "/ours/**"}}, strip_prefix: /ours, upstreams: [ours]}}
  - {{name: gone, match: {{path: "/gone/**"}}, strip_prefix: /gone, upstreams: [gone]}}
  - {{name: keyless, match: {{path: "/keyless/**"}}, strip_prefix: /keyless, upstreams: [keyless]}}
"""
MODELS = ["good", "quoting", "failing", "cut", "garbage"]
"""Models that the upstream answers to, each in its own way."""
GEMINI = "/v1beta/models/g:streamGenerateContent?alt=sse&key=" + QUERY_KEY


def upstream_answer(received: Received) -> list[bytes]:
    """As the model says: well, or failing in a way that quotes everything it was sent."""
    model = json.loads(received.body)["model"] if received.body else "good"
    quoted = received.raw.decode("latin-1")
    if model == "quoting":
        error = {"error": {"message": quoted, "type": quoted, "code": QUERY_KEY}}
        return [plain(json.dumps(error).encode(), f"401 {QUERY_KEY} {BEARER}")]
    if model == "failing":
        error = {"error": {"message": quoted, "type": BEARER, "code": API_KEY}}
        return stream([*openai_frames("a", done=False)[:1], b"data: " + json.dumps(error).encode() + b"\n\n"])
    if model == "cut":
        return [HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), chunk(openai_frames("a")[0])]
    if model == "garbage":
        return [f"{BEARER} Connection: close {quoted}".encode()]
    return stream(openai_frames("a", "b"))


def chat(prefix: str, model: str, format_name: str = "typed") -> bytes:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
    headers = [*HEADERS, ("X-Stream-Format", format_name)]
    return request("POST", f"{prefix}/v1/chat/completions?key={QUERY_KEY}", json.dumps(body).encode(), headers)


REQUESTS = [
    *(chat("/theirs", model, format_name) for model in MODELS for format_name in ("typed", "native")),
    *(chat("/ours", model) for model in MODELS),
    request("POST", f"/theirs{GEMINI}", b'{"model": "quoting"}', HEADERS),
    request("GET", f"/theirs/v1/models?api_key={QUERY_KEY}#{QUERY_KEY}", headers=HEADERS[1:]),
    request("GET", f"http://user:{BEARER}@theirs.test/theirs/v1/models?key={QUERY_KEY}", headers=HEADERS[1:]),
    chat("/gone", "good"),
    chat("/keyless", "good"),
    # Refused: nowhere, no path, no format, and no HTTP.
    chat("/nowhere", "good"),
    request("GET", f"/theirs/../x?key={QUERY_KEY}", headers=HEADERS[1:]),
    request("GET", f"/theirs/x?key={QUERY_KEY}", headers=[*HEADERS[1:], ("X-Stream-Format", API_KEY)]),
    request("GET", f"/theirs/x?key={QUERY_KEY}", headers=[*HEADERS[1:], ("Transfer-Encoding", API_KEY)]),
    f"{BEARER} {QUERY_KEY}\r\nAuthorization: {BEARER}\r\n\r\n".encode(),
    f"GET /theirs/x?key={QUERY_KEY} HTTP/1.1\r\nAuthorization {BEARER}\r\n\r\n".encode(),
]

TOLD = len(REQUESTS) + 1 - 3
"""How many have a line: that whose client leaves has one too, what is no HTTP has none."""


@dataclass
class Seen:
    """All that one process told."""

    log: str
    pages: dict[str, str]


@contextmanager
def process(config: str, folder: Path, admin: int, environ: Mapping[str, str]) -> Iterator[Path]:
    """``sidecar run``; where its log is."""
    file, log = folder / "sidecar.yaml", folder / "sidecar.log"
    file.write_text(config)
    command = [sys.executable, "-m", "sidecar", "run", "--config", str(file)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    root = str(Path(__file__).resolve().parent.parent)
    environ = {**inherited, "PYTHONPATH": root, "NO_PROXY": "127.0.0.1", "UPSTREAM_KEY": UPSTREAM_KEY, **environ}
    with server(command, f"http://127.0.0.1:{admin}/readyz", log, environ):
        yield log


async def ask_all(address: Address) -> None:
    """Each request on a connection of its own, to its end; and one whose client leaves."""
    for data in REQUESTS:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        await Client(reader, writer).ask(data)
        writer.close()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(chat("/theirs", "good")[:-5])
    await writer.drain()
    writer.transport.abort()


def pages_of(admin: int) -> dict[str, str]:
    """What the admin port shows."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    found = {}
    for page in ("metrics", "streams", "readyz"):
        with opener.open(f"http://127.0.0.1:{admin}/{page}") as answer:
            found[page] = answer.read().decode()
    return found


def run(folder: Path, log_format: str, telemetry: str, environ: Mapping[str, str], trouble: str = "") -> Seen:
    """Every request through one process, whose collector is told of by ``telemetry`` and ``environ``; its log says
    ``trouble`` of that before it ends."""
    port, admin = free_port(), free_port()
    told: list[Seen] = []

    @on_uvloop
    async def through() -> None:
        async with answering(upstream_answer) as upstream:
            config = CONFIG.format(
                port=port,
                admin=admin,
                telemetry=telemetry,
                log_format=log_format,
                upstream=upstream.address,
                gone=refusing_url(),
            )
            with process(config, folder, admin, environ) as log:
                await ask_all(Address("127.0.0.1", port))
                await asyncio.to_thread(until, lambda: log.read_text().count("stream ended") == TOLD, "lines")
                await asyncio.to_thread(until, lambda: trouble in log.read_text(), trouble)
                pages = await asyncio.to_thread(pages_of, admin)
            told.append(Seen(log.read_text(), pages))
        shown = b"".join(received.raw for received in upstream.received).decode("latin-1")
        assert [key for key in (*CLIENTS, UPSTREAM_KEY) if key not in shown] == []

    through()
    return told[0]


def assert_no_secret(seen: Seen, collector: Collector | None = None) -> None:
    everything = {"log": seen.log, **seen.pages}
    if collector is not None:
        everything["sent"] = b"".join(collector.bodies).decode("latin-1")
    assert [(where, key) for where, said in everything.items() for key in SECRETS if key in said] == []


SOON = {
    "OTEL_BSP_SCHEDULE_DELAY": "10",
    "OTEL_METRIC_EXPORT_INTERVAL": "100",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{COLLECTOR_KEY}",
}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_collector_is_told_no_secret(log_format: str, tmp_path: Path) -> None:
    with collecting() as collector:
        seen = run(tmp_path, log_format, f"telemetry: {{otlp: {collector.url}, compat: [openinference]}}", SOON)
    assert {headers["authorization"] for headers in collector.headers} == {f"Bearer {COLLECTOR_KEY}"}
    assert {path.rpartition("/")[2] for path in collector.paths} == {"traces", "metrics"}
    assert len(collector.spans) > len(REQUESTS)
    assert_no_secret(seen, collector)
    if log_format == "json":
        lines = [json.loads(line) for line in seen.log.splitlines()]
        assert {line.get("outcome") for line in lines} >= {
            "completed",
            "client_cancelled",
            "upstream_unreachable",
            "upstream_rejected",
            "upstream_broken",
            "upstream_failed",
            "internal",
            "refused",
        }


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(("status", "why"), [(401, "HTTP 401"), (307, "RedirectedError")])
def test_a_collector_that_refuses_costs_no_secret(log_format: str, status: int, why: str, tmp_path: Path) -> None:
    with collecting(status) as collector:
        collector.location = f"{collector.url}/elsewhere?key={URL_KEY}" if status == 307 else ""
        environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}/?key={URL_KEY}"}
        seen = run(tmp_path, log_format, "", environ, f"traces cannot be exported ({why})")
    assert f"metrics cannot be exported ({why})" in seen.log
    assert_no_secret(seen, collector)


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (f"authorization=Bearer%20{COLLECTOR_KEY}", "Connection refused"),
        (COLLECTOR_KEY, "Connection refused"),
        (f"x-key={COLLECTOR_KEY}%0Ax", "InvalidHeader"),
    ],
    ids=["well-formed", "malformed", "two lines"],
)
def test_a_collector_that_cannot_be_reached_costs_no_secret(
    log_format: str, headers: str, why: str, tmp_path: Path
) -> None:
    address = refusing_url().removeprefix("http://")
    environ = {
        **SOON,
        "OTEL_EXPORTER_OTLP_HEADERS": headers,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://user:{USER_KEY}@{address}/v1/traces?key={URL_KEY}",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://user:{USER_KEY}@{address}/v1/metrics?key={URL_KEY}",
    }
    seen = run(tmp_path, log_format, "", environ, f"traces cannot be exported ({why})")
    assert f"metrics cannot be exported ({why})" in seen.log
    assert_no_secret(seen)
