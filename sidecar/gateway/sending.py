"""A request on its way to a route's upstreams: composed for each, sent, tried again where that is safe.

Owns which failures lead to another try and what each upstream is sent. Must not know how answers are relayed: the
stream hears those by itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast
from weakref import WeakMethod

from sidecar.dialects.recognition import dialect_of
from sidecar.dialects.usage_on_request import REPORTS_ON_REQUEST, asking_for_usage
from sidecar.errors import Failure, Outcome
from sidecar.gateway.bodies import stream_body
from sidecar.routing import mapped_model, rewrite_model, sent_path, target_path

if TYPE_CHECKING:
    from sidecar.gateway.inquiry import Inquiry, Target
    from sidecar.ports import Exchange
    from sidecar.stream import Stream
    from sidecar.streams import Streams
    from sidecar.upstream import Connection

_WORTH_ANOTHER: Final = frozenset({Outcome.UPSTREAM_UNREACHABLE, Outcome.UPSTREAM_BROKEN, Outcome.TIMED_OUT})
"""How one upstream may fail, with nothing sent to the client, for the route's next one to be asked."""


async def serve(stream: Stream, inquiry: Inquiry, streams: Streams) -> None:
    """Ask the route's upstreams in order until one answers; returns when the stream has ended.

    Raises the Failure of the last one tried when nothing was sent to the client: the answer is the caller's then.
    """
    failure: Failure | None = None
    for name in stream.route.upstreams:
        target = inquiry.plan.targets[name]
        refusal = stream.turn_to(target.health)
        if refusal is not None:
            failure = refusal
            continue
        try:
            failure = await _try(stream, inquiry, target, streams)
        except Failure as own:
            failure = own
        if failure is None:
            return
        if failure.outcome not in _WORTH_ANOTHER or failure.code == "total_timeout" or inquiry.is_streamed:
            break
    assert failure is not None  # noqa: S101 - a route has at least one upstream
    stream.give_up(failure)
    raise failure


async def _try(stream: Stream, inquiry: Inquiry, target: Target, streams: Streams) -> Failure | None:
    """One upstream: on an idle connection if there is one, else on a fresh one, which a dead idle one leads to too."""
    if not stream.begin(target.upstream):
        return None
    # A body that is streamed through cannot be sent twice, so it never goes on a connection that may be dead.
    may_resend = not inquiry.is_streamed
    connection = target.pool.take() if may_resend else None
    while True:
        if connection is None:
            connection = await _dial(stream, target, inquiry.connection.task)
            if connection is None:
                return stream.failure
        exchange = _send(stream, inquiry, target, connection)
        if inquiry.is_streamed:
            await _upload(stream, inquiry, exchange, target, streams)
        await stream.settled
        if stream.failure is None or not stream.may_resend or not may_resend:
            return stream.failure
        if not stream.begin(target.upstream):
            return None
        connection = None


def _send(stream: Stream, inquiry: Inquiry, target: Target, connection: Connection) -> Exchange:
    """Put the request on the connection; a request that cannot be composed leaves no connection behind."""
    try:
        head, body, chunked = _compose(stream, inquiry, target)
    except BaseException:
        connection.close()
        raise
    method = stream.asked.method.encode()
    exchange = connection.send(stream, method=method, head=head, body=body, chunked_body=chunked)
    stream.sent(exchange, is_whole=body is not None)
    return exchange


class _Dialling:
    """What the stream calls off when nobody wants the connection any more: the waiting of the task that asked."""

    __slots__ = ("is_called_off", "task")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.is_called_off = False

    def cancel(self) -> bool:
        """Call it off, once."""
        if self.is_called_off:
            return False
        self.is_called_off = True
        return self.task.cancel()


async def _dial(stream: Stream, target: Target, task: asyncio.Task[None]) -> Connection | None:
    """A fresh connection; None when the stream ended or failed meanwhile."""
    dialling = _Dialling(task)
    stream.dialing(dialling)
    refusal: Failure | None = None
    try:
        connection = await target.pool.dial()
    except Failure as failure:
        refusal = failure
    except asyncio.CancelledError:
        if not dialling.is_called_off or dialling.task.uncancel():
            raise  # it was not, or not only, the stream that wanted no more
        return None  # the client left, or the process ends: the stream knows
    finally:
        is_wanted = stream.dialed()  # whatever came of it: a later word must not cancel this task
    if refusal is not None:
        stream.on_fail(refusal, may_resend=False)
        return None
    if not is_wanted:
        connection.close()
        return None
    return connection


async def _upload(stream: Stream, inquiry: Inquiry, exchange: Exchange, target: Target, streams: Streams) -> None:
    """Pass the body on beside the answer; returns when it is through or no longer matters."""
    if inquiry.request.headers.get("Expect", "").lower() == "100-continue":
        inquiry.connection.say_continue()
    limit, idle_s = stream.route.limits.max_body_bytes, target.upstream.timeouts.idle_s
    body = stream_body(inquiry.request, exchange, limit, idle_s, WeakMethod(stream.body_sent))
    task = streams.spawn(body, "upload")
    settled = cast("asyncio.Future[None]", stream.settled)
    await asyncio.wait({task, settled}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})  # it reads the body, and nobody else may until it has stopped
        return
    error = task.exception() if not task.cancelled() else None
    if isinstance(error, Failure):
        stream.fail(error)
    elif error is not None and not isinstance(error, OSError):
        stream.fail(Failure("internal", "the sidecar failed on this request's body"))
        raise error


def _compose(stream: Stream, inquiry: Inquiry, target: Target) -> tuple[bytes, bytes | None, bool]:
    """The head and body for one upstream, and whether the body goes in chunks. Raises Failure."""
    request = inquiry.request
    body = inquiry.held.body
    model = mapped_model(target.upstream, inquiry.model)
    if model is not None and body and inquiry.peek.model is not None:
        body = rewrite_model(body, model)
    asked = sent_path(stream.route, target.upstream, stream.asked.path)
    if body and stream.asked.adds_usage and dialect_of(asked, target.upstream.dialect) in REPORTS_ON_REQUEST:
        body = asking_for_usage(body)
    path = target_path(stream.route, target.upstream, inquiry.target, model)
    peer = inquiry.connection.peername
    path, headers = target.headers.request(
        request.raw_headers,
        path,
        credential=target.credential(),
        own_bearer_consumed=inquiry.bears_own_token,
        client_host=str(peer[0]) if isinstance(peer, tuple) else "",
        scheme=inquiry.scheme,
        trace=inquiry.trace,
    )
    chunked = False
    if body is None:
        chunked = request.content_length is None
        headers.append((b"Transfer-Encoding", b"chunked") if chunked else _length(request.content_length or 0))
    elif request.body_exists or request.method in {"POST", "PUT", "PATCH"}:
        headers.append(_length(len(body)))
    if body is not None:  # one that is streamed is for an upstream that wants no signature
        headers = target.signed(request.method, path, headers, body)
    return target.pool.request_head(request.method.encode(), path.encode(), headers), body, chunked


def _length(size: int) -> tuple[bytes, bytes]:
    return b"Content-Length", b"%d" % size
