"""A request's account when it is over, and whoever is told of it.

Owns how a `Record` is made of a stream, or of a request that never came to be one, and that an observer's failing is
nobody else's. Must not know who observes, nor sockets; the time is passed in.

A record may wait in somebody's queue long after its stream: it holds nothing of the request or the answer, but for
names cut to a bound, unless content is to be kept.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from sidecar.deadlines import NEVER
from sidecar.dialects.recognition import dialect_of, dialect_of_path
from sidecar.errors import Failure, Outcome
from sidecar.events import Usage
from sidecar.record import NOBODY, Record
from sidecar.routing import mapped_model, sent_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.record import Observer, Trace
    from sidecar.settings import Route
    from sidecar.stream import Stream

MAX_NAME: Final = 256
"""Characters of what a client or an upstream calls something."""

_MAX_COUNTS: Final = 32

_THEIR_WORDS: Final = {
    "upstream_status": "the upstream rejected the request",
    "upstream_error": "the upstream said in its stream that it failed",
}
"""Instead of an upstream's own message, which may quote the request."""


class Guarded:
    """An observer as the data plane calls it: what it raises ends here, and ``report`` hears of the first."""

    __slots__ = ("_has_failed", "_observer", "_report")

    def __init__(self, observer: Observer, report: Callable[[Exception], None]) -> None:
        self._observer = observer
        self._report = report
        self._has_failed = False

    def started(self, headers: Mapping[str, str]) -> Trace | None:
        """A request with these headers has come: its place in a trace. `ended` or `stream_ended` follows, once."""
        try:
            self._observer.started()
            return self._observer.trace(headers)
        except Exception as error:  # noqa: BLE001 - whatever it is, no request is the worse for it
            self._failed(error)
            return None

    def stream_ended(self, stream: Stream) -> None:
        """A stream has its outcome."""
        if self._observer is NOBODY:
            return
        try:
            self._observer.ended(record_of(stream))
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error)

    def ended(self, record: Record) -> None:
        """A request is over that never came to be a stream."""
        try:
            self._observer.ended(record)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error)

    def turned(self, late_s: float) -> None:
        """The sweep has come, ``late_s`` after it was due."""
        try:
            self._observer.turned(late_s)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._report(error)


def record_of(stream: Stream) -> Record:
    """The account of a stream that has its outcome."""
    asked, session, route, upstream, answer = stream.asked, stream.session, stream.route, stream.upstream, stream.answer
    outcome = session.outcome or Outcome.INTERNAL
    start, finishes = session.start, session.finishes
    record = Record(
        stream_id=asked.stream_id,
        outcome=outcome,
        failure=_bare(session.failure),
        trace=asked.trace,
        method=asked.method,
        path=asked.path,
        scheme=asked.scheme,
        http_version=_version(asked.http_version),
        status=_status(stream),
        upstream_status=stream.upstream_status,
        route=route.name,
        route_path=route.match.path,
        dialect=_dialect(stream),
        format=stream.format,
        is_stream=asked.wants_stream or (answer is not None and answer.is_stream),
        attempts=stream.attempts,
        requested_model=asked.model[:MAX_NAME],
        finish_reasons=tuple([finishes[index].reason for index in sorted(finishes)]) if finishes else (),
        usage=_counts(session.usage),
        warnings=session.warnings,
        received_at=session.received_at,
        body_read_at=session.body_read_at,
        queued_s=session.queued_s,
        sent_at=session.sent_at,
        first_content_at=session.first_content_at,
        first_sent_at=session.first_sent_at,
        last_content_at=None if session.last_content_at == NEVER else session.last_content_at,
        ended_at=session.received_at if session.ended_at is None else session.ended_at,
        content_events=session.content_events,
        largest_gap_s=None if session.largest_gap_s < 0 else session.largest_gap_s,
    )
    if upstream is not None:
        address = upstream.address
        record.upstream = upstream.name
        record.server_address, record.server_port = address.path or address.host, address.port
        record.sent_model = (mapped_model(upstream, asked.model or None) or asked.model)[:MAX_NAME]
    if start is not None:
        record.response_id, record.response_model = start.response_id[:MAX_NAME], start.model[:MAX_NAME]
    if session.content is not None:
        record.content = session.content.content
    return record


def record_of_refused(
    *,
    stream_id: str,
    trace: Trace | None,
    method: str,
    path: str,
    scheme: str,
    version: tuple[int, int],
    route: Route | None,
    model: str,
    received_at: float,
    ended_at: float,
    outcome: Outcome,
    failure: Failure | None,
    status: int | None,
) -> Record:
    """The account of a request that ended before a stream was made of it."""
    return Record(
        stream_id=stream_id,
        outcome=outcome,
        failure=_bare(failure),
        trace=trace,
        method=method,
        path=path,
        scheme=scheme,
        http_version=_version(version),
        status=status,
        route="" if route is None else route.name,
        route_path="" if route is None else route.match.path,
        dialect=dialect_of_path(path) or "",
        requested_model=model[:MAX_NAME],
        received_at=received_at,
        ended_at=ended_at,
    )


def _status(stream: Stream) -> int | None:
    """What has been sent; or, with nothing sent to a client that is still there, what the door answers next."""
    session = stream.session
    if session.has_sent:
        return 200 if stream.is_open else stream.upstream_status
    if session.failure is None or session.outcome is Outcome.CLIENT_TOO_SLOW:
        return None
    return session.failure.http_status


def _dialect(stream: Stream) -> str:
    if stream.answer is not None and stream.answer.dialect is not None:
        return stream.answer.dialect.name
    if stream.upstream is None:
        return dialect_of_path(stream.asked.path) or ""
    path = sent_path(stream.route, stream.upstream, stream.asked.path)
    return dialect_of(path, stream.upstream.dialect) or ""


def _version(version: tuple[int, int]) -> str:
    return "1.1" if version == (1, 1) else f"{version[0]}.{version[1]}"


def _counts(usage: Usage | None) -> Usage | None:
    """With nothing of the provider's own object but its first counts: it may be of any size."""
    if usage is None or not isinstance(usage.native, dict):
        return usage
    native = {name[:MAX_NAME]: count for name, count in usage.native.items() if type(count) is int}
    if len(native) > _MAX_COUNTS:
        native = dict(islice(native.items(), _MAX_COUNTS))
    return Usage(
        usage.input_tokens,
        usage.output_tokens,
        usage.total_tokens,
        usage.cached_input_tokens,
        usage.reasoning_tokens,
        native,
    )


def _bare(failure: Failure | None) -> Failure | None:
    """Without its traceback, whose frames hold the request, and without the upstream's own words."""
    if failure is None:
        return None
    return Failure(
        failure.code,
        _THEIR_WORDS.get(failure.code) or failure.message[:MAX_NAME],
        upstream_status=failure.upstream_status,
        provider_code=failure.provider_code[:MAX_NAME],
        retryable=failure.retryable,
        retry_after=failure.retry_after[:MAX_NAME],
    )
