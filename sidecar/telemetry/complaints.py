"""Why an export failed, in words that may be logged.

Owns what exporters' own log lines become: nothing but such words, since those lines may hold a header, or a URL with a
key in it, and come with every batch. Must not know what was to be exported.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
from typing import Final

_TALKERS: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.common._internal",
)
"""Whoever says that a batch failed, or a value of it. We say it once ourselves."""

_QUOTERS: Final = ("opentelemetry.util.re",)
"""Whoever repeats a malformed header with its value."""

_MAX_CAUSES: Final = 8
_THREAD: Final = threading.local()


def note(trouble: object) -> None:
    """Remember it for this thread: an exception, an HTTP status or gRPC's. Anything else says nothing."""
    said = _word(trouble)
    if said:
        _THREAD.complaint = said


def last_complaint() -> str:
    """Why this thread's last export failed; "" where nobody said. Asked once."""
    said: str = getattr(_THREAD, "complaint", "")
    _THREAD.complaint = ""
    return said


def silence_exporters() -> None:
    """From now on they complain to us alone."""
    for name in _TALKERS:
        logging.getLogger(name).addFilter(_LISTENER)  # a filter that is there already is not added again
    for name in _QUOTERS:
        logging.getLogger(name).addFilter(_UNQUOTED)


class _Listener(logging.Filter):
    """Lets no line through; what is certainly no secret in it is noted."""

    def filter(self, record: logging.LogRecord) -> bool:
        for value in record.args if isinstance(record.args, tuple) else ():
            note(value)
        return False


class _Unquoted(logging.Filter):
    """Lets the line through without what it repeats."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = "a header in OTEL_EXPORTER_OTLP_*HEADERS is malformed, and is not sent", ()
        return True


_LISTENER: Final = _Listener()
_UNQUOTED: Final = _Unquoted()


def _word(trouble: object) -> str:
    if isinstance(trouble, bool):
        return ""
    if isinstance(trouble, enum.Enum):  # gRPC's status
        return trouble.name
    if isinstance(trouble, int):
        return f"HTTP {trouble}"
    return _cause(trouble) if isinstance(trouble, BaseException) else ""


def _cause(error: BaseException) -> str:
    """The system's own words where an exception goes back to them, else what kind of exception it is."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            break
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
