"""Taking clients in, as many as there is room for.

Owns when the traffic port accepts. At the limit it stops before the descriptors run out, and clients wait in the
kernel's backlog until others have left. Must not know what is served, nor how the socket was bound.
"""

from __future__ import annotations

import logging
import socket
import struct
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable, Coroutine

    from sidecar.gateway import ClientServer

    Spawn = Callable[[Coroutine[Any, Any, None], str], object]

logger = logging.getLogger("sidecar.app")

LISTEN_BACKLOG: Final = 4096
TLS_HANDSHAKE_TIMEOUT_S: Final = 10.0
TLS_GOODBYE_TIMEOUT_S: Final = 5.0
"""How long a client may take to answer that a TLS connection ends."""

_BACKLOG_LIMIT: Final = Path("/proc/sys/net/core/somaxconn")
_TCP_INFO_QUEUED: Final = struct.Struct("@24xI")  # tcpi_unacked, which of a listening socket is its accept queue
_WAITING_UNKNOWN: Final = 16
_LOOK_INTERVAL_S: Final = 0.25
"""How often idle connections are looked for at most, where the last look found none."""
_TELL_INTERVAL_S: Final = 60.0


class Gate(Enum):
    """Whether clients are taken in."""

    SHUT = "shut"
    """Not yet, or not any more."""
    OPEN = "open"
    FULL = "full"
    """No place is free, and nobody is known to wait for one."""
    CROWDED = "crowded"
    """No place is free, and somebody waits."""


class Signal(Enum):
    """What changes that."""

    STARTED = "started"
    FILLED = "filled"
    KNOCKED = "knocked"
    ROOM = "room"
    STOPPED = "stopped"


GATE_MOVES: Final[dict[Gate, dict[Signal, Gate]]] = {
    Gate.SHUT: {Signal.STARTED: Gate.OPEN, Signal.STOPPED: Gate.SHUT},
    Gate.OPEN: {Signal.FILLED: Gate.FULL, Signal.STOPPED: Gate.SHUT},
    Gate.FULL: {Signal.KNOCKED: Gate.CROWDED, Signal.ROOM: Gate.OPEN, Signal.STOPPED: Gate.SHUT},
    Gate.CROWDED: {Signal.ROOM: Gate.OPEN, Signal.STOPPED: Gate.SHUT},
}
"""Every legal move."""


class Accepting:
    """Feeds ``clients`` from ``listener``, which it owns, up to ``most`` connections at a time.

    uvloop's server cannot pause, and at the descriptor limit libuv takes clients in only to drop them. So a server gets
    a copy of the listening socket; to pause, it is closed, while the kernel goes on queueing at the original; to
    resume, another one is made.
    """

    def __init__(
        self,
        listener: socket.socket,
        clients: ClientServer,
        most: int,
        tls: ssl.SSLContext | None,
        loop: asyncio.AbstractEventLoop,
        spawn: Spawn,
    ) -> None:
        self.gate = Gate.SHUT
        self._listener = listener
        self._clients = clients
        self._loop = loop
        self._spawn = spawn
        self._server: asyncio.Server | None = None
        self._is_watching = False
        self._look_at = self._tell_at = 0.0
        self._options: dict[str, Any] = {"backlog": LISTEN_BACKLOG}
        if tls is not None:
            self._options["ssl"] = tls
            if listener.family != socket.AF_UNIX:  # uvloop passes deadlines on for TCP alone
                self._options["ssl_handshake_timeout"] = TLS_HANDSHAKE_TIMEOUT_S
                self._options["ssl_shutdown_timeout"] = TLS_GOODBYE_TIMEOUT_S
        clients.bound(most, self._when_full, self._when_room)

    async def start(self) -> None:
        """Take clients in. Raises OSError where that cannot be."""
        self._move(Signal.STARTED)
        await self._serve()

    def close(self) -> None:
        """Take no more in; those who wait in the backlog are refused by the kernel."""
        self._move(Signal.STOPPED)
        self._clients.is_crowded = False
        self._unwatch()
        self._stop_serving()
        self._listener.close()

    def sweep(self, now: float) -> None:
        """Once a second; ``now`` is the loop's time. Whoever waits for a place gets that of an idle connection."""
        if self.gate is Gate.CROWDED:
            self._make_room(now)
        elif self._clients.is_crowded and not waiting(self._listener):
            self._clients.is_crowded = False
        if self.gate in {Gate.FULL, Gate.CROWDED} and not self._clients.is_full:
            self._when_room()  # the attempt before this one failed

    def _move(self, signal: Signal) -> None:
        self.gate = GATE_MOVES[self.gate][signal]

    async def _serve(self) -> None:
        """Let the loop accept on a copy of the listening socket."""
        copy = self._listener.dup()
        try:
            server = await self._loop.create_server(self._clients, sock=copy, **self._options)
        except BaseException:
            copy.close()
            raise
        if self.gate is Gate.OPEN:
            self._server = server
        else:
            server.close()  # meanwhile it was closed

    def _stop_serving(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _when_full(self) -> None:
        """Called within an accept, which has to be over before its server may be closed."""
        self._loop.call_soon(self._pause)

    def _pause(self) -> None:
        if self.gate is not Gate.OPEN or self._server is None or not self._clients.is_full:
            return
        self._move(Signal.FILLED)
        self._stop_serving()
        self._loop.add_reader(self._listener, self._knocked)
        self._is_watching = True

    def _knocked(self) -> None:
        """A client waits in the backlog."""
        self._unwatch()
        self._move(Signal.KNOCKED)
        self._clients.is_crowded = True
        now = self._loop.time()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_INTERVAL_S
            logger.warning("%d connections are open, as many as may be: others wait", self._clients.open_count)
        self._make_room(now)

    def _make_room(self, now: float) -> None:
        if now >= self._look_at and not self._clients.close_idle(waiting(self._listener), now):
            self._look_at = now + _LOOK_INTERVAL_S

    def _unwatch(self) -> None:
        if self._is_watching:
            self._is_watching = False
            self._loop.remove_reader(self._listener)

    def _when_room(self) -> None:
        if self.gate not in {Gate.FULL, Gate.CROWDED}:
            return
        self._unwatch()
        self._move(Signal.ROOM)
        self._spawn(self._resume(), "accepting")

    async def _resume(self) -> None:
        try:
            await self._serve()
        except OSError as error:
            logger.error("cannot accept: %s; trying again", error)  # noqa: TRY400 - its text says all
            if self.gate is Gate.OPEN:
                self._move(Signal.FILLED)


def waiting(listener: socket.socket) -> int:
    """How many clients are in the backlog of ``listener``; a guess where the kernel does not tell."""
    if listener.family == socket.AF_UNIX:
        return _WAITING_UNKNOWN
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_QUEUED.size)
        return int(_TCP_INFO_QUEUED.unpack(info)[0])
    except (OSError, AttributeError, struct.error):
        return _WAITING_UNKNOWN


def backlog_warning() -> str:
    """What to say where the kernel keeps a shorter backlog than is asked for; "" where all is well."""
    try:
        kept = int(_BACKLOG_LIMIT.read_text())
    except (OSError, ValueError):
        return ""
    if kept >= LISTEN_BACKLOG:
        return ""
    return (
        f"the kernel keeps {kept} clients waiting to be accepted where {LISTEN_BACKLOG} are asked for: beyond them, "
        "those of a burst are refused or late; raise net.core.somaxconn"
    )
