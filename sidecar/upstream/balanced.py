"""The connections to an upstream whose name may lead to several addresses.

Owns when that name is looked up again, and that every connection is counted where it leads. Must not know how an
address is chosen (`endpoints`) or connected to (`dial`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sidecar.errors import Failure
from sidecar.settings import Address
from sidecar.upstream.connection import Connection
from sidecar.upstream.dial import is_dialled_by_name
from sidecar.upstream.endpoints import Endpoint, Endpoints
from sidecar.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sidecar.settings import Upstream
    from sidecar.upstream.endpoints import Place
    from sidecar.upstream.sockets import AddressInfo

LOOK_UP_INTERVAL_S: Final = 10.0
STALE_AFTER_S: Final = 3 * LOOK_UP_INTERVAL_S
"""An answer as old as this, of an upstream that was out of use, is not gone by before it has been asked for again."""


def pool_for(upstream: Upstream, *, environ: Mapping[str, str], **options: Any) -> UpstreamPool:
    """The pool that fits: behind a proxy, at a literal address or on a Unix socket there is nothing to choose."""
    kind = BalancedPool if is_dialled_by_name(upstream, environ) else UpstreamPool
    return kind(upstream, environ=environ, **options)


class BalancedPool(UpstreamPool):
    """An `UpstreamPool` that gives each stream the address with the fewest, as long as the name has several."""

    def __init__(self, upstream: Upstream, *, environ: Mapping[str, str], **options: Any) -> None:
        super().__init__(upstream, environ=environ, **options)
        self._name = upstream.name
        self._endpoints = Endpoints()
        self._at: dict[Connection, Endpoint] = {}
        self._is_in_use = False

    @property
    def idle(self) -> int:
        """Connections that wait to be taken."""
        return sum(len(endpoint.idle) for endpoint in self._endpoints.current)

    @property
    def addresses(self) -> list[dict[str, Any]]:
        """Each address, and how many connections it has, busy and idle."""
        return [
            {"address": ", ".join(map(_shown, one.places)), "active": one.active, "idle": len(one.idle)}
            for one in self._endpoints.all()
        ]

    def take(self) -> Connection | None:
        """The youngest idle connection to the address that is next, if it is alive and quiet. Else None."""
        self._is_in_use = True
        endpoints = self._endpoints
        if not endpoints.current:
            return None
        now = asyncio.get_running_loop().time()
        endpoint = endpoints.in_order(now)[0] if endpoints.are_several else endpoints.current[0]
        oldest = now - self._idle_limit_s
        while endpoint.idle:
            connection, _ = endpoint.idle.popitem()
            if connection.idle_since >= oldest and connection.is_quiet:
                self._busy.add(connection)
                endpoints.enter(endpoint)
                return connection
            connection.close()
        return None

    async def dial(self) -> Connection:
        """A new connection, to the address that is next or, where that one fails, to another. Raises as `UpstreamPool`
        does."""
        self._is_in_use = True
        if self._is_closed:
            raise self._lost_at_once()
        loop = asyncio.get_running_loop()
        connection = Connection(loop, self, self._max_header_bytes)
        self._busy.add(connection)
        try:
            await self._dialler.in_time(self._connect(connection, loop))
        except BaseException as error:
            endpoint = self._at.get(connection)
            if endpoint is not None and isinstance(error, Failure):
                endpoint.failed(loop.time())
            connection.close()
            raise
        if connection.is_closing:
            connection.close()
            raise self._lost_at_once()
        return connection

    async def keep_looked_up(self) -> None:
        """Look the name up again and again while it is in use; runs until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_UP_INTERVAL_S)
            if self._is_in_use:
                self._is_in_use = False
                await self.look_up()

    async def look_up(self) -> None:
        """Ask for the name's addresses. On failure those that were known are kept."""
        try:
            infos = await self._dialler.resolve()
        except Failure:
            return
        self._learn(infos)

    async def _connect(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        endpoints = self._endpoints
        if not endpoints.are_several or loop.time() - endpoints.learned_at > STALE_AFTER_S:
            try:
                self._learn(await self._dialler.resolve())
            except Failure:
                if not endpoints.are_several:
                    raise
        order = endpoints.in_order(loop.time())
        if not order:
            raise Failure("upstream_dns", f"upstream {self._name}: its name leads nowhere")
        self._enter(connection, order[0])
        try:
            sock = await self._dialler.open_socket([info for endpoint in order for info in endpoint.infos])
        except Failure:
            for endpoint in order[1:]:
                endpoint.failed(loop.time())  # the first one is whoever called's
            endpoints.learned_at = float("-inf")
            raise
        won = self._where(sock) or order[0]
        if won is not order[0]:
            for endpoint in order[: order.index(won)] if won in order else ():
                endpoint.failed(loop.time())
            self._endpoints.leave(self._at.pop(connection))
            self._enter(connection, won)
        await self._dialler.attach(sock, connection)
        won.connected()

    def _where(self, sock: socket.socket) -> Endpoint | None:
        with suppress(OSError):  # it was connected a moment ago; whether it still is shows by itself
            return self._endpoints.at(sock.getpeername()[:2])
        return None

    def _learn(self, infos: Sequence[AddressInfo]) -> None:
        if self._is_closed or not infos:
            return
        for endpoint in self._endpoints.learn(infos, asyncio.get_running_loop().time()):
            for connection in tuple(endpoint.idle):
                connection.close()

    def _enter(self, connection: Connection, endpoint: Endpoint) -> None:
        self._at[connection] = endpoint
        self._endpoints.enter(endpoint)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long; ``now`` is the loop's time."""
        oldest = now - self._idle_limit_s
        for connection in self._all_idle():
            if connection.idle_since < oldest:
                connection.close()

    def close(self) -> None:
        """Drop every connection; running exchanges fail with ``shutting_down``."""
        super().close()
        for connection in self._all_idle():
            connection.close()

    def _all_idle(self) -> list[Connection]:
        return [connection for endpoint in self._endpoints.all() for connection in endpoint.idle]

    # What connections say of themselves

    def give_back(self, connection: Connection) -> None:
        """The connection may be used again."""
        self._busy.discard(connection)
        endpoint = self._at[connection]
        self._endpoints.leave(endpoint)
        if self._is_closed or endpoint.is_gone or self.idle >= self._max_idle:
            connection.close()
        else:
            endpoint.idle[connection] = None

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        endpoint = self._at.pop(connection, None)
        if endpoint is not None:
            if connection in self._busy:
                self._endpoints.leave(endpoint)
            endpoint.idle.pop(connection, None)
        self._busy.discard(connection)


def _shown(place: Place) -> str:
    return str(Address(*place))
