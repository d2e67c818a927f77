"""A bare aiohttp server that answers 503 at once: what no Python server can be much below.

Owns that program, which is run as a process of its own. Must not know what it is compared with.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import uvloop
from aiohttp import web

BACKLOG: Final = 4096
_BODY: Final = b'{"error":{"message":"busy","type":"server_error","code":"overloaded"}}'


async def refuse(request: web.BaseRequest) -> web.StreamResponse:
    """Read the body, as everybody has to who keeps the connection, and refuse."""
    await request.read()
    return web.Response(status=503, body=_BODY, content_type="application/json", headers={"Retry-After": "1"})


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """A GET shows that it is there; everything else is refused."""
    return web.Response(body=b"{}") if request.method == "GET" else await refuse(request)


async def serve(port: int) -> None:
    """Until the process is ended."""
    loop = asyncio.get_running_loop()
    server = web.Server(answer, access_log=None)
    await loop.create_server(server, "127.0.0.1", port, backlog=BACKLOG)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
