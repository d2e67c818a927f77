"""Log lines as they look: one of a request that is over, or one of the process itself, as JSON or for a console.

Owns fields, order and escaping; a line is one line whatever a client sends. Must not know where lines go.
"""

from __future__ import annotations

import json
import re
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidecar.errors import ENDINGS, Outcome
from sidecar.telemetry import calls

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping

    from sidecar.record import Record
    from sidecar.settings import LogFormat
    from sidecar.telemetry.waiting import Waiting

STREAM_MESSAGE: Final = "stream ended"
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""As `logging` has them."""

_LOGGER: Final = "sidecar.streams"
_MAX_TEXT: Final = 16 * 1024
_PLAIN: Final = re.compile(r"[\w.:/@+*,-]+", re.ASCII)
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\uffff\U00010000-\U0010ffff]")
_NS: Final = 1e9


def stream_level(record: Record) -> str:
    """A failure of ours or of the upstream's is worth a warning, a bug an error; what clients do is neither."""
    if record.outcome is Outcome.INTERNAL:
        return "error"
    return "warning" if ENDINGS[record.outcome].is_span_error else "info"


def stream_line(waiting: Waiting, log_format: LogFormat) -> str:
    """The line of a request that is over."""
    record = waiting.record
    moment, level, fields = _moment(waiting.at_ns(record.ended_at) / _NS), stream_level(record), stream_fields(record)
    if log_format == "json":
        return _json({"time": moment, "level": level, "message": STREAM_MESSAGE, **fields})
    told = " ".join(f"{name}={_console_value(value)}" for name, value in fields.items())
    return f"{moment} {level.upper()} {_LOGGER}: {STREAM_MESSAGE} {told}"


def process_line(record: logging.LogRecord, log_format: LogFormat) -> str:
    """The line of something that the process says of itself."""
    moment, level, message = _moment(record.created), record.levelname.lower(), record.getMessage()[:_MAX_TEXT]
    trouble = ""
    if record.exc_info and record.exc_info[1] is not None:
        trouble = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")[-_MAX_TEXT:]
    if log_format == "json":
        fields = {"time": moment, "level": level, "message": message, "logger": record.name}
        return _json({**fields, "exception": trouble} if trouble else fields)
    line = f"{moment} {level.upper()} {record.name}: {_escaped(message)}"
    return "\n".join([line, *map(_escaped, trouble.split("\n"))]) if trouble else line


def stream_fields(record: Record) -> dict[str, Any]:
    """What is known of a request, in the order it is told; see `names.LOG_FIELDS`."""
    trace, failure, usage = record.trace, record.failure, record.usage
    found: dict[str, Any] = {
        "stream": record.stream_id,
        "trace_id": trace.trace_id if trace is not None else None,
        "span_id": trace.server_id if trace is not None else None,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "outcome": record.outcome.value,
        "error": failure.code if failure is not None else None,
        "error_type": calls.error_type(record),
        "route": record.route,
        "upstream": record.upstream,
        "upstream_status": record.upstream_status,
        "attempts": record.attempts if record.attempts > 1 else None,
        "model": record.requested_model,
        "response_model": record.response_model,
        "format": record.format if record.is_stream else None,
        "duration_s": calls.between_s(record.received_at, record.ended_at),
        "ttft_s": calls.between_s(record.received_at, record.first_sent_at),
        "upstream_ttft_s": calls.between_s(record.sent_at, record.first_content_at),
        "queued_s": calls.queued_s(record),
        "overhead_s": _overhead(record),
        "max_gap_s": None if record.largest_gap_s is None else round(record.largest_gap_s, 6),
        "content_events": record.content_events or None,
        "finish_reasons": list(record.finish_reasons),
        "warnings": list(record.warnings),
    }
    if usage is not None:
        found["input_tokens"] = usage.input_tokens
        found["output_tokens"] = usage.output_tokens
        found["cached_input_tokens"] = usage.cached_input_tokens
        found["reasoning_tokens"] = usage.reasoning_tokens
    return {name: value for name, value in found.items() if value or value == 0}  # not None, "" or []


def _overhead(record: Record) -> float | None:
    """The sidecar's own share of the time to the first token: (t1−tb) + (t3−t2)."""
    before, after = calls.overhead_request_s(record), calls.overhead_first_token_s(record)
    return None if before is None or after is None else round(before + after, 6)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(fields: Mapping[str, Any]) -> str:
    try:
        return msgspec.json.encode(fields).decode()
    except UnicodeEncodeError:  # text of bytes that are no UTF-8
        return json.dumps(fields)


def _console_value(value: Any) -> str:
    """Bare where nothing in it could be taken for another field, else as JSON in ASCII, which no terminal obeys."""
    if not isinstance(value, str):
        if not isinstance(value, list):
            return str(value)
        value = ",".join(map(str, value))
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _escaped(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
