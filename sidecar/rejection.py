"""An upstream's error answer, read for its own words.

Owns the shapes providers give an error that is the whole answer. Must not know HTTP or formats.
"""

from __future__ import annotations

from typing import Any

from sidecar.dialects.lenient_json import UnparseableError, as_dict, parse, text_of
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure
from sidecar.events import UpstreamError

_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MAX_TEXT = 2000


def rejection(status: int, body: bytes, retry_after: str = "", error_type: str = "") -> Failure:
    """The failure that an HTTP error answer of ``status`` with ``body`` means; ``native`` is its JSON, or its text.

    ``error_type`` is the header in which AWS names an exception, "" for none; what follows a colon there is a link."""
    native = _parse(body)
    message, provider_code = _words(native)
    return Failure(
        "upstream_status",
        message or f"the upstream answered with status {status}",
        upstream_status=status,
        native=native,
        provider_code=provider_code or error_type.partition(":")[0],
        retryable=status in _RETRYABLE_STATUSES,
        retry_after=retry_after,
    )


def said_error(body: bytes) -> UpstreamError | None:
    """The error that a JSON answer tells under a status of success; None where it tells none."""
    try:
        value = parse(body)
    except UnparseableError:
        return None
    fields = as_dict(value[0] if isinstance(value, list) and len(value) == 1 else value)
    if fields.get("error"):
        return upstream_error(fields["error"])
    return upstream_error(fields) if "error" in (fields.get("type"), fields.get("object")) else None


def _parse(body: bytes) -> Any:
    try:
        return parse(body)
    except UnparseableError:
        return text_of(body)[:_MAX_TEXT] or None


def _words(native: Any) -> tuple[str, str]:
    """The message and the provider's code, wherever this provider keeps them."""
    if isinstance(native, list) and native:
        native = native[0]
    if not isinstance(native, dict):
        return "", ""
    error = native.get("error", native)
    if isinstance(error, str):
        return error, str(native.get("error_type") or "")
    if not isinstance(error, dict):
        return "", ""
    message = error.get("message") or error.get("detail") or error.get("Message")
    code = error.get("code") or error.get("type") or error.get("status")
    return message if isinstance(message, str) else "", "" if code is None else str(code)
