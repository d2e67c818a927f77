"""A request on its way to a route's upstreams: composed for each, sent, tried again where that is safe.

Owns when connections are made for a try, and what each upstream is sent. Must not know whose turn it is, nor how
answers are relayed: the stream hears those by itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import TYPE_CHECKING, cast
from weakref import WeakMethod

from sidecar.answer import opening
from sidecar.contender import Contender, Contest
from sidecar.dialects.recognition import dialect_of
from sidecar.dialects.usage_on_request import REPORTS_ON_REQUEST, asking_for_usage
from sidecar.errors import Failure
from sidecar.fallback import Attempt, Attempts
from sidecar.gateway.bodies import stream_body
from sidecar.routing import mapped_model, rewrite_model, sent_path, target_path
from sidecar.stream import Stream

if TYPE_CHECKING:
    from sidecar.gateway.inquiry import Inquiry, Target
    from sidecar.ports import Exchange
    from sidecar.streams import Streams
    from sidecar.upstream import Connection

Sink = Stream | Contender
"""Who is told of an exchange: the stream itself, or a contender where the answer may yet be another's."""


async def serve(stream: Stream, inquiry: Inquiry, streams: Streams) -> None:
    """Ask the route's upstreams, as its settings say, until one answers; returns when the stream has ended.

    Raises the Failure of the last one tried when nothing was sent to the client: the answer is the caller's then.
    """
    plan, is_repeatable = inquiry.plan, not inquiry.is_streamed
    fallback = plan.fallbacks[stream.route.name]
    candidates = [plan.targets[name] for name in fallback.order()]
    wall_clock = time.time  # noqa: TID251 - an upstream may name a date before which it wants to be left alone
    attempts = Attempts(fallback, candidates, stream.permit, random.random, wall_clock, is_repeatable=is_repeatable)
    if stream.route.commit == "request" and is_repeatable:
        answer = opening(stream.asked, stream.route, candidates[0].upstream, stream.session)
        if answer is not None:
            stream.open(answer)
    try:
        failure = await _ask(stream, inquiry, attempts, streams)
    finally:
        attempts.close()
    if failure is None:
        return
    stream.give_up(failure)
    if not stream.is_open:
        raise failure
    await stream.settled


async def _ask(stream: Stream, inquiry: Inquiry, attempts: Attempts[Target], streams: Streams) -> Failure | None:
    """One attempt after the other. None when the stream has ended; else it is for the door to end it."""
    failure: Failure | None = None
    while (attempt := attempts.claim(stream.now())) is not None:
        try:
            failure = await _try(stream, inquiry, attempt, attempts, streams)
        except Failure as own:
            failure = own
        finally:
            attempt.dropped()
        if failure is None or not attempts.leads_on(failure):
            return failure
    return failure or attempts.refusal(stream.now())


async def _try(
    stream: Stream, inquiry: Inquiry, attempt: Attempt[Target], attempts: Attempts[Target], streams: Streams
) -> Failure | None:
    """One upstream: on an idle connection if there is one, else on a fresh one, which a dead idle one leads to too."""
    target, may_resend = attempt.target, not inquiry.is_streamed
    contest = Contest(stream, attempts) if _is_contested(stream, inquiry, attempts) else None
    if attempt.wait_s and not await _wait(stream, attempt, contest):
        return stream.failure
    is_fresh = not may_resend  # a body that is streamed through never goes on a connection that may be dead
    while stream.begin(target.upstream, attempt if contest is None else None, contest):
        sink: Sink = stream
        if contest is not None:
            sink = contest.enter(attempt)
            _plan_hedge(stream, inquiry, contest, attempts, streams)
        connection = None if is_fresh else target.pool.take()
        if connection is None:
            connection = await _dial(sink, target, inquiry.connection.task)
        if connection is not None:
            exchange = _send(sink, stream, inquiry, target, connection)
            if inquiry.is_streamed:
                await _upload(stream, inquiry, exchange, target, streams)
        await stream.settled
        if stream.failure is None or not stream.may_resend or is_fresh:
            return stream.failure
        is_fresh = True
    return None


def _is_contested(stream: Stream, inquiry: Inquiry, attempts: Attempts[Target]) -> bool:
    """Whether an upstream's head may yet be dropped for another's answer. Where not, nothing stands in the way."""
    if inquiry.is_streamed:
        return False
    route = stream.route
    if route.commit != "headers" and stream.asked.wants_stream:
        return True
    return attempts.left > 0 and bool(route.retry.statuses or route.retry.hedge_after_s)


async def _wait(stream: Stream, attempt: Attempt[Target], contest: Contest | None) -> bool:
    """Leave an upstream alone for a while before it is asked again. False where the stream wants nothing any more."""
    if not stream.begin(attempt.target.upstream, None, contest, tries=0):
        return False
    settled = cast("asyncio.Future[None]", stream.settled)
    await asyncio.wait({settled}, timeout=attempt.wait_s)
    return not settled.done()


def _plan_hedge(
    stream: Stream, inquiry: Inquiry, contest: Contest, attempts: Attempts[Target], streams: Streams
) -> None:
    """Another upstream is asked beside the one that is, where that takes too long."""
    after_s = stream.route.retry.hedge_after_s
    if after_s and attempts.left > 0:
        start = partial(_start_hedge, stream, inquiry, contest, attempts, streams)
        contest.timer = asyncio.get_running_loop().call_later(after_s, start)


def _start_hedge(
    stream: Stream, inquiry: Inquiry, contest: Contest, attempts: Attempts[Target], streams: Streams
) -> None:
    only = contest.only
    if only is None:
        return
    attempt = attempts.claim(stream.now(), beside=only.attempt.target)
    if attempt is not None:
        stream.attempts += 1
        streams.spawn(_hedge(stream, inquiry, attempt.target, contest.enter(attempt, is_beside=True)), "hedge")


async def _hedge(stream: Stream, inquiry: Inquiry, target: Target, contender: Contender) -> None:
    """Send the request to one more; what comes of it is heard by the stream."""
    if not contender.is_wanted:
        return  # another has answered, or the client left, in the turn in which this was begun
    try:
        connection = target.pool.take()
        if connection is None:
            connection = await _dial(contender, target, cast("asyncio.Task[None]", asyncio.current_task()))
        if connection is not None:
            _send(contender, stream, inquiry, target, connection)
    except Failure as failure:
        contender.on_fail(failure, may_resend=False)
    except Exception:
        stream.fail(Failure("internal", "the sidecar failed on this request"))
        raise


def _send(sink: Sink, stream: Stream, inquiry: Inquiry, target: Target, connection: Connection) -> Exchange:
    """Put the request on the connection; a request that cannot be composed leaves no connection behind."""
    try:
        head, body, chunked = _compose(stream, inquiry, target)
    except BaseException:
        connection.close()
        raise
    method = stream.asked.method.encode()
    exchange = connection.send(sink, method=method, head=head, body=body, chunked_body=chunked)
    sink.sent(exchange, is_whole=body is not None)
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


async def _dial(sink: Sink, target: Target, task: asyncio.Task[None]) -> Connection | None:
    """A fresh connection; None when the stream ended or failed meanwhile, or another upstream has answered."""
    dialling = _Dialling(task)
    sink.dialing(dialling)
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
        is_wanted = sink.dialed()  # whatever came of it: a later word must not cancel this task
    if refusal is not None:
        if is_wanted:
            sink.on_fail(refusal, may_resend=False)
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
