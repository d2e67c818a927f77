"""How one request is answered: what is asked for, at the pace and with the faults that are wanted.

Owns the order of an answer and where each fault strikes. Must not know how dialects write, or how bytes are sent.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from itertools import islice
from typing import Any, Final, Literal, NoReturn

from sidecar.simulator.connection import UPLOAD_PATH, Connection, Request
from sidecar.simulator.dialects import DIALECTS, LISTINGS, Answer, Dialect, to_json
from sidecar.simulator.faults import Behaviour, adjusted

_GARBAGE: Final = b"\x15\x03\x01\x00\x02\x02\x28 this is not HTTP\r\n\r\n"
_HTML: Final = b"<!doctype html><html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>\n"
_REPEATED_FRAMES: Final = 20
_BLOCK_BYTES: Final = 64 * 1024
_MIB: Final = 1024 * 1024

BodyFraming = Literal["chunked", "length", "close"]


class Body:
    """One answer's body on the wire: framed, compressed if wanted, and ended early where that is wanted."""

    def __init__(self, connection: Connection, framing: BodyFraming, behaviour: Behaviour, *, gzip: bool) -> None:
        self._connection = connection
        self._framing = framing
        self._behaviour = behaviour
        self._gzip = zlib.compressobj(wbits=31) if gzip else None
        self._sent_bytes = 0

    async def write(self, data: bytes) -> None:
        """Send ``data`` at once. Raises ConnectionEndedError where the answer is to be cut."""
        if self._gzip is not None and data:
            data = self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        await self._send(data)

    async def end(self) -> None:
        """Send what ends the body."""
        if self._gzip is not None:
            await self._send(self._gzip.flush())
        if self._framing == "chunked":
            await self._connection.send(b"0\r\n\r\n")

    async def _send(self, data: bytes) -> None:
        limits = (self._behaviour.cut_after_bytes, self._behaviour.reset_after_bytes)
        limit = min((bound for bound in limits if bound is not None), default=None)
        is_last = limit is not None and self._sent_bytes + len(data) >= limit
        if is_last and limit is not None:
            data = data[: limit - self._sent_bytes]
        self._sent_bytes += len(data)
        if data:
            is_chunk = self._framing == "chunked"
            await self._connection.send(b"%x\r\n%b\r\n" % (len(data), data) if is_chunk else data)
        if is_last:
            self._connection.cut(with_reset=limit == self._behaviour.reset_after_bytes)


async def answer(request: Request, connection: Connection, defaults: Behaviour) -> None:
    """Answer one request. Raises ConnectionEndedError where the answer is cut on purpose."""
    try:
        behaviour = adjusted(defaults, request.headers, request.query)
    except ValueError as error:
        message = to_json({"error": {"message": str(error), "type": "invalid_request_error"}})
        await _send_whole(request, connection, Behaviour(), 400, "application/json", message)
        return
    await asyncio.sleep(behaviour.slow_headers_ms / 1000)
    dialect = next((spoken for path, spoken in DIALECTS.items() if request.path.endswith(path)), None)
    if behaviour.garbage:
        await connection.send(_GARBAGE)
        connection.cut(with_reset=False)
    elif behaviour.html:
        await _send_whole(request, connection, behaviour, 200, "text/html; charset=utf-8", _HTML)
    elif behaviour.status != 200:
        rejection = (dialect or DIALECTS["/v1/chat/completions"]).rejection(behaviour.status)
        whole_type = dialect.whole_type if dialect else "application/json"
        await _send_whole(request, connection, behaviour, behaviour.status, whole_type, rejection)
    elif dialect is not None:
        await _generate(request, connection, behaviour, dialect)
    else:
        await _answer_plainly(request, connection, behaviour)


