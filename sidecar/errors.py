"""How streams end and what errors are called: the closed tables every other part reads.

Owns the outcomes, the error codes and the one `Failure` that carries them. Must not know sockets, formats
or telemetry; those look their own column up here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.events import Frame


class Outcome(Enum):
    """How a stream ended. Exactly one each, announced once."""

    __hash__ = object.__hash__  # members are singletons; Enum would hash their names, in Python, at every look-up

    COMPLETED = "completed"
    CLIENT_CANCELLED = "client_cancelled"
    CLIENT_TOO_SLOW = "client_too_slow"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_BROKEN = "upstream_broken"
    UPSTREAM_FAILED = "upstream_failed"
    TIMED_OUT = "timed_out"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    SHUT_DOWN = "shut_down"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Ending:
    """One row of the endings table: what typed clients and traces are told about an outcome."""

    done_status: str | None
    is_span_error: bool


ENDINGS: Final[dict[Outcome, Ending]] = {
    Outcome.COMPLETED: Ending("completed", is_span_error=False),
    Outcome.CLIENT_CANCELLED: Ending("cancelled", is_span_error=False),
    Outcome.CLIENT_TOO_SLOW: Ending("interrupted", is_span_error=False),
    Outcome.UPSTREAM_UNREACHABLE: Ending("failed", is_span_error=True),
    Outcome.UPSTREAM_REJECTED: Ending("failed", is_span_error=True),
    Outcome.UPSTREAM_BROKEN: Ending("failed", is_span_error=True),
    Outcome.UPSTREAM_FAILED: Ending("failed", is_span_error=True),
    Outcome.TIMED_OUT: Ending("timed_out", is_span_error=True),
    Outcome.REFUSED: Ending(None, is_span_error=False),
    Outcome.INTERRUPTED: Ending("interrupted", is_span_error=False),
    Outcome.SHUT_DOWN: Ending("interrupted", is_span_error=True),
    Outcome.INTERNAL: Ending("failed", is_span_error=True),
}


@dataclass(frozen=True, slots=True)
class Code:
    """One error code: the outcome it means, the HTTP status if nothing was sent, whether trying again may help."""

    outcome: Outcome
    http_status: int
    retryable: bool
    otel_error_type: str | None


CODES: Final[dict[str, Code]] = {
    "client_too_slow": Code(Outcome.CLIENT_TOO_SLOW, 408, retryable=True, otel_error_type=None),
    "upstream_dns": Code(Outcome.UPSTREAM_UNREACHABLE, 502, retryable=True, otel_error_type="connect_error"),
    "upstream_refused": Code(Outcome.UPSTREAM_UNREACHABLE, 502, retryable=True, otel_error_type="connect_error"),
    "upstream_tls": Code(Outcome.UPSTREAM_UNREACHABLE, 502, retryable=False, otel_error_type="connect_error"),
    "upstream_connect_timeout": Code(Outcome.UPSTREAM_UNREACHABLE, 504, retryable=True, otel_error_type="timeout"),
    "upstream_starting": Code(Outcome.UPSTREAM_UNREACHABLE, 503, retryable=True, otel_error_type="connect_error"),
    "upstream_unavailable": Code(Outcome.UPSTREAM_UNREACHABLE, 503, retryable=True, otel_error_type="connect_error"),
    "upstream_status": Code(Outcome.UPSTREAM_REJECTED, 502, retryable=False, otel_error_type=None),
    "upstream_reset": Code(Outcome.UPSTREAM_BROKEN, 502, retryable=True, otel_error_type="upstream_reset"),
    "upstream_truncated": Code(Outcome.UPSTREAM_BROKEN, 502, retryable=True, otel_error_type="truncated"),
    "upstream_not_http": Code(Outcome.UPSTREAM_BROKEN, 502, retryable=False, otel_error_type="parse_error"),
    "upstream_not_a_stream": Code(Outcome.UPSTREAM_BROKEN, 502, retryable=False, otel_error_type="parse_error"),
    "malformed_upstream": Code(Outcome.UPSTREAM_BROKEN, 502, retryable=False, otel_error_type="parse_error"),
    "frame_too_large": Code(Outcome.UPSTREAM_BROKEN, 502, retryable=False, otel_error_type="parse_error"),
    "upstream_error": Code(Outcome.UPSTREAM_FAILED, 502, retryable=False, otel_error_type=None),
    "first_token_timeout": Code(Outcome.TIMED_OUT, 504, retryable=True, otel_error_type="timeout"),
    "idle_timeout": Code(Outcome.TIMED_OUT, 504, retryable=True, otel_error_type="timeout"),
    "total_timeout": Code(Outcome.TIMED_OUT, 504, retryable=False, otel_error_type="timeout"),
    "overloaded": Code(Outcome.REFUSED, 503, retryable=True, otel_error_type="503"),
    "caller_limit": Code(Outcome.REFUSED, 429, retryable=True, otel_error_type="429"),
    "preempted": Code(Outcome.REFUSED, 503, retryable=True, otel_error_type="503"),
    "interrupted": Code(Outcome.INTERRUPTED, 503, retryable=True, otel_error_type=None),
    "shutting_down": Code(Outcome.SHUT_DOWN, 503, retryable=True, otel_error_type="shutting_down"),
    "internal": Code(Outcome.INTERNAL, 500, retryable=False, otel_error_type="_OTHER"),
    "route_not_found": Code(Outcome.REFUSED, 404, retryable=False, otel_error_type="404"),
    "model_missing": Code(Outcome.REFUSED, 400, retryable=False, otel_error_type="400"),
    "unknown_format": Code(Outcome.REFUSED, 400, retryable=False, otel_error_type="400"),
    "bad_request": Code(Outcome.REFUSED, 400, retryable=False, otel_error_type="400"),
    "unauthorized": Code(Outcome.REFUSED, 401, retryable=False, otel_error_type="401"),
    "forbidden_origin": Code(Outcome.REFUSED, 403, retryable=False, otel_error_type="403"),
    "request_timeout": Code(Outcome.REFUSED, 408, retryable=True, otel_error_type="408"),
    "body_too_large": Code(Outcome.REFUSED, 413, retryable=False, otel_error_type="413"),
    "headers_too_large": Code(Outcome.REFUSED, 431, retryable=False, otel_error_type="431"),
    "websocket_unsupported": Code(Outcome.REFUSED, 501, retryable=False, otel_error_type="501"),
}


class Failure(Exception):  # noqa: N818 - it is a value that is announced as often as it is raised
    """One thing that went wrong, named by its code.

    Attributes: ``code`` (a key of `CODES`), ``message`` (for people; never holds a secret or a byte of the request),
    ``upstream_status`` (the upstream's own HTTP status), ``native`` (the upstream's own words, parsed JSON or text),
    ``provider_code`` (the provider's own error code or type, "" where it gave none), ``retry_after`` (what the answer's
    header of that name says: the upstream's own word, or how long ours takes; "" for the usual second), ``policy`` (the
    limit of ours that was full: what it is about, and how many it allows).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        upstream_status: int | None = None,
        native: Any = None,
        provider_code: str = "",
        retryable: bool | None = None,
        retry_after: str = "",
        policy: tuple[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        row = CODES[code]
        self.code = code
        self.message = message
        self.upstream_status = upstream_status
        self.native = native
        self.provider_code = provider_code
        self.retry_after = retry_after
        self.policy = policy
        self.retryable = row.retryable if retryable is None else retryable

    @property
    def outcome(self) -> Outcome:
        """The row of the endings table this failure means."""
        return CODES[self.code].outcome

    @property
    def http_status(self) -> int:
        """The status to answer with if nothing has been sent yet."""
        if self.code == "upstream_status" and self.upstream_status is not None:
            return self.upstream_status
        return CODES[self.code].http_status


def failure_of(error: FrameTooLargeError | Failure, max_frame_bytes: int) -> Failure:
    """What ``error`` of feeding a body means for its stream."""
    if isinstance(error, Failure):
        return error
    return Failure("frame_too_large", f"the upstream sent a frame of more than {max_frame_bytes} bytes")


class FrameTooLargeError(Exception):
    """A frame grew beyond the framing's bound. Raised by `Framing.feed` in strict mode; the framing is then spent.

    ``frames`` are those that the same read had completed before it.
    """

    def __init__(self, frames: Sequence[Frame] = ()) -> None:
        super().__init__("a frame exceeds the bound")
        self.frames = frames
