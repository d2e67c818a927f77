"""Every row of the design's table of endings, as a collector's spans and the admin port's /metrics tell it."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sidecar.app import App
from sidecar.errors import Outcome
from sidecar.settings import Address, Telemetry
from sidecar.telemetry import names
from tests import endings
from tests.app_support import before, on_uvloop
from tests.departures import DEPARTURES, until
from tests.endings import REFUSALS, Play
from tests.telemetry_support import Collector, collecting, values

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
FORMATS = pytest.mark.parametrize("format_name", ["typed", "native"])


class Exported:
    """Runs a sidecar that tells a collector of its requests, and scrapes it once one is over."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._page = b""

    @asynccontextmanager
    async def before(
        self, *addresses: Address, environ: dict[str, str] | None = None, **options: Any
    ) -> AsyncIterator[App]:
        told = {"tells_itself": True, "telemetry": Telemetry(otlp=self._collector.url)}
        environ = {**(environ or {}), "OTEL_METRICS_EXPORTER": "none"}
        async with before(*addresses, environ=environ, **told, **options) as app:
            yield app
            await self.over(app)
            # One that was closed for its ending has no admin port any more.
            self._page = (
                await asyncio.to_thread(scraped, app) if not app.not_ready_because() else app.telemetry.prometheus()[0]
            )

    async def over(self, app: App) -> None:
        ended = f"{names.METRICS[names.STREAMS_ENDED].prometheus_name}{{".encode()
        await until(lambda: ended in app.telemetry.prometheus()[0])

    @property
    def request(self) -> Span:
        """The client's request."""
        (span,) = [span for span in self._collector.spans if span.kind == Span.SPAN_KIND_SERVER]
        return span

    @property
    def call(self) -> Span | None:
        """The call behind it; None where no upstream was asked."""
        calls = [span for span in self._collector.spans if span.kind == Span.SPAN_KIND_CLIENT]
        assert len(calls) <= 1
        return calls[0] if calls else None

    def samples(self, name: str, suffix: str = "") -> list[tuple[dict[str, str], float]]:
        """The series of a metric that have counted anything, and their values."""
        wanted = names.METRICS[name].prometheus_name + suffix
        families = parse_text(self._page.decode())
        found = [sample for family in families for sample in family.samples if sample.name == wanted]
        return [(sample.labels, sample.value) for sample in found if sample.value]

    def value(self, name: str, suffix: str = "") -> float:
        """The sum over all series."""
        return sum(value for _, value in self.samples(name, suffix))


def scraped(app: App) -> bytes:
    with NO_PROXY.open(f"http://127.0.0.1:{app.admin_port}/metrics") as page:
        body: bytes = page.read()
    return body


@pytest.fixture
def exported() -> Iterator[Exported]:
    with collecting() as collector:
        yield Exported(collector)


class Row(NamedTuple):
    """One ending, and what is told of it.

    ``error`` is its ``error.type``, ``is_error`` whether its spans have an error's status, ``is_request_error`` that of
    the client's request where it is not that of the call. ``status``: what the client was answered, if anything.
    ``is_begun``: content and usage had come by then. ``is_asked``: there was a call.
    """

    play: Play
    outcome: str
    error: str = ""
    is_error: bool = True
    status: int | None = 200
    is_begun: bool = False
    is_asked: bool = True
    is_request_error: bool | None = None


def refused(data: bytes, status: int) -> Row:
    async def play(watching: endings.Watching, format_name: str) -> None:
        await endings.refused(watching, data)

    return Row(play, "refused", str(status), is_error=False, status=status, is_asked=False)


