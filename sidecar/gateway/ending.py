"""The end of a request of which no stream was made: told once, as every stream tells its own.

Owns what such an end is called. Must not know routes, answers or who is told.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.accounting import record_of_refused
from sidecar.errors import Failure, Outcome
from sidecar.routing import split_target

if TYPE_CHECKING:
    from sidecar.accounting import Guarded
    from sidecar.gateway.inquiry import Inquiry


def tell_ended(
    observer: Guarded, inquiry: Inquiry, now: float, failure: Failure | None = None, *, status: int | None
) -> None:
    """``inquiry`` is over: answered with ``status``; with None and no ``failure`` its client had left before that.
    Nothing is told where there is a stream, which tells by itself."""
    if inquiry.has_stream:
        return
    request = inquiry.request
    if failure is not None:
        outcome = failure.outcome
    else:
        outcome = Outcome.CLIENT_CANCELLED if status is None else Outcome.COMPLETED
    observer.ended(
        record_of_refused(
            stream_id=inquiry.stream_id,
            trace=inquiry.trace,
            method=request.method,
            path=split_target(inquiry.target)[0],
            scheme=inquiry.scheme,
            version=request.version,
            route=inquiry.route,
            model=inquiry.model or "",
            received_at=inquiry.received_at,
            ended_at=now,
            outcome=outcome,
            failure=failure,
            status=status,
        )
    )


def tell_broken_off(observer: Guarded, inquiry: Inquiry, now: float, error: BaseException) -> None:
    """``error`` ended the work on ``inquiry``: its client left, the process ends, or it is a bug of ours."""
    if isinstance(error, ConnectionError) or inquiry.connection.has_left:
        tell_ended(observer, inquiry, now, status=None)
    elif isinstance(error, asyncio.CancelledError):
        tell_ended(observer, inquiry, now, Failure("shutting_down", "the sidecar is shutting down"), status=None)
    else:
        tell_ended(observer, inquiry, now, Failure("internal", "the sidecar failed on this request"), status=500)
