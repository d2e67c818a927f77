"""Every name that telemetry speaks: metrics with their units and bucket edges, attributes, events, log fields.

Owns the spelling, once, as tables that code, the page of telemetry, the dashboard and the alerts are compared with.
Must not know how anything is measured, kept or sent. `docs/telemetry.md` is made of this file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

SCOPE: Final = "llm_sidecar"
"""The instrumentation scope, and the namespace of the names that are ours."""
SEMCONV: Final = "1.41.1"
"""The version of OpenTelemetry's semantic conventions whose GenAI names these are, but for those marked as newer."""
OTHER: Final = "_OTHER"
"""What stands for a value beyond a closed list or a bound."""

Kind = Literal["histogram", "counter", "updown", "gauge"]
Place = Literal["resource", "server span", "client span", "event", "metric"]
Type = Literal["string", "string[]", "int", "double", "boolean"]

# Attributes. Their table is ATTRIBUTES, further down.

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
SEMCONV_VERSION: Final = "llm_sidecar.semconv"

HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_REQUEST_METHOD_ORIGINAL: Final = "http.request.method_original"
HTTP_REQUEST_RESEND_COUNT: Final = "http.request.resend_count"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
CPU_MODE: Final = "cpu.mode"
OVERFLOW: Final = "otel.metric.overflow"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT: Final = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE: Final = "gen_ai.usage.cache_write.input_tokens"
USAGE_REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - a token of text, not a secret
TOKEN_MODALITY: Final = "gen_ai.token.modality"  # noqa: S105
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"

STREAM_ID: Final = "llm_sidecar.stream.id"
ROUTE: Final = "llm_sidecar.route"
UPSTREAM: Final = "llm_sidecar.upstream"
OUTCOME: Final = "llm_sidecar.outcome"
STAGE: Final = "llm_sidecar.stage"
PHASE: Final = "llm_sidecar.phase"
SIGNAL: Final = "llm_sidecar.signal"
WORKER: Final = "llm_sidecar.worker"
REASON: Final = "llm_sidecar.reason"
FORMAT: Final = "llm_sidecar.format"
DIALECT: Final = "llm_sidecar.dialect"
REQUESTED_MODEL: Final = "llm_sidecar.requested_model"
ATTEMPTS: Final = "llm_sidecar.attempts"
WARNINGS: Final = "llm_sidecar.warnings"
TTFT: Final = "llm_sidecar.ttft"
QUEUED: Final = "llm_sidecar.queued"
OVERHEAD_REQUEST: Final = "llm_sidecar.overhead.request"
OVERHEAD_FIRST_TOKEN: Final = "llm_sidecar.overhead.first_token"  # noqa: S105
CONTENT_EVENTS: Final = "llm_sidecar.stream.content_events"
MAX_GAP: Final = "llm_sidecar.stream.max_gap"
SLO_TTFT_VIOLATED: Final = "llm_sidecar.slo.ttft_violated"
CONTENT_IS_CUT: Final = "llm_sidecar.content.is_cut"

LANGFUSE_COMPLETION_START: Final = "langfuse.observation.completion_start_time"
OPENLIT_TTFT: Final = "gen_ai.server.time_to_first_token"
LEGACY_SYSTEM: Final = "gen_ai.system"
LEGACY_CACHE_CREATION: Final = "gen_ai.usage.cache_creation.input_tokens"
OPENINFERENCE_KIND: Final = "openinference.span.kind"
OPENINFERENCE_MODEL: Final = "llm.model_name"
OPENINFERENCE_PROVIDER: Final = "llm.provider"
OPENINFERENCE_PROMPT_TOKENS: Final = "llm.token_count.prompt"
OPENINFERENCE_COMPLETION_TOKENS: Final = "llm.token_count.completion"
OPENINFERENCE_TOTAL_TOKENS: Final = "llm.token_count.total"
OPENINFERENCE_CACHE_READ_TOKENS: Final = "llm.token_count.prompt_details.cache_read"
OPENINFERENCE_REASONING_TOKENS: Final = "llm.token_count.completion_details.reasoning"
OPENINFERENCE_INPUT: Final = "input.value"
OPENINFERENCE_OUTPUT: Final = "output.value"