ROWS = {
    "completed": Row(endings.completed, "completed", is_error=False, is_begun=True),
    **{
        f"cancelled by {how}": Row(
            partial(endings.client_cancelled, how=how), "client_cancelled", is_error=False, is_begun=True
        )
        for how in DEPARTURES
    },
    "cancelled before an answer": Row(
        endings.client_cancelled_before_an_answer, "client_cancelled", is_error=False, status=None
    ),
    "too slow": Row(endings.client_too_slow, "client_too_slow", is_error=False, is_begun=True),
    "refused connections": Row(endings.upstream_refusing, "upstream_unreachable", "connect_error", status=502),
    "a connection that takes too long": Row(
        endings.upstream_not_accepting, "upstream_unreachable", "timeout", status=504
    ),
    # An answer of 4xx is the client's doing: an error of the call, and none of the sidecar's request.
    "429": Row(endings.upstream_rejecting, "upstream_rejected", "429", status=429, is_request_error=False),
    "503": Row(
        partial(endings.upstream_rejecting, status="503 Service Unavailable"), "upstream_rejected", "503", status=503
    ),
    "truncated": Row(partial(endings.upstream_broken, how="end"), "upstream_broken", "truncated", is_begun=True),
    "reset": Row(partial(endings.upstream_broken, how="reset"), "upstream_broken", "upstream_reset", is_begun=True),
    "malformed": Row(partial(endings.upstream_broken, how="chunk"), "upstream_broken", "parse_error", is_begun=True),
    "a page": Row(endings.upstream_of_another_kind, "upstream_broken", "parse_error", status=502),
    "no HTTP": Row(
        partial(endings.upstream_of_another_kind, answer=endings.NO_HTTP), "upstream_broken", "parse_error", status=502
    ),
    "failed in its stream": Row(endings.upstream_failing, "upstream_failed", "overloaded_error", is_begun=True),
    "silent in its stream": Row(endings.timed_out, "timed_out", "timeout", is_begun=True),
    "silent from the first": Row(endings.timed_out_before_an_answer, "timed_out", "timeout", status=504),
    "shut down": Row(endings.shut_down, "shut_down", "shutting_down", is_begun=True),
    "a bug": Row(endings.internal_by_a_bug, "internal", "_OTHER", is_begun=True),
    "a bug before an answer": Row(endings.internal_by_a_bug_before_an_answer, "internal", "_OTHER", status=500),
    # Its upstream was dialled before the secret was looked for, which is a call.
    "no credential": Row(endings.internal_without_a_credential, "internal", "_OTHER", status=500),
    "no room": Row(endings.refused_for_want_of_room, "refused", "503", is_error=False, status=503, is_asked=False),
    "no token": Row(endings.refused_for_want_of_a_token, "refused", "401", is_error=False, status=401, is_asked=False),
}
REFUSED = {code: refused(data, status) for data, status, code in REFUSALS}


def test_every_outcome_is_made_to_happen_but_one() -> None:
    """No stream can be ``interrupted`` yet: only one that may be resumed is superseded, or outlives its sidecar."""
    assert {row.outcome for row in ROWS.values()} == {outcome.value for outcome in Outcome} - {"interrupted"}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@FORMATS
def test_an_ending_is_told(format_name: str, row: Row, exported: Exported) -> None:
    assert_told(exported, row, format_name)


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_told(row: Row, exported: Exported) -> None:
    assert_told(exported, row)


def assert_told(exported: Exported, row: Row, format_name: str = "native") -> None:
    @on_uvloop
    async def play() -> None:
        await row.play(exported, format_name)

    play()
    assert_request(exported, row)
    assert_call(exported, row)
    assert_counted(exported, row)
    assert_usage(exported, row)


def assert_status(span: Span, *, is_error: bool) -> None:
    assert span.status.code == (Status.STATUS_CODE_ERROR if is_error else Status.STATUS_CODE_UNSET)


def is_request_error(row: Row) -> bool:
    return row.is_error if row.is_request_error is None else row.is_request_error


def assert_request(exported: Exported, row: Row) -> None:
    said = values(exported.request.attributes)
    assert said[names.OUTCOME] == row.outcome
    assert said.get(names.HTTP_RESPONSE_STATUS_CODE) == row.status
    is_error = is_request_error(row)
    assert said.get(names.ERROR_TYPE, "") == (row.error if is_error or row.outcome == "refused" else "")
    assert_status(exported.request, is_error=is_error)


