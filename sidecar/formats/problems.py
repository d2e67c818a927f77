"""What a client is answered when nothing of a stream was sent yet: an HTTP error body in the shape its API has.

Owns which API family a path belongs to and how each family words an error. Must not know requests beyond their path,
and never repeats a byte of one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from sidecar.formats.safe_json import encode_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.errors import Failure

_JSON: Final = "application/json"
_PROBLEM_JSON: Final = "application/problem+json"

_QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
_REDUCED_CAPACITY: Final = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"

_OPENAI_ENDS: Final = ("/chat/completions/", "/completions/", "/embeddings/", "/models/")
_OPENAI_PIECES: Final = ("/v1/", "/openai/", "/responses/")
_VERTEX_ANTHROPIC_ENDS: Final = (":rawPredict/", ":streamRawPredict/")
_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_COHERE_ENDS: Final = ("/v2/chat/", "/v2/embed/", "/v2/rerank/")
_COMPLETION_ENDS: Final = ("/completion/", "/infill/", "/generate/")
"""llama.cpp's and SGLang's own, which put an object under ``error`` as OpenAI does."""
_OVERLOADED: Final = frozenset({429, 503})
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_BEDROCK_PATH: Final = re.compile(
    r".*/model/[^/]+/(?:converse|converse-stream|invoke|invoke-with-response-stream|count-tokens)/"
)
_WORD: Final = re.compile(r"[A-Za-z]{1,64}")
_BEDROCK_TYPES: Final = {
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}

_GOOGLE_STATUSES: Final = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_GOOGLE: Final = re.compile(
    r":(?:streamGenerateContent|generateContent|countTokens|computeTokens|embedContent|predict)/"
    r"|/v1(?:alpha|beta)\d*/|/interactions/"
)
"""A method of a model, an API version that nobody else has, or interactions."""


@lru_cache(256)
def family_of(path: str) -> str:
    """Whose error shape a client of ``path`` expects: a key of `_SHAPES`, "problem" (RFC 9457) where none is known."""
    path = "/" + path.partition("?")[0].strip("/") + "/"
    if _BEDROCK_PATH.fullmatch(path):
        return "bedrock"
    if path.endswith(_COHERE_ENDS):
        return "cohere"
    if "/v2/models/" in path:
        return "triton"
    if path.endswith("/generate_stream/"):
        return "tgi"
    if "/v1/streams/" in path:
        return "problem"
    if "/v1/messages/" in path or path.endswith(_VERTEX_ANTHROPIC_ENDS):
        return "anthropic"
    if "/openai/" not in path and _GOOGLE.search(path):
        return "gemini"
    # Before Ollama's own: several vendors serve OpenAI's API under /api/v1/.
    if path.endswith(_OPENAI_ENDS) or any(piece in path for piece in _OPENAI_PIECES):
        return "openai"
    if path.startswith("/api/"):
        return "ollama"
    return "openai" if path.endswith(_COMPLETION_ENDS) else "problem"


def problem(family: str, failure: Failure, stream_id: str) -> tuple[str, bytes]:
    """The content type and body that tell ``failure`` to a client of ``family``; its status is the failure's own."""
    content_type, body = _SHAPES.get(family, _problem)(failure, stream_id)
    return content_type, encode_json(body)


def problem_headers(family: str, failure: Failure) -> list[tuple[bytes, bytes]]:
    """What the headers of such an answer say of ``failure``, where a client of ``family`` looks for it there: AWS's
    tell one exception from another by nothing else."""
    if family != "bedrock":
        return []
    status = failure.http_status
    kind = _BEDROCK_TYPES.get(status) or ("ValidationException" if status < 500 else "InternalServerException")
    said = failure.provider_code if failure.code == "upstream_status" else ""
    return [(b"x-amzn-ErrorType", (said if _WORD.fullmatch(said) else kind).encode())]


def limit_headers(failure: Failure) -> list[tuple[bytes, bytes]]:
    """What the RateLimit fields (draft-ietf-httpapi-ratelimit-headers) say of the limit that refused a request."""
    if failure.policy is None:
        return []
    name, limit = failure.policy
    return [
        (b"RateLimit-Policy", b'"%b";q=%d;qu="concurrent-requests"' % (name.encode(), limit)),
        (b"RateLimit", b'"%b";r=0;t=%b' % (name.encode(), failure.retry_after.encode())),
    ]


def _openai(failure: Failure, stream_id: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG001 - one shape for all
    status = failure.http_status
    kind = _OPENAI_TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    error = {"message": failure.message, "type": kind, "param": None, "code": failure.code}
    return _JSON, {"error": _with_native(error, failure)}


def _anthropic(failure: Failure, stream_id: str) -> tuple[str, dict[str, Any]]:
    status = failure.http_status
    kind = _ANTHROPIC_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    error = {"type": kind, "message": failure.message}
    return _JSON, {"type": "error", "error": _with_native(error, failure), "request_id": stream_id}


def _gemini(failure: Failure, stream_id: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG001 - one shape for all
    status = failure.http_status
    word = _GOOGLE_STATUSES.get(status) or ("INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    error = {"code": status, "message": failure.message, "status": word}
    return _JSON, {"error": _with_native(error, failure)}


def _bedrock(failure: Failure, stream_id: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG001 - one shape for all
    return _JSON, _with_native({"message": failure.message}, failure)


def _bare(failure: Failure, stream_id: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG001 - one shape for all
    return _JSON, {"error": failure.message}


def _cohere(failure: Failure, stream_id: str) -> tuple[str, dict[str, Any]]:
    return _JSON, _with_native({"message": failure.message, "id": stream_id}, failure)


def _tgi(failure: Failure, stream_id: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG001 - one shape for all
    status = failure.http_status
    kind = "overloaded" if status in _OVERLOADED else "validation" if status < 500 else "generation"
    return _JSON, _with_native({"error": failure.message, "error_type": kind}, failure)


def _problem(failure: Failure, stream_id: str) -> tuple[str, dict[str, Any]]:
    status = failure.http_status
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": failure.message,
        "code": failure.code,
        "instance": f"urn:llm-sidecar:stream:{stream_id}",
    }
    if failure.policy is not None:
        body["type"] = _QUOTA_EXCEEDED if failure.code == "caller_limit" else _REDUCED_CAPACITY
        body["violated-policies"] = [failure.policy[0]]
    return _PROBLEM_JSON, _with_native(body, failure)


def _with_native(body: dict[str, Any], failure: Failure) -> dict[str, Any]:
    return body if failure.native is None else {**body, "native": failure.native}


_SHAPES: Final[dict[str, Callable[[Failure, str], tuple[str, dict[str, Any]]]]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "bedrock": _bedrock,
    "ollama": _bare,
    "cohere": _cohere,
    "triton": _bare,
    "tgi": _tgi,
    "problem": _problem,
}
