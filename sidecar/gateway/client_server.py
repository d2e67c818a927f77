"""All client connections of a process: made, counted, and looked through once a second.

Owns their number and who is cut for being late. Must not know what is asked on them, nor the sockets they come from.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from sidecar.gateway.connection import KEEPALIVE_TIMEOUT_S, ClientConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiohttp.web_request import BaseRequest

    from sidecar.gateway.connection import Handle
    from sidecar.settings import Connections

IDLE_GRACE_S: Final = 1.0
"""A connection that has waited for less is not closed to make room: its client may be about to ask."""

_READ_BUFFER_BYTES: Final = 16 * 1024


class ClientServer(web.Server):
    """Makes a `ClientConnection` for each accepted socket. ``limits`` may be replaced by others of another
    configuration; ``has_tls`` says that what is accepted has a handshake before it.

    Once ``most`` are open, ``when_full`` is called in that turn; ``when_room`` as soon as there are fewer again.
    """

    def __init__(
        self, handle: Handle, limits: Connections, *, max_field: int, max_header_bytes: int, has_tls: bool = False
    ) -> None:
        super().__init__(_never, handler_cancellation=False)
        self.limits = limits
        self.max_header_bytes = max_header_bytes
        self.open_count = 0
        """Sockets accepted and not yet closed, those within a TLS handshake among them."""
        self.is_crowded = False
        """Others wait for a place: whoever has been answered leaves."""
        self.is_closed = False
        self._has_tls = has_tls
        self._most: float = inf
        self._when_full: Callable[[], object] = _nothing
        self._when_room: Callable[[], object] = _nothing
        self._options: dict[str, Any] = {
            "loop": self._loop,
            "handle": handle,
            "keepalive_timeout": 0.0,  # a timer for each connection: ours are swept
            "tcp_keepalive": False,
            "access_log": None,
            "auto_decompress": False,
            "max_line_size": max_field,
            "max_field_size": max_field,
            "read_bufsize": _READ_BUFFER_BYTES,
        }

    def bound(self, most: int, when_full: Callable[[], object], when_room: Callable[[], object]) -> None:
        """No more than ``most`` from here on."""
        self._most = most
        self._when_full = when_full
        self._when_room = when_room

    @property
    def is_full(self) -> bool:
        """There is no place for another one."""
        return self.open_count >= self._most

    def __call__(self) -> Any:
        """What a socket that is being accepted belongs to."""
        self.open_count += 1
        if self.open_count >= self._most:
            self._when_full()
        return TlsArrival(self) if self._has_tls else self.connection()

    def connection(self) -> ClientConnection:
        """A connection that has been counted."""
        return ClientConnection(self, **self._options)

    def left(self) -> None:
        """A connection that was counted is gone; its descriptor is free by the next turn."""
        self.open_count -= 1
        if self.open_count == self._most - 1:
            self._when_room()

    def let_go(self) -> None:
        """The same, said by whatever thread found that an arrival is nobody's any more."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.left)

    def sweep(self, now: float) -> None:
        """Cut who is late; ``now`` is the loop's time."""
        for connection in [one for one in self._own() if one.due_at <= now]:
            connection.cut()

    def close_idle(self, most: int, now: float) -> int:
        """Close up to ``most`` connections that wait for a request, the longest waiting first. How many there were."""
        idle_since = now - IDLE_GRACE_S
        idle = [one for one in self._own() if one.due_at - KEEPALIVE_TIMEOUT_S <= idle_since and one.is_idle]
        for connection in sorted(idle, key=lambda one: one.due_at)[:most]:
            connection.force_close()
        return len(idle)

    def has_unsent(self) -> bool:
        """A client has yet to get bytes that are on this side, or a request of its own looked at."""
        return any(connection.has_unsent for connection in self._own())

    def pre_shutdown(self) -> None:
        """No handshake leads to a connection any more, and no connection to another request."""
        self.is_closed = True
        super().pre_shutdown()

    def _own(self) -> Iterable[ClientConnection]:
        return cast("Iterable[ClientConnection]", self._connections)


class TlsArrival(asyncio.Protocol):
    """Holds the place of a TLS client until its handshake is done.

    The loops tell nobody of a handshake that fails, but they let go of this, which is how its place becomes free. And
    who does not complete one costs no parser and no task.
    """

    __slots__ = ("_server",)

    def __init__(self, server: ClientServer) -> None:
        self._server: ClientServer | None = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done: from here on it is a connection like any other."""
        server = self._server
        own = cast("asyncio.Transport", transport)
        if server is None or server.is_closed:
            own.abort()
            return
        self._server = None
        connection = server.connection()
        own.set_protocol(connection)
        connection.connection_made(own)

    def __del__(self) -> None:
        if self._server is not None:
            self._server.let_go()


async def _never(request: BaseRequest) -> web.StreamResponse:
    """What aiohttp's server wants and `ClientConnection.start` does not use."""
    raise NotImplementedError


def _nothing() -> None:
    """Nobody is told."""
