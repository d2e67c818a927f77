"""Request bodies: read whole where something has to be known of them, streamed where not.

Owns the limits of reading, and the deadline where a body is streamed; one that is read whole has its connection's. Must
not know what a body means.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_exceptions import HTTPException
from aiohttp.web_protocol import RequestPayloadError

from sidecar.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from weakref import WeakMethod

    from sidecar.gateway.request import ClientRequest
    from sidecar.ports import Exchange
    from sidecar.streams import Streams

READ_TIMEOUT_S: Final = 60.0
"""How long a client may take between two pieces of a body that is streamed."""

_PIECE_BYTES: Final = 64 * 1024
"""How much of an upload is taken on at once; what aiohttp has read beyond it waits there, one read at most."""

_READ_WHOLE_TYPES: Final = frozenset({"", "application/x-www-form-urlencoded", "text/plain"})
"""What curl and careless clients send JSON as."""


def is_read_whole(request: ClientRequest, family: str) -> bool:
    """JSON on a stream route is read before the upstream is called: routing, retry and cancel need it."""
    content_type = request.headers.get("Content-Type", "").split(";", 1)[0].strip().lower()
    if content_type == "application/json" or content_type.endswith("+json"):
        return True
    return family != "problem" and content_type in _READ_WHOLE_TYPES


def refuse_declared_size(request: ClientRequest, max_body_bytes: int) -> None:
    """Before a byte is read or asked for. Raises Failure body_too_large."""
    declared = request.content_length
    if declared is not None and declared > max_body_bytes:
        raise _too_large(max_body_bytes)


def is_here(request: ClientRequest) -> bool:
    """All of the body came with the head, as it mostly does: there is nothing to wait for."""
    return request.content.is_eof() and request.content.exception() is None


def take_whole(request: ClientRequest, max_body_bytes: int) -> bytes:
    """A body that `is_here`. Raises Failure body_too_large."""
    body = request.content.read_nowait(-1)
    if len(body) > max_body_bytes:
        raise _too_large(max_body_bytes)
    return body


async def read_whole(request: ClientRequest, max_body_bytes: int, streams: Streams, max_buffered_bytes: int) -> bytes:
    """The request's body. Raises Failure body_too_large, bad_request (broken framing), request_timeout (as soon as its
    connection says so), or overloaded where the whole process comes to hold more than ``max_buffered_bytes``."""
    if is_here(request):
        return take_whole(request, max_body_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        while piece := await _framed(request.content.readany()):
            parts.append(piece)
            size += len(piece)
            streams.body_bytes += len(piece)
            if size > max_body_bytes:
                raise _too_large(max_body_bytes)
            if streams.buffered_bytes > max_buffered_bytes:
                raise overloaded()
    finally:
        streams.body_bytes -= size
    return b"".join(parts)


async def stream_body(
    request: ClientRequest,
    exchange: Exchange,
    max_body_bytes: int,
    idle_timeout_s: float,
    is_through: WeakMethod[Callable[[], None]],
) -> None:
    """Pass the body on piece by piece, no faster than the upstream takes it.

    Calls ``is_through`` in the turn of the last byte, since the answer may come in the next: weakly, or a failure of
    the upload would hold the stream that it ends.

    Raises as `read_whole` does, and idle_timeout for an upstream that takes nothing for ``idle_timeout_s``.
    """
    size = 0
    while piece := await _read_piece(request):
        size += len(piece)
        if size > max_body_bytes:
            raise _too_large(max_body_bytes)
        exchange.write_body(piece)
        if not exchange.is_writable:
            await _wait_writable(exchange, idle_timeout_s)
    exchange.end_body()
    if (tell := is_through()) is not None:
        tell()


async def _wait_writable(exchange: Exchange, idle_timeout_s: float) -> None:
    try:
        async with asyncio.timeout(idle_timeout_s):
            await exchange.wait_writable()
    except TimeoutError:
        raise Failure("idle_timeout", f"the upstream took nothing of the body for {idle_timeout_s:g} s") from None


async def _read_piece(request: ClientRequest) -> bytes:
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await _framed(request.content.read(_PIECE_BYTES))
    except TimeoutError:
        raise Failure("request_timeout", f"no more of the request's body came within {READ_TIMEOUT_S:g} s") from None


async def _framed(reading: Awaitable[bytes]) -> bytes:
    try:
        return await reading
    except (HttpProcessingError, RequestPayloadError, HTTPException):
        raise Failure("bad_request", "the request's body is not framed as HTTP/1.1 wants it") from None


def overloaded() -> Failure:
    """The process holds all it may."""
    return Failure("overloaded", "the sidecar holds as many bytes as it may; try again")


def _too_large(max_body_bytes: int) -> Failure:
    return Failure("body_too_large", f"the request's body is larger than {max_body_bytes} bytes")
