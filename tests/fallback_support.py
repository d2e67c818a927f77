"""What the tests of fallback share: upstreams that fail in every way, and one that answers well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sidecar.settings import Address
from tests.app_support import LAST_CHUNK, SSE_HEAD, chunk, openai_frames, plain, stream
from tests.upstream_support import Peer, Server, serving, turns

ROLE = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
ERROR = b'data: {"error":{"message":"too busy","type":"overloaded_error","code":529}}\n\n'
GOOD_FRAMES = openai_frames("Hel", "lo")
GOOD = b"".join(stream(GOOD_FRAMES))
GOOD_BODY = b"".join(GOOD_FRAMES)
HTML = plain(b"<html>busy</html>", headers=[("Content-Type", "text/html")])
BUSY = plain(b'{"error":{"message":"busy"}}', "503 Busy")

Act = Callable[[Peer], None]


def says(*pieces: bytes, then: str = "end") -> Act:
    """Send these, then end, reset or stay silent."""

    def act(peer: Peer) -> None:
        for piece in pieces:
            peer.send(piece)
        if then == "end":
            peer.end()
        elif then == "reset":
            peer.reset()

    return act


BEFORE_HEAD: dict[str, Act] = {
    "nothing": says(),
    "reset": says(then="reset"),
    "garbage": says(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "half_a_head": says(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "silence": says(then="silence"),
    "html": says(HTML),
    "status": says(BUSY),
}
BEFORE_CONTENT: dict[str, Act] = {
    "no_body": says(SSE_HEAD),
    "cut_behind_role": says(SSE_HEAD, chunk(ROLE)),
    "clean_end_behind_role": says(SSE_HEAD, chunk(ROLE), LAST_CHUNK),
    "error_event": says(SSE_HEAD, chunk(ERROR), LAST_CHUNK),
    "error_behind_role": says(SSE_HEAD, chunk(ROLE), chunk(ERROR), chunk(b"data: [DONE]\n\n"), LAST_CHUNK),
    "error_in_one_read": says(SSE_HEAD + chunk(ROLE) + chunk(ERROR) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK),
    "pings_only": says(SSE_HEAD, chunk(b": ping\n\n"), then="silence"),
    "half_a_frame": says(SSE_HEAD, chunk(b'data: {"choices"')),
    "clean_end_in_a_frame": says(SSE_HEAD, chunk(b'data: {"choices"'), LAST_CHUNK),
    "clean_end_behind_garbage": says(SSE_HEAD, chunk(b'data: {"choices": [nonsense\n'), LAST_CHUNK),
}


def _length(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")), 0)


async def _more(peer: Peer, length: int) -> None:
    await peer.until(lambda: len(peer.data) >= length)


@dataclass
class Acting:
    """An upstream that does the same with every request; how many it was sent, and their bytes."""

    server: Server
    requests: list[bytes] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return self.server.address

    @property
    def open_now(self) -> int:
        """Connections it has that are still open."""
        return sum(not peer.is_lost for peer in self.server.peers)


@asynccontextmanager
async def acting(act: Act) -> AsyncIterator[Acting]:
    """An upstream that does this with each request of each connection."""

    async def talk(peer: Peer, upstream: Acting) -> None:
        while True:
            head = await peer.request()
            length = _length(head)
            await _more(peer, length)
            upstream.requests.append(head + bytes(peer.data[:length]))
            del peer.data[:length]
            act(peer)

    async def accept(upstream: Acting) -> None:
        number = 0
        async with asyncio.TaskGroup() as group:
            while True:
                peer = await upstream.server.peer(number)
                number += 1
                group.create_task(talk(peer, upstream))

    async with serving() as server:
        upstream = Acting(server)
        task = asyncio.get_running_loop().create_task(accept(upstream))
        try:
            yield upstream
        finally:
            task.cancel()
            await turns(3)


@asynccontextmanager
async def nobody() -> AsyncIterator[Address]:
    """An address where nobody listens."""
    async with serving() as closed:
        address = closed.address
    await turns(3)
    yield address
