"""From a client's request to its answer: check, read, route, send upstream, wait.

Owns the order of those steps and our own HTTP answers. Must not know codecs or sockets; once a request is on its
way, the stream does the work and this only waits for it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from sidecar.admission import LOOK_INTERVAL_S, Permit
from sidecar.answer import Asked, own_answer
from sidecar.dialects.recognition import streams_by_target
from sidecar.drain import DOINGS, State
from sidecar.errors import Failure
from sidecar.formats import FORMATS
from sidecar.formats.problems import family_of, limit_headers, problem, problem_headers
from sidecar.gateway.bodies import is_here, is_read_whole, overloaded, read_whole, refuse_declared_size, take_whole
from sidecar.gateway.ending import tell_broken_off, tell_ended
from sidecar.gateway.inquiry import Inquiry
from sidecar.gateway.pacing import Pace
from sidecar.gateway.sending import serve
from sidecar.headers import cors_headers, is_preflight, preflight_headers
from sidecar.held_request import HeldRequest
from sidecar.routing import model_from_path, peek_body, safe_path, sent_path, split_target
from sidecar.secrets import SecretUnreadableError
from sidecar.session import UpstreamState
from sidecar.subscribers import HttpSubscriber

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.admission import Admission
    from sidecar.gateway.caller import CallerNames
    from sidecar.gateway.connection import ClientConnection
    from sidecar.gateway.plan import Plan
    from sidecar.gateway.request import ClientRequest
    from sidecar.headers import Headers
    from sidecar.secrets import Secret
    from sidecar.settings import Route
    from sidecar.stream import Stream
    from sidecar.streams import Streams
    from sidecar.waiting_line import Waiting

_RETRY_AFTER_S: Final = 1
_CHANCE_BYTES: Final = 10
_CHANCES_FETCHED: Final = 256
_NO_GENERATION: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class StreamIds:
    """Makes stream ids: 32 hex digits that sort by time, 48 bits of milliseconds and 80 bits of chance.

    The system's randomness is fetched in large pieces, each byte used once: a call for every id costs more than the id.
    """

    def __init__(self) -> None:
        self._chance = b""
        self._used = 0

    def next(self, wall_clock_s: float) -> str:
        """An id nobody can guess and no other stream has."""
        if self._used == len(self._chance):
            self._chance, self._used = os.urandom(_CHANCE_BYTES * _CHANCES_FETCHED), 0
        start = self._used
        self._used = end = start + _CHANCE_BYTES
        return (int(wall_clock_s * 1000).to_bytes(6, "big") + self._chance[start:end]).hex()


class Gateway:
    """Answers every request of the traffic port. ``clock`` is monotonic, ``wall_clock`` counts from 1970; seconds."""

    def __init__(
        self,
        plan: Plan,
        streams: Streams,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        admission: Admission,
        callers: CallerNames,
    ) -> None:
        self.plan = plan
        """What requests that begin now go by; those that run keep theirs."""
        self.doing = DOINGS[State.SERVING]
        """What the process's leave means for requests."""
        self.active = 0
        """Requests under way."""
        self._streams = streams
        self._observer = streams.observer
        self._clock = clock
        self._wall_clock = wall_clock
        self._loop = asyncio.get_running_loop()
        self._stream_ids = StreamIds()
        self._admission = admission
        self._callers = callers
        self._is_looking = False
        self._pace = Pace(self._loop)

    async def handle(self, request: ClientRequest, connection: ClientConnection) -> bool:
        """One request to its end. Whether its connection may carry another."""
        received_at = self._clock()
        target = request.target
        plan = self.plan
        cors = plan.settings.cors
        inquiry = Inquiry(
            HeldRequest(head=request),
            connection,
            self._stream_ids.next(self._wall_clock()),
            received_at,
            target,
            family_of(split_target(target)[0]),
            plan,
            extra_headers=cors_headers(cors, request.headers.get("Origin")) if cors.origins else [],
            trace=self._observer.started(request.headers),
        )
        del request  # a frame that waits as long as a stream lasts must not keep what the stream has let go
        self.active += 1
        try:
            return await self._answer(inquiry)
        except Failure as failure:
            return self._refuse(inquiry, failure)
        except ConnectionError as error:
            tell_broken_off(self._observer, inquiry, self._clock(), error)
            return False  # the client left in the middle of its body: there is nobody to answer
        except BaseException as error:
            tell_broken_off(self._observer, inquiry, self._clock(), error)
            raise
        finally:
            self.active -= 1

    async def _answer(self, inquiry: Inquiry) -> bool:
        request, plan = inquiry.request, inquiry.plan
        if plan.settings.cors.origins and is_preflight(request.method, request.headers):
            return self._preflight(inquiry)
        self._check(request, plan)
        path = safe_path(split_target(inquiry.target)[0])
        host = request.headers.get("Host", "")
        needs_model = plan.router.needs_model(path, host, request.headers)
        inquiry.model = model_from_path(inquiry.target)
        if request.body_exists:
            if not needs_model and not is_read_whole(request, inquiry.family):
                inquiry.held.body = None
            elif is_here(request):
                self._take_body(inquiry, take_whole(request, plan.max_body_bytes))
            else:
                if plan.is_limited and not needs_model:
                    self._refuse_early(inquiry, plan.router.match(path, host, request.headers, inquiry.model))
                await self._read_whole(inquiry)
        route = inquiry.route = plan.router.match(path, host, request.headers, inquiry.model)
        if inquiry.is_streamed and any(plan.targets[name].signer is not None for name in route.upstreams):
            await self._read_whole(inquiry)  # a signature covers every byte
        limit = route.limits.max_body_bytes
        if max(request.content_length or 0, inquiry.held.held_bytes) > limit:
            raise Failure("body_too_large", f"the request's body is larger than {limit} bytes")
        stream = self._open(inquiry, route, path, self._format(request, route))
        del request  # as in `handle`
        return await self._serve(stream, inquiry)

    async def _serve(self, stream: Stream, inquiry: Inquiry) -> bool:
        """The stream from here to its end. Whether its connection may carry another request."""
        try:
            if stream.session.upstream is UpstreamState.QUEUED:
                await self._wait_for_place(stream)
            elif inquiry.plan.is_limited and (turn := self._pace.turn()) is not None:
                await turn
                self._raise_failure(stream)
            if stream.session.outcome is None:  # else its client left while it waited
                await serve(stream, inquiry, self._streams)
        except asyncio.CancelledError:
            stream.client_gone()
            raise
        except Exception as error:
            if not isinstance(error, Failure):
                stream.crash()
            if stream.session.has_sent:
                return False  # a second answer in the middle of the first would be read as its body
            raise
        finally:
            inquiry.connection.unlisten()
        return stream.keep_alive

    def _check(self, request: ClientRequest, plan: Plan) -> None:
        """What is refused before a byte of the body is read. Raises Failure."""
        if self.doing.refuses:
            raise _shutting_down()
        if sum([len(name) + len(value) for name, value in request.raw_headers]) > plan.settings.max_header_bytes:
            raise Failure("headers_too_large", "the request's header block is too large")
        if "websocket" in request.headers.get("Upgrade", "").lower():
            raise Failure("websocket_unsupported", "no route takes WebSocket upgrades")
        if request.method == "CONNECT":
            raise Failure("bad_request", "this is no forward proxy")
        if plan.auth is not None and not self._is_authorized(request, plan.auth):
            raise Failure("unauthorized", "a valid bearer token is required")
        if self._streams.buffered_bytes > plan.settings.max_buffered_bytes:
            raise overloaded()

    def _is_authorized(self, request: ClientRequest, auth: Secret) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            return scheme.lower() == "bearer" and auth.matches(token.strip())
        except SecretUnreadableError as error:
            raise Failure("internal", f"the traffic port's token: {error}") from None

    async def _read_whole(self, inquiry: Inquiry) -> None:
        request, plan = inquiry.request, inquiry.plan
        refuse_declared_size(request, plan.max_body_bytes)
        if "Expect" in request.headers and request.headers["Expect"].lower() == "100-continue":
            inquiry.connection.say_continue()
        inquiry.connection.await_body()
        body = await read_whole(request, plan.max_body_bytes, self._streams, plan.settings.max_buffered_bytes)
        self._take_body(inquiry, body)

    def _take_body(self, inquiry: Inquiry, body: bytes) -> None:
        """The whole body is here: what it says of routing is read, and the connection is done with it."""
        inquiry.held.body = body
        inquiry.connection.body_taken()
        inquiry.peek = peek_body(body)
        inquiry.model = inquiry.model or inquiry.peek.model

    def _format(self, request: ClientRequest, route: Route) -> str:
        name = request.headers.get("X-Stream-Format", route.format)
        if name not in FORMATS:
            raise Failure("unknown_format", f"the known stream formats are: {', '.join(sorted(FORMATS))}")
        return name

    def _open(self, inquiry: Inquiry, route: Route, path: str, format_name: str) -> Stream:
        """Register the stream and let it hear of its client from here on."""
        request, connection = inquiry.request, inquiry.connection
        if self.doing.ends_streams:
            raise _shutting_down()  # its head came in time, its body did not
        wants_stream = inquiry.peek.stream
        if wants_stream is None:
            sent = sent_path(route, inquiry.plan.targets[route.upstreams[0]].upstream, path)
            query = split_target(inquiry.target)[1]
            wants_stream = streams_by_target(sent, query) or "text/event-stream" in request.headers.get("Accept", "")
        asked = Asked(
            inquiry.stream_id,
            request.method,
            path,
            request.version,
            request.keep_alive and self.doing.keeps,
            format_name,
            wants_stream,
            inquiry.model or "",
            int(self._wall_clock()),
            tuple(inquiry.extra_headers),
            adds_usage=route.usage == "request" and bool(inquiry.peek.stream) and not inquiry.peek.includes_usage,
            scheme=inquiry.scheme,
            trace=inquiry.trace,
        )
        if connection.transport is None:
            raise ConnectionResetError
        subscriber = HttpSubscriber(connection.transport, self._loop.call_soon, is_ready=not connection.writing_paused)
        place = self._place(inquiry, route)
        try:
            stream = self._streams.open(asked, route, subscriber, inquiry.received_at)
        except BaseException:
            if place is not None:
                place.release()
            raise
        inquiry.has_stream = True
        if isinstance(place, Permit):
            stream.take_place(place)
        elif place is not None:
            stream.wait_for_place(place)
        if not inquiry.is_streamed:
            stream.session.body_read_at = self._clock()
        stream.hold(inquiry.held)
        connection.listen(stream, subscriber)
        return stream

    def _place(self, inquiry: Inquiry, route: Route) -> Permit | Waiting | None:
        """The right to run, or a place in the line; None where nothing is limited. Raises Failure where there is
        neither."""
        terms = inquiry.plan.terms[route.name]
        request = inquiry.request
        if terms is None or request.method in _NO_GENERATION:
            return None
        if not terms.has_caller_limit:
            return self._admission.admit(terms)
        name = self._callers.name_of(request.headers, inquiry.plan.settings.callers.header)
        return self._admission.admit(terms, terms.callers(name))

    def _refuse_early(self, inquiry: Inquiry, route: Route) -> None:
        """Spare a client the sending of a body that is refused in any case. Raises Failure."""
        terms = inquiry.plan.terms[route.name]
        if terms is not None and inquiry.request.method not in _NO_GENERATION:
            self._admission.check(terms)

    async def _wait_for_place(self, stream: Stream) -> None:
        """Returns when the stream has a place or has ended. Raises the Failure of one that gets none."""
        if not self._is_looking:
            self._is_looking = True
            self._streams.repeat(LOOK_INTERVAL_S, self._look)
        await stream.settled
        self._raise_failure(stream)

    def _raise_failure(self, stream: Stream) -> None:
        """What befell a stream before it was sent anywhere is for the door to tell."""
        if stream.failure is not None and stream.session.outcome is None:
            stream.give_up(stream.failure)
            raise stream.failure

    def _look(self) -> bool:
        self._is_looking = self._admission.look()
        return self._is_looking

    def _preflight(self, inquiry: Inquiry) -> bool:
        headers = inquiry.request.headers
        allowed = preflight_headers(
            inquiry.plan.settings.cors,
            headers.get("Origin", ""),
            headers.get("Access-Control-Request-Method", ""),
            headers.get("Access-Control-Request-Headers"),
        )
        return self._send(inquiry, 204, allowed, b"")

    def _refuse(self, inquiry: Inquiry, failure: Failure) -> bool:
        """An HTTP error in the shape of the path's dialect; nothing of the request is in it."""
        content_type, body = problem(inquiry.family, failure, inquiry.stream_id)
        headers = [
            (b"Content-Type", content_type.encode()),
            *problem_headers(inquiry.family, failure),
            (b"Cache-Control", b"no-store"),
            (b"X-Stream-Id", inquiry.stream_id.encode()),
            *inquiry.extra_headers,
        ]
        status = failure.http_status
        if failure.retry_after:
            headers.append((b"Retry-After", failure.retry_after.encode("latin-1")))
        elif status in {429, 503} and failure.upstream_status is None:
            headers.append((b"Retry-After", b"%d" % _RETRY_AFTER_S))
        elif status == 401 and failure.code == "unauthorized":
            headers.append((b"WWW-Authenticate", b"Bearer"))
        if failure.policy is not None:
            headers += limit_headers(failure)
        return self._send(inquiry, status, headers, body, failure)

    def _send(
        self, inquiry: Inquiry, status: int, headers: Headers, body: bytes, failure: Failure | None = None
    ) -> bool:
        """One whole answer of our own; the connection is kept only where nothing of the request is left unread."""
        request, transport = inquiry.request, inquiry.connection.transport
        if transport is None or transport.is_closing():
            tell_ended(self._observer, inquiry, self._clock(), status=None)
            return False
        content = request.content
        is_read = content.is_eof() and content.exception() is None
        keep_alive = request.keep_alive and is_read and not inquiry.connection.is_upgrading and self.doing.keeps
        if request.method == "HEAD" or status == 204:
            if status != 204:
                headers = [*headers, (b"Content-Length", b"%d" % len(body))]
            body = b""
        transport.write(own_answer(request.version, status, headers, body, keep_alive=keep_alive))
        tell_ended(self._observer, inquiry, self._clock(), failure, status=status)
        return keep_alive


def _shutting_down() -> Failure:
    return Failure("shutting_down", "the sidecar is shutting down")
