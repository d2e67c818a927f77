"""The connections to one upstream: which are idle, which are busy, and the dialling of new ones.

Owns their number and their age. Must not know what is sent on them. Used from one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sidecar.errors import Failure
from sidecar.settings import Limits, Upstream
from sidecar.upstream.connection import Connection
from sidecar.upstream.dial import Dialler
from sidecar.upstream.request import request_head
from sidecar.upstream.sockets import receive_buffer_for

MAX_HEADER_BYTES: Final = 256 * 1024
IDLE_LIMIT_S: Final = 4.0
"""Below the 5 s after which common servers (uvicorn, Node) close an idle connection."""

MAX_IDLE: Final = 512
STREAM_BUFFER_BYTES: Final = Limits().buffer_bytes


class UpstreamPool:
    """Connections to one configured upstream.

    ``environ`` is where HTTPS_PROXY and its like are read, once. Raises ValueError for a CA file that cannot be
    loaded or a proxy that cannot be used. ``absolute_form``: requests name the whole URL, for a plain HTTP proxy.
    ``stream_buffer_bytes`` is the smallest buffer of any stream that its answers go into.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        environ: Mapping[str, str],
        max_header_bytes: int = MAX_HEADER_BYTES,
        idle_limit_s: float = IDLE_LIMIT_S,
        max_idle: int = MAX_IDLE,
        stream_buffer_bytes: int = STREAM_BUFFER_BYTES,
    ) -> None:
        self._address = upstream.address
        self._dialler = Dialler(upstream, environ, receive_buffer_for(stream_buffer_bytes))
        self._max_header_bytes = max_header_bytes
        self._idle_limit_s = idle_limit_s
        self._max_idle = max_idle
        # A dict keeps order, so popitem() gives the youngest, and a dead one in the middle leaves at no cost.
        self._idle: dict[Connection, None] = {}
        self._busy: set[Connection] = set()
        self._is_closed = False
        self.absolute_form = self._dialler.is_absolute_form
        self._absolute_prefix = f"http://{upstream.authority}".encode() if self.absolute_form else b""

    @property
    def active(self) -> int:
        """Connections taken or dialled and not yet given back or gone."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """Connections that wait to be taken."""
        return len(self._idle)

    @property
    def addresses(self) -> list[dict[str, Any]]:
        """Each address, and how many connections it has, busy and idle."""
        return [{"address": str(self._address), "active": self.active, "idle": self.idle}]

    def request_head(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """`request_head` for this upstream: for a plain HTTP proxy in absolute form, with the proxy's credentials."""
        if self.absolute_form and self._dialler.proxy_headers:
            headers = [*headers, *self._dialler.proxy_headers]
        return request_head(method, target, headers, absolute_prefix=self._absolute_prefix)

    def take(self) -> Connection | None:
        """The youngest idle connection that is alive and quiet, or None. Send on it in the same turn of the loop."""
        if not self._idle:
            return None
        oldest = asyncio.get_running_loop().time() - self._idle_limit_s
        while self._idle:
            connection, _ = self._idle.popitem()
            self._busy.add(connection)
            if connection.idle_since >= oldest and connection.is_quiet:
                return connection
            connection.close()
        return None

    async def dial(self) -> Connection:
        """A new connection. Raises Failure: ``upstream_dns``, ``_refused``, ``_tls``, ``_reset``, ``_connect_timeout``.

        May be cancelled at any point; nothing stays open. ``Connection.close`` returns one that is not used after all.
        """
        if self._is_closed:
            raise self._lost_at_once()
        loop = asyncio.get_running_loop()
        connection = Connection(loop, self, self._max_header_bytes)
        self._busy.add(connection)
        try:
            await self._dialler.connect(connection, loop)
        except BaseException:
            connection.close()
            raise
        if connection.is_closing:
            connection.close()
            raise self._lost_at_once()
        return connection

    def _lost_at_once(self) -> Failure:
        if self._is_closed:
            return Failure("shutting_down", "the sidecar is shutting down")
        return Failure("upstream_reset", "the upstream closed the connection as soon as it was open")

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long; ``now`` is the loop's time."""
        oldest = now - self._idle_limit_s
        for connection in [one for one in self._idle if one.idle_since < oldest]:
            connection.close()

    def retire(self) -> None:
        """Nobody new comes here: idle connections are closed now, busy ones when they are given back."""
        self._max_idle = 0
        self.sweep(float("inf"))

    def close(self) -> None:
        """Drop every connection; running exchanges fail with ``shutting_down``."""
        self._is_closed = True
        for connection in [*self._idle, *self._busy]:
            connection.fail(Failure("shutting_down", "the sidecar is shutting down"))

    # What connections say of themselves

    def give_back(self, connection: Connection) -> None:
        """The connection may be used again."""
        self._busy.discard(connection)
        if self._is_closed or len(self._idle) >= self._max_idle:
            connection.close()
        else:
            self._idle[connection] = None

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)
