"""What a request is called: its operation, provider, model and error, in the closed words of the conventions.

Owns the way from a `Record` to those words, for spans, metrics and log lines alike, so that the three agree. Must not
know any of the three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sidecar.errors import CODES, ENDINGS
from sidecar.telemetry import names

if TYPE_CHECKING:
    from sidecar.record import Record

CHAT: Final = "chat"
COMPLETION: Final = "text_completion"
GENERATION: Final = "generate_content"
EMBEDDINGS: Final = "embeddings"

OPERATIONS: Final = {
    "openai-chat": CHAT,
    "openai-completions": COMPLETION,
    "openai-responses": CHAT,
    "anthropic": CHAT,
    "gemini": GENERATION,
    "gemini-interactions": GENERATION,
    "ollama-chat": CHAT,
    "ollama-generate": COMPLETION,
    "bedrock-converse": CHAT,
    "bedrock-invoke": CHAT,
    "cohere": CHAT,
    "triton": COMPLETION,
    "triton-accumulated": COMPLETION,
    "tgi": COMPLETION,
    "llamacpp": COMPLETION,
    "sglang": COMPLETION,
    "replicate": GENERATION,
}
"""By dialect; a stream of no dialect that is known generates, too."""

PROVIDERS: Final = {
    "openai-chat": "openai",
    "openai-completions": "openai",
    "openai-responses": "openai",
    "anthropic": "anthropic",
    "gemini": "gcp.gemini",
    "gemini-interactions": "gcp.gemini",
    "ollama-chat": "ollama",
    "ollama-generate": "ollama",
    "bedrock-converse": "aws.bedrock",
    "bedrock-invoke": "aws.bedrock",
    "cohere": "cohere",
    "triton": "triton",
    "triton-accumulated": "triton",
    "tgi": "tgi",
    "llamacpp": "llamacpp",
    "sglang": "sglang",
    "replicate": "replicate",
}
"""By dialect: the best guess where the host is nobody's that is known, as the conventions allow."""

