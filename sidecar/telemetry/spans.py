"""A record as spans: the client's request, and the call of the model behind it.

Owns which attributes stand on which span, and how an ending reads in a trace. Must not know how spans are sent, nor
when: it runs in the thread that exports them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from sidecar import __version__
from sidecar.errors import ENDINGS, Outcome
from sidecar.telemetry import calls, names
from sidecar.telemetry.messages import input_messages, output_messages

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from opentelemetry.sdk.resources import Resource

    from sidecar.record import Record, Trace
    from sidecar.telemetry.waiting import Waiting

    Found = dict[str, Any]

_SCOPE: Final = InstrumentationScope(names.SCOPE, __version__)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NO_STATE: Final = TraceState()
_UNSET: Final = Status(StatusCode.UNSET)
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500


class SpanBuilder:
    """Makes spans of records. ``slo_ttft_s``: the strictest objective; ``compat``: readers with names of their own.
    ``max_chars``: how long an attribute's text may be, 0 for as long as it is."""

    def __init__(
        self, resource: Resource, compat: Collection[str], slo_ttft_s: float | None, max_chars: int = 0
    ) -> None:
        self._max_chars = max_chars
        self._resource = resource
        self._compat = frozenset(compat)
        self._slo_ttft_s = slo_ttft_s

    def build(self, waiting: Waiting) -> list[ReadableSpan]:
        """The request's span, and the call's where an upstream was asked. Nothing where the record has no trace."""
        record, trace = waiting.record, waiting.record.trace
        if trace is None:
            return []
        state = TraceState.from_header([trace.state]) if trace.state else _NO_STATE
        trace_id = int(trace.trace_id, 16)
        server = SpanContext(
            trace_id, int(trace.server_id, 16), is_remote=False, trace_flags=_SAMPLED, trace_state=state
        )
        spans = [self._server_span(waiting, server, _caller(trace, trace_id, state))]
        if record.attempts > 0:
            client = SpanContext(trace_id, int(trace.client_id, 16), False, _SAMPLED, state)
            spans.append(self._client_span(waiting, client, server))
        return spans

    def _server_span(self, waiting: Waiting, context: SpanContext, parent: SpanContext | None) -> ReadableSpan:
        record = waiting.record
        method = calls.method(record)
        name = "HTTP" if method == names.OTHER else method
        is_refusal = record.outcome is Outcome.REFUSED
        is_client_error = _CLIENT_ERROR <= (record.status or 0) < _SERVER_ERROR
        error_type = calls.error_type(record) if is_refusal else calls.request_error_type(record)
        attributes = {**self._server_attributes(record, method), **_present({names.ERROR_TYPE: error_type})}
        return ReadableSpan(
            f"{name} {record.route_path}" if record.route_path else name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=self._cut(attributes),
            kind=SpanKind.SERVER,
            status=_UNSET if is_client_error else _status(record),
            start_time=waiting.at_ns(record.received_at),
            end_time=waiting.at_ns(record.ended_at),
            instrumentation_scope=_SCOPE,
        )

    def _server_attributes(self, record: Record, method: str) -> Found:
        ttft_s = calls.between_s(record.received_at, record.first_sent_at)
        found: Found = {
            names.HTTP_REQUEST_METHOD: method,
            names.URL_PATH: record.path,
            names.URL_SCHEME: record.scheme,
            names.NETWORK_PROTOCOL_VERSION: record.http_version,
            names.HTTP_ROUTE: record.route_path,
            names.HTTP_RESPONSE_STATUS_CODE: record.status,
            names.STREAM_ID: record.stream_id,
            names.OUTCOME: record.outcome.value,
            names.ROUTE: record.route,
            names.UPSTREAM: record.upstream,
            names.FORMAT: record.format if record.is_stream else "",
            names.DIALECT: record.dialect,
            names.REQUESTED_MODEL: record.requested_model,
            names.ATTEMPTS: record.attempts or None,
            names.WARNINGS: record.warnings,
            names.TTFT: ttft_s,
            names.SLO_TTFT_VIOLATED: self._misses_slo(ttft_s),
            names.QUEUED: calls.queued_s(record),
            names.OVERHEAD_REQUEST: calls.overhead_request_s(record),
            names.OVERHEAD_FIRST_TOKEN: calls.overhead_first_token_s(record),
            names.CONTENT_EVENTS: record.content_events or None,
            names.MAX_GAP: record.largest_gap_s,
        }
        if method == names.OTHER:
            found[names.HTTP_REQUEST_METHOD_ORIGINAL] = record.method
        return _present(found)

    def _client_span(self, waiting: Waiting, context: SpanContext, parent: SpanContext) -> ReadableSpan:
        record = waiting.record
        operation = calls.operation(record)
        model = calls.request_model(record)
        attributes = self._client_attributes(record)
        if operation:
            attributes |= _call_attributes(record, operation, model)
            attributes |= self._compat_attributes(waiting, attributes)
        start = waiting.at_ns(calls.asked_at(record))
        return ReadableSpan(
            f"{operation or calls.method(record)} {model}".rstrip(),
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=self._cut(attributes),
            events=self._events(waiting) if operation else (),
            kind=SpanKind.CLIENT,
            status=_status(record),
            start_time=start,
            end_time=max(start, waiting.at_ns(record.ended_at)),
            instrumentation_scope=_SCOPE,
        )

    def _client_attributes(self, record: Record) -> Found:
        ttft_s = calls.between_s(record.received_at, record.first_sent_at)
        return _present(
            {
                names.SERVER_ADDRESS: record.server_address,
                names.SERVER_PORT: record.server_port or None,
                names.HTTP_RESPONSE_STATUS_CODE: record.upstream_status,
                names.HTTP_REQUEST_RESEND_COUNT: record.attempts - 1 or None,
                names.ERROR_TYPE: calls.error_type(record),
                names.ROUTE: record.route,
                names.UPSTREAM: record.upstream,
                names.OUTCOME: record.outcome.value,
                names.TTFT: ttft_s,
                names.SLO_TTFT_VIOLATED: self._misses_slo(ttft_s),
            }
        )

    def _cut(self, attributes: Found) -> Found:
        if not self._max_chars:
            return attributes
        return {
            name: value[: self._max_chars] if isinstance(value, str) else value for name, value in attributes.items()
        }

    def _misses_slo(self, ttft_s: float | None) -> bool | None:
        return None if ttft_s is None or self._slo_ttft_s is None else ttft_s > self._slo_ttft_s

    def _events(self, waiting: Waiting) -> tuple[Event, ...]:
        mark_s = waiting.record.first_content_at
        if mark_s is None:
            return ()
        first = Event(names.EVENT_FIRST_TOKEN, timestamp=waiting.at_ns(mark_s))
        if "openinference" not in self._compat:
            return (first,)
        return (first, Event(names.EVENT_OPENINFERENCE_FIRST_TOKEN, timestamp=waiting.at_ns(mark_s)))

    def _compat_attributes(self, waiting: Waiting, found: Found) -> Found:
        """What is known already, in the words of other readers."""
        record, compat = waiting.record, self._compat
        more: Found = {}
        if "langfuse" in compat and record.first_content_at is not None:
            moment = datetime.fromtimestamp(waiting.at_ns(record.first_content_at) / 1e9, UTC)
            more[names.LANGFUSE_COMPLETION_START] = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
        if "openlit" in compat:
            more[names.OPENLIT_TTFT] = found.get(names.RESPONSE_TIME_TO_FIRST_CHUNK)
        if "legacy" in compat:
            more[names.LEGACY_SYSTEM] = found[names.PROVIDER]
            more[names.LEGACY_CACHE_CREATION] = found.get(names.USAGE_CACHE_WRITE)
        if "openinference" in compat:
            more |= _openinference(record, found)
        return _present(more)