# Events of spans.

EVENT_FIRST_TOKEN: Final = "llm_sidecar.first_token"  # noqa: S105
EVENT_OPENINFERENCE_FIRST_TOKEN: Final = "First Token Stream Event"  # noqa: S105

# Metrics. Their table is METRICS, at the end.

OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105
INPUT_TOKENS: Final = "gen_ai.client.inference.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.client.inference.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.client.inference.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.client.inference.usage.cache_write.input_tokens"
REASONING_TOKENS: Final = "gen_ai.client.inference.usage.reasoning.output_tokens"
TIME_TO_FIRST_TOKEN: Final = "llm_sidecar.time_to_first_token"  # noqa: S105
OVERHEAD: Final = "llm_sidecar.overhead.duration"
TIME_PER_OUTPUT_TOKEN: Final = "llm_sidecar.time_per_output_token"  # noqa: S105
STREAM_MAX_GAP: Final = "llm_sidecar.stream.max_gap"
STREAMS_ENDED: Final = "llm_sidecar.streams.ended"
STREAMS_ACTIVE: Final = "llm_sidecar.streams.active"
QUEUE: Final = "llm_sidecar.queue"
BUFFERED: Final = "llm_sidecar.buffered"
BUFFERED_LIMIT: Final = "llm_sidecar.buffered.limit"
CONNECTIONS: Final = "llm_sidecar.connections"
CONNECTIONS_LIMIT: Final = "llm_sidecar.connections.limit"
UPSTREAM_UP: Final = "llm_sidecar.upstream.up"
WORKER_UP: Final = "llm_sidecar.worker.up"
EVENT_LOOP_LAG: Final = "llm_sidecar.event_loop.lag"
TELEMETRY_DROPPED: Final = "llm_sidecar.telemetry.dropped"
TELEMETRY_EXPORTED: Final = "llm_sidecar.telemetry.exported"
TELEMETRY_QUEUE: Final = "llm_sidecar.telemetry.queue"
SERVER_REQUEST_DURATION: Final = "http.server.request.duration"
SERVER_ACTIVE_REQUESTS: Final = "http.server.active_requests"
PROCESS_CPU_TIME: Final = "process.cpu.time"
PROCESS_MEMORY: Final = "process.memory.usage"

# Bucket edges: a value on an edge falls below it (le). The conventions' own edges are all among them.

