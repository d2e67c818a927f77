"""What an upstream says when it fails, in any of the shapes it says it.

Owns reading an error value into an `UpstreamError`. Must not know where in a stream the value was found.
"""

from __future__ import annotations

from typing import Any

from sidecar.dialects.lenient_json import as_dict, as_int, as_text, compact
from sidecar.events import UpstreamError

_RETRYABLE_WORDS = frozenset(
    {
        "rate_limit_exceeded",
        "rate_limit_error",
        "server_error",
        "overloaded_error",
        "overloaded",
        "api_error",
        "timeout_error",
        "service_unavailable",
        "unavailable",
        "resource_exhausted",
        "deadline_exceeded",
    }
)
_STATUS_KEYS = ("code", "http_status_code", "status_code", "status")
_MESSAGE_KEYS = ("message", "detail", "msg", "error")


def upstream_error(error: Any) -> UpstreamError:
    """The event of one truthy error value: an object, a text, or anything else. Never raises."""
    fields = as_dict(error)
    if not fields:
        return UpstreamError(error if isinstance(error, str) else compact(error), error)
    status = _status(fields)
    code, kind = fields.get("code"), as_text(fields.get("type")) or as_text(fields.get("error_type"))
    number = as_int(code)
    words = [as_text(code) if number is None else "", kind, as_text(fields.get("status"))]
    provider_code = next((word for word in words if word), "" if number is None else str(number))
    retryable = any(word.lower() in _RETRYABLE_WORDS for word in words)
    if status is not None:
        retryable = retryable or status == 429 or status >= 500
    if isinstance(fields.get("retryable"), bool):
        retryable = fields["retryable"]
    return UpstreamError(_message(fields, provider_code), error, provider_code, status, retryable)


def told_error(fields: dict[str, Any]) -> UpstreamError:
    """The event of an object that tells an error: under ``error``, and where that is a mere text, by what stands beside
    it as well. Never raises."""
    error = fields.get("error")
    return upstream_error(error if isinstance(error, dict) and error else fields)


def _message(fields: dict[str, Any], provider_code: str) -> str:
    texts = (as_text(fields.get(key)) for key in _MESSAGE_KEYS)
    return next((text for text in texts if text), "") or provider_code or compact(fields)


def _status(fields: dict[str, Any]) -> int | None:
    numbers = (as_int(fields.get(key)) for key in _STATUS_KEYS)
    return next((number for number in numbers if number is not None and 400 <= number <= 599), None)
