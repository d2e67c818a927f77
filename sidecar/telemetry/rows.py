"""What one request adds to which series: the cells of all requests that are alike, found once and kept together.

Owns the reading of figures out of a record. Must not know how cells are read out, nor who sends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.errors import Outcome
from sidecar.telemetry import calls, names
from sidecar.telemetry.cells import CounterCell, Family, HistogramCell

if TYPE_CHECKING:
    from sidecar.events import Usage
    from sidecar.record import Record, Trace
    from sidecar.telemetry.cells import Value

_MAX_TOKENS: Final = 1_000_000_000
"""Beyond it a count is nobody's, and would in the end not fit where it is sent."""


class Families:
    """Every metric that is kept in cells."""

    def __init__(self) -> None:
        self.duration = self._histogram(names.OPERATION_DURATION)
        self.first_chunk = self._histogram(names.TIME_TO_FIRST_CHUNK)
        self.first_token = self._histogram(names.TIME_TO_FIRST_TOKEN)
        self.overhead = self._histogram(names.OVERHEAD)
        self.per_token = self._histogram(names.TIME_PER_OUTPUT_TOKEN)
        self.max_gap = self._histogram(names.STREAM_MAX_GAP)
        self.request = self._histogram(names.SERVER_REQUEST_DURATION)
        self.lag = self._histogram(names.EVENT_LOOP_LAG)
        self.usage = self._histogram(names.TOKEN_USAGE)
        self.input = self._counter(names.INPUT_TOKENS)
        self.output = self._counter(names.OUTPUT_TOKENS)
        self.cache_read = self._counter(names.CACHE_READ_TOKENS)
        self.cache_write = self._counter(names.CACHE_WRITE_TOKENS)
        self.reasoning = self._counter(names.REASONING_TOKENS)
        self.ended = self._counter(names.STREAMS_ENDED)
        self.dropped = self._counter(names.TELEMETRY_DROPPED)
        self.exported = self._counter(names.TELEMETRY_EXPORTED)

    @property
    def histograms(self) -> list[Family[HistogramCell]]:
        """All that have buckets."""
        return [family for family in vars(self).values() if isinstance(family, Family) and family.metric.bounds]

    @property
    def counters(self) -> list[Family[CounterCell]]:
        """All that have none."""
        return [family for family in vars(self).values() if isinstance(family, Family) and not family.metric.bounds]

    def _histogram(self, name: str) -> Family[HistogramCell]:
        metric = names.METRICS[name]
        return Family(metric, lambda: HistogramCell(metric.bounds))

    def _counter(self, name: str) -> Family[CounterCell]:
        return Family(names.METRICS[name], CounterCell)


