"""What a message of an AWS event stream says when it is no event: an exception or an unmodeled error.

Owns reading both into an `UpstreamError`, and the exception in which we tell a failure of our own. Must not know any
service's events.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sidecar.dialects.lenient_json import UnparseableError, as_text, parse, text_of
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.events import Frame, UpstreamError
from sidecar.framing.aws_event_stream import ERROR, EXCEPTION, encode_message

_RETRYABLE: Final = frozenset(
    {
        "internalfailure",
        "internalserver",
        "internalservererror",
        "modelnotready",
        "modeltimeout",
        "requesttimeout",
        "serviceunavailable",
        "throttling",
        "toomanyrequests",
    }
)
"""Names of what may pass, in lower case and without "Exception"."""


def stated_error(frame: Frame) -> UpstreamError | None:
    """The error that a message is; None for an event.

    ``native`` is the payload's object with the headers that name the error, by their own names.
    """
    name = frame.name or b""
    if name.startswith(EXCEPTION):
        kind = text_of(name.removeprefix(EXCEPTION))
        fields = _fields(frame.data or b"{}")
        message = as_text(fields.get("message")) or as_text(fields.get("Message"))
        return _error(kind, message, fields.get("originalStatusCode"), {**fields, ":exception-type": kind})
    if name.startswith(ERROR):
        code, _, message = text_of(name.removeprefix(ERROR)).partition("\n")
        return _error(code, message, None, {":error-code": code, ":error-message": message})
    return None


def exception_message(kind: str, message: str) -> bytes:
    """The bytes of an exception of type ``kind``."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return encode_message(headers, msgspec.json.encode({"message": message}))


def unmodeled_error_message(code: str, message: str) -> bytes:
    """The bytes of an error that any service's clients understand, whatever exceptions its model has."""
    return encode_message({":message-type": "error", ":error-code": code, ":error-message": message}, b"")


def _fields(payload: bytes) -> dict[str, Any]:
    try:
        value = parse(payload)
    except UnparseableError:
        value = text_of(payload)
    return value if isinstance(value, dict) else {"message": value}


def _error(kind: str, message: str, status: Any, native: dict[str, str]) -> UpstreamError:
    words = {"message": message or kind or "the upstream failed without a word", "type": kind, "status": status}
    error = upstream_error(words)
    is_retryable = error.retryable or kind.lower().removesuffix("exception") in _RETRYABLE
    return msgspec.structs.replace(error, native=native, retryable=is_retryable)