HOSTS: Final = (
    ("api.openai.com", "openai"),
    (".openai.azure.com", "azure.ai.openai"),
    (".cognitiveservices.azure.com", "azure.ai.openai"),
    (".services.ai.azure.com", "azure.ai.inference"),
    (".models.ai.azure.com", "azure.ai.inference"),
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    (".amazonaws.com", "aws.bedrock"),
    ("api.cohere.com", "cohere"),
    ("api.cohere.ai", "cohere"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.groq.com", "groq"),
    ("api.deepseek.com", "deepseek"),
    ("api.perplexity.ai", "perplexity"),
    ("api.x.ai", "x_ai"),
    (".ml.cloud.ibm.com", "ibm.watsonx.ai"),
    ("openrouter.ai", "openrouter"),
    ("api.together.xyz", "together"),
    ("api.fireworks.ai", "fireworks"),
    ("api.replicate.com", "replicate"),
    ("stream.replicate.com", "replicate"),
)
"""Ends of hosts: whose API is told by where it is before by what it speaks, for many speak OpenAI's language."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})

PROVIDER_CODES: Final = frozenset(
    {
        *("rate_limit_exceeded", "insufficient_quota", "context_length_exceeded", "content_filter", "server_error"),
        *("invalid_request_error", "invalid_api_key", "model_not_found", "invalid_prompt", "service_unavailable"),
        *("authentication_error", "permission_error", "not_found_error", "request_too_large", "rate_limit_error"),
        *("api_error", "overloaded_error", "timeout_error", "billing_error", "upstream_error", "internal_error"),
        *("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND"),
        *("RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN"),
        *("throttlingException", "validationException", "internalServerException", "modelStreamErrorException"),
        *("serviceUnavailableException", "modelTimeoutException", "modelErrorException", "accessDeniedException"),
        *("ThrottlingException", "ValidationException", "InternalServerException", "ModelStreamErrorException"),
        *("ServiceUnavailableException", "ModelTimeoutException", "ModelErrorException", "AccessDeniedException"),
        *(
            "overloaded",
            "generation",
            "incomplete_generation",
            "validation",
            "unavailable_error",
            "exceed_context_size",
        ),
    }
)
"""What providers say went wrong inside a stream, as far as it becomes an ``error.type``."""

_CACHE_WRITES: Final = ("cache_creation_input_tokens", "cacheWriteInputTokens", "cacheWriteInputTokenCount")
_MAX_STATUS: Final = 599
_MIN_STATUS: Final = 100
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_ERROR_STATUSES: Final = frozenset(map(str, range(_CLIENT_ERROR, _MAX_STATUS + 1)))


def operation(record: Record) -> str:
    """What was asked of the model; "" where no model was: plain traffic such as a list of models."""
    known = OPERATIONS.get(record.dialect)
    if known is not None:
        return known
    if record.path.endswith("/embeddings"):
        return EMBEDDINGS
    return GENERATION if record.is_stream else ""


def provider(record: Record) -> str:
    """Whose API was asked: by the host, else by the dialect, else by the upstream's own name."""
    host = record.server_address.lower()
    for end, name in HOSTS:
        if host.endswith(end) and (end[0] == "." or host[-len(end) - 1 : -len(end)] in {"", ".", "-"}):
            return name
    return PROVIDERS.get(record.dialect) or record.upstream or names.OTHER


def request_model(record: Record) -> str:
    """The model the upstream was asked for; where it was not asked, the one that the client wanted."""
    return record.sent_model or record.requested_model


def asked_at(record: Record) -> float:
    """When the call began: when its upstream had been sent it, or where several were tried or none could be reached,
    when it could first have been."""
    sent_at = record.sent_at if record.attempts == 1 else None
    if sent_at is None:
        sent_at = record.received_at if record.body_read_at is None else record.body_read_at
        sent_at += record.queued_s or 0.0
    return sent_at if record.first_content_at is None else min(sent_at, record.first_content_at)


def between_s(start_s: float | None, end_s: float | None) -> float | None:
    """Seconds between two marks, to the microsecond; None where one was not reached. Never negative: a streamed
    upload's answer may begin before it is sent."""
    return None if start_s is None or end_s is None else round(max(0.0, end_s - start_s), 6)


def queued_s(record: Record) -> float | None:
    """How long the request waited for a place, to the microsecond; None where it had one at once."""
    return None if record.queued_s is None else round(record.queued_s, 6)


def overhead_request_s(record: Record) -> float | None:
    """The sidecar's own share before the upstream was asked, less what it waited for a place. None where several were
    tried: another upstream's failure lies in between, which is no doing of ours."""
    if record.attempts != 1:
        return None
    if record.queued_s is None or record.sent_at is None:
        return between_s(record.body_read_at, record.sent_at)
    return between_s(record.body_read_at, record.sent_at - record.queued_s)


def overhead_first_token_s(record: Record) -> float | None:
    """The sidecar's own share of the way of the first content."""
    return between_s(record.first_content_at, record.first_sent_at)


def method(record: Record) -> str:
    """The client's method, of a closed list."""
    return record.method if record.method in METHODS else names.OTHER


def error_type(record: Record) -> str | None:
    """What went wrong in the call, of a closed list; None where nothing did, and where the client left."""
    failure = record.failure
    if failure is None:
        return None
    if failure.code == "upstream_status":
        return _status_word(failure.upstream_status or record.upstream_status)
    if failure.code == "upstream_error":
        said = failure.provider_code
        return said if said in PROVIDER_CODES or said in _ERROR_STATUSES else names.OTHER
    return CODES[failure.code].otel_error_type


def request_error_type(record: Record) -> str | None:
    """What went wrong with the client's request. An answer of 4xx is none of the server's errors."""
    status = record.status or 0
    if _CLIENT_ERROR <= status < _SERVER_ERROR:
        return None
    if status >= _SERVER_ERROR:
        return error_type(record) or str(status)
    return error_type(record) if ENDINGS[record.outcome].is_span_error else None


def cache_write_tokens(native: Any) -> int | None:
    """Tokens that went into the provider's cache, in its own ``native`` usage; None where it does not say."""
    if not isinstance(native, dict):
        return None
    for key in _CACHE_WRITES:
        count = native.get(key)
        if type(count) is int and count >= 0:
            return count
    return None


def _status_word(status: int | None) -> str:
    return str(status) if status is not None and _MIN_STATUS <= status <= _MAX_STATUS else names.OTHER