GEN_AI_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
OPERATION_SECONDS: Final = (*GEN_AI_SECONDS, 120.0, 300.0, 600.0)
FIRST_TOKEN_SECONDS: Final = tuple(sorted({*GEN_AI_SECONDS, 0.25, 0.3, 0.5, 0.7, 1.0, 2.0}))
"""Those of the conventions, and exactly where objectives are set: 300 ms, 700 ms and 1 s."""
OVERHEAD_SECONDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
PER_TOKEN_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
HTTP_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0, 300.0),
)
LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TOKENS: Final = tuple(float(4**power) for power in range(14))


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: what it says, and where it stands.

    ``compat`` names the switch that turns it on, for readers who look for other names than the conventions'.
    """

    name: str
    type: Type
    places: tuple[Place, ...]
    description: str
    compat: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its instrument, the attributes a point may have, and for a histogram the edges of its buckets.

    ``span`` is the one that exemplars point at: the client's request or the call behind it.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    span: Literal["server", "client", ""] = ""

    @property
    def prometheus_name(self) -> str:
        """What Prometheus calls its family: suffixed by its unit, a counter by ``_total`` too."""
        suffix = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        return prometheus_label(self.name) + suffix + ("_total" if self.kind == "counter" else "")


def prometheus_label(attribute: str) -> str:
    """What Prometheus calls an attribute: no label may begin with a digit."""
    label = re.sub(r"[^a-zA-Z0-9]+", "_", attribute)
    return f"key_{label}" if label[:1].isdigit() else label


_BOTH: Final[tuple[Place, ...]] = ("server span", "client span")
_CALL: Final[tuple[Place, ...]] = ("client span", "metric")
_SERVER: Final[tuple[Place, ...]] = ("server span",)
_CLIENT: Final[tuple[Place, ...]] = ("client span",)
_METRIC: Final[tuple[Place, ...]] = ("metric",)
_RESOURCE: Final[tuple[Place, ...]] = ("resource",)
_ANYWHERE: Final[tuple[Place, ...]] = (*_BOTH, "metric")

_ATTRIBUTES: Final = (
    Attribute(SERVICE_NAME, "string", _RESOURCE, "`llm-sidecar`, unless OTEL_SERVICE_NAME says otherwise"),
    Attribute(SERVICE_VERSION, "string", _RESOURCE, "the sidecar's own version"),
    Attribute(SERVICE_INSTANCE_ID, "string", _RESOURCE, "one process: what sums over several are made of"),
    Attribute(SEMCONV_VERSION, "string", _RESOURCE, "the version of the conventions these names are of"),
    Attribute(HTTP_REQUEST_METHOD, "string", ("server span", "metric"), "the client's method; `_OTHER` for an unknown"),
    Attribute(HTTP_REQUEST_METHOD_ORIGINAL, "string", _SERVER, "the method as it was sent, where it is unknown"),
    Attribute(HTTP_REQUEST_RESEND_COUNT, "int", _CLIENT, "how often an upstream was asked again"),
    Attribute(
        HTTP_RESPONSE_STATUS_CODE, "int", _ANYWHERE, "what the client was answered; in the call, what the upstream said"
    ),
    Attribute(HTTP_ROUTE, "string", ("server span", "metric"), "the path pattern that the request fitted"),
    Attribute(URL_PATH, "string", _SERVER, "the path, without its query"),
    Attribute(URL_SCHEME, "string", ("server span", "metric"), "`http` or `https`"),
    Attribute(NETWORK_PROTOCOL_VERSION, "string", ("server span", "metric"), "the client's HTTP version"),
    Attribute(SERVER_ADDRESS, "string", _CALL, "the upstream's host"),
    Attribute(SERVER_PORT, "int", _CALL, "the upstream's port"),
    Attribute(
        ERROR_TYPE,
        "string",
        _ANYWHERE,
        "what went wrong, of a closed list: an HTTP status, a provider's error code, `timeout`, `connect_error`, "
        "`upstream_reset`, `truncated`, `parse_error`, `shutting_down` or `_OTHER`; absent where nothing did and where "
        "the client left",
    ),
    Attribute(CPU_MODE, "string", _METRIC, "`user` or `system`"),
    Attribute(OVERFLOW, "boolean", _METRIC, "true: the point holds all sets of attributes beyond the bound"),
    Attribute(OPERATION, "string", _CALL, "`chat`, `text_completion`, `generate_content` or `embeddings`"),
    Attribute(PROVIDER, "string", _CALL, "whose API it is, by its host, else by its dialect"),
    Attribute(REQUEST_MODEL, "string", _CALL, "the model that the upstream was asked for; bounded in metrics"),
    Attribute(REQUEST_STREAM, "boolean", _CLIENT, "true for a stream, else absent"),
    Attribute(RESPONSE_MODEL, "string", _CALL, "the model that the answer names; bounded in metrics"),
    Attribute(RESPONSE_ID, "string", _CLIENT, "the answer's own id"),
    Attribute(RESPONSE_FINISH_REASONS, "string[]", _CLIENT, "why each choice ended"),
    Attribute(RESPONSE_TIME_TO_FIRST_CHUNK, "double", _CLIENT, "seconds from the request sent to its first content"),
    Attribute(USAGE_INPUT, "int", _CLIENT, "tokens in, as the provider counts them"),
    Attribute(USAGE_OUTPUT, "int", _CLIENT, "tokens out, as the provider counts them"),
    Attribute(USAGE_CACHE_READ, "int", _CLIENT, "tokens in that came out of the provider's cache"),
    Attribute(USAGE_CACHE_WRITE, "int", _CLIENT, "tokens in that went into the provider's cache (newer conventions)"),
    Attribute(USAGE_REASONING, "int", _CLIENT, "tokens out that were reasoning"),
    Attribute(TOKEN_TYPE, "string", _METRIC, "`input` or `output`"),
    Attribute(TOKEN_MODALITY, "string", _METRIC, "`unknown`: providers' counts do not say"),
    Attribute(INPUT_MESSAGES, "string", _CLIENT, "the request's body, where content is switched on"),
    Attribute(OUTPUT_MESSAGES, "string", _CLIENT, "the visible text, where content is switched on"),
    Attribute(STREAM_ID, "string", _SERVER, "the id that logs, headers and `/streams` show"),
    Attribute(ROUTE, "string", _ANYWHERE, "the route's name in the configuration"),
    Attribute(UPSTREAM, "string", _ANYWHERE, "the upstream's name in the configuration"),
    Attribute(OUTCOME, "string", _ANYWHERE, "how it ended: a row of the endings table"),
    Attribute(
        STAGE, "string", _METRIC, "`before_first_token` or `after_first_token`, of what did not complete; else absent"
    ),
    Attribute(PHASE, "string", _METRIC, "`request`: body read to upstream asked; `first_token`: decoded to handed on"),
    Attribute(
        WORKER, "string", _METRIC, "where there are several: the worker's number, or `parent`; on `/metrics` alone"
    ),
    Attribute(SIGNAL, "string", _METRIC, "`traces`, `metrics` or `logs`"),
    Attribute(REASON, "string", _METRIC, "why it was dropped: `queue_full`, `export_failed` or `closed`"),
    Attribute(FORMAT, "string", _SERVER, "what the client was sent: `native` or `typed`"),
    Attribute(DIALECT, "string", _SERVER, "the upstream's language"),
    Attribute(REQUESTED_MODEL, "string", _SERVER, "the model that the client asked for"),
    Attribute(ATTEMPTS, "int", _SERVER, "how often an upstream was asked or dialled"),
    Attribute(WARNINGS, "string[]", _SERVER, "what was odd about the stream"),
    Attribute(TTFT, "double", _BOTH, "seconds from the client's head read to its first content handed over"),
    Attribute(QUEUED, "double", _SERVER, "seconds it waited for a place among the streams, where it had to"),
    Attribute(OVERHEAD_REQUEST, "double", _SERVER, "seconds of the sidecar's own before the upstream was asked"),
    Attribute(OVERHEAD_FIRST_TOKEN, "double", _SERVER, "seconds from the first content decoded to handed over"),
    Attribute(CONTENT_EVENTS, "int", _SERVER, "events with content"),
    Attribute(MAX_GAP, "double", _SERVER, "seconds of the longest wait between two events with content"),
    Attribute(SLO_TTFT_VIOLATED, "boolean", _BOTH, "the first token took longer than the strictest objective"),
    Attribute(CONTENT_IS_CUT, "boolean", _CLIENT, "the captured content is not whole"),
    Attribute(LANGFUSE_COMPLETION_START, "string", _CLIENT, "the first content's time, ISO 8601 in UTC", "langfuse"),
    Attribute(OPENLIT_TTFT, "double", _CLIENT, "seconds to the first content", "openlit"),
    Attribute(LEGACY_SYSTEM, "string", _CLIENT, "the provider, as it was called up to 1.36", "legacy"),
    Attribute(LEGACY_CACHE_CREATION, "int", _CLIENT, "cache writes, as they were called", "legacy"),
    Attribute(OPENINFERENCE_KIND, "string", _CLIENT, "`LLM`", "openinference"),
    Attribute(OPENINFERENCE_MODEL, "string", _CLIENT, "the answer's model, else the request's", "openinference"),
    Attribute(OPENINFERENCE_PROVIDER, "string", _CLIENT, "whose API it is", "openinference"),
    Attribute(OPENINFERENCE_PROMPT_TOKENS, "int", _CLIENT, "tokens in", "openinference"),
    Attribute(OPENINFERENCE_COMPLETION_TOKENS, "int", _CLIENT, "tokens out", "openinference"),
    Attribute(OPENINFERENCE_TOTAL_TOKENS, "int", _CLIENT, "both", "openinference"),
    Attribute(OPENINFERENCE_CACHE_READ_TOKENS, "int", _CLIENT, "tokens in out of the cache", "openinference"),
    Attribute(OPENINFERENCE_REASONING_TOKENS, "int", _CLIENT, "tokens out that were reasoning", "openinference"),
    Attribute(OPENINFERENCE_INPUT, "string", _CLIENT, "the request, where content is switched on", "openinference"),
    Attribute(OPENINFERENCE_OUTPUT, "string", _CLIENT, "the answer, where content is switched on", "openinference"),
)
ATTRIBUTES: Final = {attribute.name: attribute for attribute in _ATTRIBUTES}

EVENTS: Final = {
    EVENT_FIRST_TOKEN: "the first content was decoded; once on the call's span, never again per token",
    EVENT_OPENINFERENCE_FIRST_TOKEN: "the same, as OpenInference calls it (switch `openinference`)",
}

LOG_FIELDS: Final = {
    "time": "when it ended, ISO 8601 in UTC",
    "level": "`info`, `warning` where the sidecar or the upstream failed, `error` for a bug",
    "message": "`stream ended`",
    "stream": "the stream's id",
    "trace_id": "the trace, where there is one",
    "span_id": "the client's request in it",
    "route": "the route's name",
    "upstream": "the upstream's name",
    "method": "the client's method",
    "path": "the path, without its query",
    "status": "what the client was answered",
    "upstream_status": "what the upstream answered",
    "outcome": "how it ended: a row of the endings table",
    "error": "the error's code",
    "error_type": "what `error.type` is in spans and metrics",
    "model": "the model that was asked for",
    "response_model": "the model that the answer names",
    "format": "`native` or `typed`",
    "duration_s": "from the head read to the end",
    "ttft_s": "from the head read to the first content handed over",
    "upstream_ttft_s": "from the upstream asked to the first content decoded",
    "queued_s": "how long it waited for a place among the streams",
    "overhead_s": "the sidecar's own share of the time to the first token",
    "max_gap_s": "the longest wait between two events with content",
    "content_events": "events with content",
    "input_tokens": "tokens in, as the provider counts them",
    "output_tokens": "tokens out, as the provider counts them",
    "cached_input_tokens": "tokens in that came out of the provider's cache",
    "reasoning_tokens": "tokens out that were reasoning",
    "finish_reasons": "why each choice ended",
    "attempts": "how often an upstream was asked or dialled",
    "warnings": "what was odd about the stream",
}
"""What a line of the stream log may hold; what is not known is left out."""

CALL: Final = (OPERATION, PROVIDER, REQUEST_MODEL, RESPONSE_MODEL, SERVER_ADDRESS, SERVER_PORT, ROUTE, UPSTREAM)
"""The attributes of everything that is measured of a call. No user, key, id or conversation is among them."""
_HTTP: Final = (HTTP_REQUEST_METHOD, URL_SCHEME, HTTP_ROUTE, HTTP_RESPONSE_STATUS_CODE, ERROR_TYPE)
_COUNTED: Final = (*CALL, TOKEN_MODALITY)

_METRICS: Final = (
    Metric(
        OPERATION_DURATION,
        "histogram",
        "s",
        "Duration of calls of an upstream, from the request sent to the end",
        (*CALL, ERROR_TYPE, OUTCOME),
        OPERATION_SECONDS,
        "client",
    ),
    Metric(
        TIME_TO_FIRST_CHUNK,
        "histogram",
        "s",
        "Time from the upstream asked to the first content decoded, of streams",
        CALL,
        FIRST_TOKEN_SECONDS,
        "client",
    ),
    Metric(
        TOKEN_USAGE,
        "histogram",
        "{token}",
        "Tokens of a call, as the provider reported them",
        (*CALL, TOKEN_TYPE),
        TOKENS,
        "client",
    ),
    Metric(INPUT_TOKENS, "counter", "{token}", "Tokens in, as providers reported them", _COUNTED),
    Metric(OUTPUT_TOKENS, "counter", "{token}", "Tokens out, as providers reported them", _COUNTED),
    Metric(CACHE_READ_TOKENS, "counter", "{token}", "Tokens in that came out of providers' caches", _COUNTED),
    Metric(CACHE_WRITE_TOKENS, "counter", "{token}", "Tokens in that went into providers' caches", _COUNTED),
    Metric(REASONING_TOKENS, "counter", "{token}", "Tokens out that were reasoning", _COUNTED),
    Metric(
        TIME_TO_FIRST_TOKEN,
        "histogram",
        "s",
        "Time from a client's request head to its first content handed over, of streams",
        CALL,
        FIRST_TOKEN_SECONDS,
        "server",
    ),
    Metric(
        OVERHEAD,
        "histogram",
        "s",
        "The sidecar's own share of the time to the first token",
        (*CALL, PHASE),
        OVERHEAD_SECONDS,
        "server",
    ),
    Metric(
        TIME_PER_OUTPUT_TOKEN,
        "histogram",
        "s",
        "Mean time per token after the first content, by providers' own counts",
        CALL,
        PER_TOKEN_SECONDS,
        "client",
    ),
    Metric(
        STREAM_MAX_GAP,
        "histogram",
        "s",
        "Longest wait between two events with content in a stream",
        CALL,
        FIRST_TOKEN_SECONDS,
        "client",
    ),
    Metric(STREAMS_ENDED, "counter", "{stream}", "Requests that ended", (ROUTE, UPSTREAM, OUTCOME, ERROR_TYPE, STAGE)),
    Metric(STREAMS_ACTIVE, "gauge", "{stream}", "Streams running now, waiting ones included"),
    Metric(QUEUE, "gauge", "{request}", "Requests that wait for a place among the streams"),
    Metric(BUFFERED, "gauge", "By", "Bytes held for clients that are behind"),
    Metric(BUFFERED_LIMIT, "gauge", "By", "Bound on the bytes held for all clients together"),
    Metric(CONNECTIONS, "gauge", "{connection}", "Client connections open now"),
    Metric(CONNECTIONS_LIMIT, "gauge", "{connection}", "Bound on the client connections open at a time"),
    Metric(
        UPSTREAM_UP, "gauge", "{upstream}", "1 for an upstream that may be asked, 0 for one left alone", (UPSTREAM,)
    ),
    Metric(WORKER_UP, "gauge", "{worker}", "Whether a worker answers, where there are several", (WORKER,)),
    Metric(EVENT_LOOP_LAG, "histogram", "s", "How late the data loop's turns were", (), LAG_SECONDS),
    Metric(TELEMETRY_DROPPED, "counter", "{item}", "Spans, points and log lines that were given up", (SIGNAL, REASON)),
    Metric(TELEMETRY_EXPORTED, "counter", "{item}", "Spans, points and log lines that were delivered", (SIGNAL,)),
    Metric(TELEMETRY_QUEUE, "gauge", "{item}", "Requests whose telemetry waits", (SIGNAL,)),
    Metric(
        SERVER_REQUEST_DURATION,
        "histogram",
        "s",
        "Duration of clients' requests, from the head read to the end",
        (*_HTTP, NETWORK_PROTOCOL_VERSION),
        HTTP_SECONDS,
        "server",
    ),
    Metric(SERVER_ACTIVE_REQUESTS, "updown", "{request}", "Clients' requests running now"),
    Metric(PROCESS_CPU_TIME, "counter", "s", "CPU time of the process", (CPU_MODE,)),
    Metric(PROCESS_MEMORY, "updown", "By", "Memory of the process that is resident"),
)
METRICS: Final = {metric.name: metric for metric in _METRICS}