def _call_attributes(record: Record, operation: str, model: str) -> Found:
    usage, content = record.usage, record.content
    found: Found = {
        names.OPERATION: operation,
        names.PROVIDER: calls.provider(record),
        names.REQUEST_MODEL: model,
        names.REQUEST_STREAM: record.is_stream or None,
        names.RESPONSE_MODEL: record.response_model,
        names.RESPONSE_ID: record.response_id,
        names.RESPONSE_FINISH_REASONS: record.finish_reasons,
        names.RESPONSE_TIME_TO_FIRST_CHUNK: calls.between_s(record.sent_at, record.first_content_at),
    }
    if usage is not None:
        found[names.USAGE_INPUT] = usage.input_tokens
        found[names.USAGE_OUTPUT] = usage.output_tokens
        found[names.USAGE_CACHE_READ] = usage.cached_input_tokens
        found[names.USAGE_CACHE_WRITE] = calls.cache_write_tokens(usage.native)
        found[names.USAGE_REASONING] = usage.reasoning_tokens
    if content is not None:
        found[names.INPUT_MESSAGES] = input_messages(content.request)
        found[names.OUTPUT_MESSAGES] = output_messages(content.answer, record.finish_reasons)
        found[names.CONTENT_IS_CUT] = content.is_cut or None
    return _present(found)


def _openinference(record: Record, found: Found) -> Found:
    usage, content = record.usage, record.content
    more: Found = {
        names.OPENINFERENCE_KIND: "LLM",
        names.OPENINFERENCE_MODEL: record.response_model or calls.request_model(record),
        names.OPENINFERENCE_PROVIDER: found[names.PROVIDER],
    }
    if usage is not None:
        total = usage.total_tokens
        if total is None and usage.input_tokens is not None and usage.output_tokens is not None:
            total = usage.input_tokens + usage.output_tokens
        more[names.OPENINFERENCE_PROMPT_TOKENS] = usage.input_tokens
        more[names.OPENINFERENCE_COMPLETION_TOKENS] = usage.output_tokens
        more[names.OPENINFERENCE_TOTAL_TOKENS] = total
        more[names.OPENINFERENCE_CACHE_READ_TOKENS] = usage.cached_input_tokens
        more[names.OPENINFERENCE_REASONING_TOKENS] = usage.reasoning_tokens
    if content is not None:
        more[names.OPENINFERENCE_INPUT] = content.request
        more[names.OPENINFERENCE_OUTPUT] = content.answer
    return more


def _present(found: Mapping[str, Any]) -> Found:
    """What is known: neither None nor empty."""
    return {name: value for name, value in found.items() if value is not None and value != "" and value != ()}


def _status(record: Record) -> Status:
    if not ENDINGS[record.outcome].is_span_error:
        return _UNSET
    return Status(StatusCode.ERROR, record.failure.code if record.failure is not None else record.outcome.value)


def _caller(trace: Trace, trace_id: int, state: TraceState) -> SpanContext | None:
    if not trace.parent_id:
        return None
    return SpanContext(trace_id, int(trace.parent_id, 16), is_remote=True, trace_flags=_SAMPLED, trace_state=state)