class Row:
    """The cells of all requests that are alike in everything that a series tells apart."""

    def __init__(self, families: Families, record: Record, request_model: str, response_model: str) -> None:
        told = _attributes(record, request_model, response_model)
        self._is_call = told[names.OPERATION] != ""
        self._ended = families.ended.cell(told)
        self._request = families.request.cell({**told, names.ERROR_TYPE: calls.request_error_type(record)})
        self._duration = families.duration.cell(told)
        self._first_chunk = families.first_chunk.cell(told)
        self._first_token = families.first_token.cell(told)
        self._overhead_request = families.overhead.cell({**told, names.PHASE: "request"})
        self._overhead_first = families.overhead.cell({**told, names.PHASE: "first_token"})
        self._per_token = families.per_token.cell(told)
        self._max_gap = families.max_gap.cell(told)
        self._usage_input = families.usage.cell({**told, names.TOKEN_TYPE: "input"})
        self._usage_output = families.usage.cell({**told, names.TOKEN_TYPE: "output"})
        self._input = families.input.cell(told)
        self._output = families.output.cell(told)
        self._cache_read = families.cache_read.cell(told)
        self._cache_write = families.cache_write.cell(told)
        self._reasoning = families.reasoning.cell(told)

    def add(self, record: Record, trace: Trace | None) -> None:
        """Count one request. ``trace`` is what exemplars point at; None leaves none."""
        ended_at = record.ended_at
        self._ended.value += 1
        self._request.add(ended_at - record.received_at, ended_at, trace)
        if not self._is_call or not record.attempts:
            return
        self._duration.add(_at_least_0(ended_at - calls.asked_at(record)), ended_at, trace)
        if record.usage is not None:
            self._add_usage(record.usage, ended_at, trace)
        sent_at, first_at = record.sent_at, record.first_content_at
        if not record.is_stream or first_at is None or sent_at is None:
            return
        self._first_chunk.add(_at_least_0(first_at - sent_at), ended_at, trace)
        wait_s = calls.overhead_request_s(record)
        if wait_s is not None:
            self._overhead_request.add(wait_s, ended_at, trace)
        first_sent_at = record.first_sent_at
        if first_sent_at is not None:
            self._first_token.add(first_sent_at - record.received_at, ended_at, trace)
            self._overhead_first.add(first_sent_at - first_at, ended_at, trace)
        if record.largest_gap_s is not None:
            self._max_gap.add(record.largest_gap_s, ended_at, trace)
            self._add_pace(record, first_at, trace)

    def _add_pace(self, record: Record, first_at: float, trace: Trace | None) -> None:
        tokens = record.usage.output_tokens if record.usage is not None else None
        if tokens is not None and 1 < tokens <= _MAX_TOKENS and record.last_content_at is not None:
            self._per_token.add((record.last_content_at - first_at) / (tokens - 1), record.ended_at, trace)

    def _add_usage(self, usage: Usage, ended_at: float, trace: Trace | None) -> None:
        tokens = usage.input_tokens
        if tokens is not None and 0 <= tokens <= _MAX_TOKENS:
            self._input.value += tokens
            self._usage_input.add(tokens, ended_at, trace)
        tokens = usage.output_tokens
        if tokens is not None and 0 <= tokens <= _MAX_TOKENS:
            self._output.value += tokens
            self._usage_output.add(tokens, ended_at, trace)
        tokens = usage.cached_input_tokens
        if tokens and 0 < tokens <= _MAX_TOKENS:
            self._cache_read.value += tokens
        tokens = usage.reasoning_tokens
        if tokens and 0 < tokens <= _MAX_TOKENS:
            self._reasoning.value += tokens
        tokens = calls.cache_write_tokens(usage.native)
        if tokens and tokens <= _MAX_TOKENS:
            self._cache_write.value += tokens


def _at_least_0(seconds: float) -> float:
    """An upload that is streamed may be answered before it is sent, and sent before it is read."""
    return seconds if seconds > 0.0 else 0.0


def _attributes(record: Record, request_model: str, response_model: str) -> dict[str, Value | None]:
    stage = None
    if record.outcome is not Outcome.COMPLETED:
        stage = "before_first_token" if record.first_sent_at is None else "after_first_token"
    return {
        names.HTTP_REQUEST_METHOD: calls.method(record),
        names.HTTP_RESPONSE_STATUS_CODE: record.status,
        names.HTTP_ROUTE: record.route_path,
        names.URL_SCHEME: record.scheme,
        names.NETWORK_PROTOCOL_VERSION: record.http_version,
        names.OPERATION: calls.operation(record),
        names.PROVIDER: calls.provider(record),
        names.REQUEST_MODEL: request_model,
        names.RESPONSE_MODEL: response_model,
        names.SERVER_ADDRESS: record.server_address,
        names.SERVER_PORT: record.server_port if record.server_address and record.server_port else None,
        names.ROUTE: record.route,
        names.UPSTREAM: record.upstream,
        names.OUTCOME: record.outcome.value,
        names.ERROR_TYPE: calls.error_type(record),
        names.STAGE: stage,
        names.TOKEN_MODALITY: "unknown",
    }