def assert_call(exported: Exported, row: Row) -> None:
    call = exported.call
    assert (call is not None) == row.is_asked
    if call is not None:
        assert call.parent_span_id == exported.request.span_id
        said = values(call.attributes)
        assert (said[names.OUTCOME], said.get(names.ERROR_TYPE, "")) == (row.outcome, row.error)
        assert_status(call, is_error=row.is_error)


def assert_counted(exported: Exported, row: Row) -> None:
    """Every metric that tells endings apart counted this one, as it is, and nothing else."""
    stage = "after_first_token" if row.is_begun else "before_first_token"
    ((ended, count),) = exported.samples(names.STREAMS_ENDED)
    told = [ended.get(names.prometheus_label(name), "") for name in (names.OUTCOME, names.ERROR_TYPE, names.STAGE)]
    assert (told, count) == ([row.outcome, row.error, "" if row.outcome == "completed" else stage], 1)

    durations = exported.samples(names.OPERATION_DURATION, "_count")
    assert len(durations) == row.is_asked
    for labels, count in durations:
        assert (labels["llm_sidecar_outcome"], labels.get("error_type", ""), count) == (row.outcome, row.error, 1)

    ((labels, count),) = exported.samples(names.SERVER_REQUEST_DURATION, "_count")
    is_answered_error = (row.status or 0) >= 500 or is_request_error(row)
    assert (labels.get("error_type", ""), count) == (row.error if is_answered_error else "", 1)
    assert labels.get("http_response_status_code", "") == str(row.status or "")


def assert_usage(exported: Exported, row: Row) -> None:
    """What the upstream had reported by then is in span and metrics, however it ended."""
    output = 9 if row.outcome == "completed" else 1
    counts = {
        names.USAGE_INPUT: (names.INPUT_TOKENS, 30),
        names.USAGE_OUTPUT: (names.OUTPUT_TOKENS, output),
        names.USAGE_CACHE_READ: (names.CACHE_READ_TOKENS, 5),
    }
    said = {} if exported.call is None else values(exported.call.attributes)
    for attribute, (metric, count) in counts.items():
        assert said.get(attribute) == (count if row.is_begun else None)
        assert exported.value(metric) == (count if row.is_begun else 0)
    assert exported.value(names.TIME_TO_FIRST_TOKEN, "_count") == row.is_begun
    assert (names.TTFT in said) == row.is_begun


# The first token


@FORMATS
def test_the_time_to_the_first_token_is_the_same_everywhere(
    format_name: str, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Role-only, ping, empty and comment frames at once, reasoning 200 ms later: 200 ms, wherever it is told."""
    clock = endings.move_by_hand(monkeypatch)
    told: list[bytes] = []

    @on_uvloop
    async def play() -> None:
        told.append(await endings.thinking_first(exported, format_name, clock))

    play()
    wanted = pytest.approx(0.2, abs=0.005)
    assert exported.call is not None
    request, call = values(exported.request.attributes), values(exported.call.attributes)
    assert (request[names.TTFT], call[names.TTFT], call[names.RESPONSE_TIME_TO_FIRST_CHUNK]) == (wanted,) * 3
    (first,) = exported.call.events
    assert first.name == names.EVENT_FIRST_TOKEN
    assert (first.time_unix_nano - exported.request.start_time_unix_nano) / 1e9 == wanted
    for metric in (names.TIME_TO_FIRST_TOKEN, names.TIME_TO_FIRST_CHUNK):
        assert exported.value(metric, "_count") == 1
        assert exported.value(metric, "_sum") / exported.value(metric, "_count") == wanted
    if format_name == "typed":
        done = json.loads(told[0].split(b"event: done\ndata: ")[1].split(b"\n")[0])
        assert done["ttft_ms"] / 1000 == wanted