async def _generate(request: Request, connection: Connection, behaviour: Behaviour, dialect: Dialect) -> None:
    try:
        asked: Any = json.loads(request.body or b"{}")
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        await _send_whole(request, connection, behaviour, 400, dialect.whole_type, dialect.rejection(400))
    elif dialect.wants_stream(asked):
        await _send_stream(request, connection, behaviour, dialect.streamed(asked))
    else:
        await asyncio.sleep((behaviour.first_token_delay_ms + behaviour.tokens * behaviour.interval_ms) / 1000)
        whole = dialect.whole(asked, behaviour.tokens)
        await _send_whole(request, connection, behaviour, 200, dialect.whole_type, whole)


async def _answer_plainly(request: Request, connection: Connection, behaviour: Behaviour) -> None:
    status = 200
    listing = next((body for path, body in LISTINGS.items() if request.path.endswith(path)), None)
    if listing is not None:
        body = listing
    elif request.path == UPLOAD_PATH:
        body = to_json({"bytes": request.body_bytes, "sha256": request.body_sha256})
    else:
        status = 404
        body = to_json({"error": {"message": "the simulator has nothing here", "type": "invalid_request_error"}})
    await _send_whole(request, connection, behaviour, status, "application/json", body)


async def _send_whole(
    request: Request, connection: Connection, behaviour: Behaviour, status: int, content_type: str, content: bytes
) -> None:
    headers = {"Content-Type": content_type, "Content-Length": str(len(content))}
    if status in {429, 503, 529}:
        headers["Retry-After"] = "1"
    await connection.send_head(status, headers)
    if request.method != "HEAD":
        await Body(connection, "length", behaviour, gzip=False).write(content)


async def _send_stream(request: Request, connection: Connection, behaviour: Behaviour, said: Answer) -> None:
    framing: BodyFraming = "close" if behaviour.close_delimited or request.is_http_10 else "chunked"
    headers = {"Content-Type": said.content_type, "Cache-Control": "no-cache"}
    if framing == "chunked":
        headers["Transfer-Encoding"] = "chunked"
    else:
        connection.keeps_alive = False
    if behaviour.gzip:
        headers["Content-Encoding"] = "gzip"
    await connection.send_head(200, headers)
    body = Body(connection, framing, behaviour, gzip=behaviour.gzip)
    await body.write(said.opening)
    await asyncio.sleep(behaviour.first_token_delay_ms / 1000)
    sent = await (_send_repeated if behaviour.repeat_mib else _send_paced)(body, behaviour, said)
    if sent is not None:
        finish, terminator = said.closing(sent)
        await body.write(finish if behaviour.no_done else finish + terminator)
    await body.end()


async def _send_paced(body: Body, behaviour: Behaviour, said: Answer) -> int | None:
    """Content frames sent, or None where an error event ended the answer."""
    clock = asyncio.get_running_loop().time
    due = clock()
    frames = said.contents(behaviour.tokens, behaviour.huge_frame_bytes)
    number = 0
    while True:
        if number == behaviour.malformed_frame_at:
            await body.write(said.malformed)
        if number == behaviour.error_event_at:
            await body.write(said.error)
            return None
        if number == behaviour.stall_after_tokens:
            await _stall()
        frame = next(frames, None)
        if frame is None:
            return number
        await body.write(frame)
        number += 1
        due += behaviour.interval_ms / 1000
        # Also at no interval at all: every frame is a turn of the loop, in which a departure is noticed.
        await asyncio.sleep(max(0.0, due - clock()))


async def _send_repeated(body: Body, behaviour: Behaviour, said: Answer) -> int:
    """Content frames sent."""
    frames = list(islice(said.contents(_REPEATED_FRAMES, behaviour.huge_frame_bytes), _REPEATED_FRAMES))
    once = b"".join(frames)
    repeats = max(1, _BLOCK_BYTES // len(once))
    block = once * repeats
    blocks = -(-behaviour.repeat_mib * _MIB // len(block))
    for _ in range(blocks):
        await body.write(block)
        await asyncio.sleep(0)
    return blocks * repeats * len(frames)


async def _stall() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nothing ends a stall but the end of its connection")
