"""The two ends of an exchange: the handle its user holds, and the sinks that stand in where nobody listens.

Owns what outlives an exchange safely. Must not know bytes or sockets.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sidecar.errors import Failure
from sidecar.ports import ResponseHead, ResponseSink

if TYPE_CHECKING:
    from sidecar.upstream.connection import Connection

DRAIN_BYTES: Final = 256 * 1024
DRAIN_S: Final = 1.0


class _Nobody:
    """The sink of a connection that carries no exchange."""

    def on_head(self, head: ResponseHead) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_last_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_fail(self, failure: Failure, *, may_resend: bool) -> None: ...


NOBODY: Final[ResponseSink] = _Nobody()


class Handle:
    """What the user of an exchange holds (`sidecar.ports.Exchange`): empty once the exchange is over.

    So a late call cannot reach the next exchange on the same connection.
    """

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection | None = connection

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.pause_reading()

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()

    def abort(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def hand_to(self, sink: ResponseSink) -> None:
        if self.connection is not None:
            self.connection.hand_to(sink)

    def drain(self) -> None:
        if self.connection is not None:
            self.connection.drain_answer()

    def lost(self) -> None:
        """The connection had gone before the request could be sent."""
        if self.connection is not None:
            self.connection.connection_lost(None)

    @property
    def is_writable(self) -> bool:
        return self.connection is None or self.connection.is_writable

    async def wait_writable(self) -> None:
        if self.connection is not None:
            await self.connection.wait_writable()

    def write_body(self, data: bytes) -> None:
        if self.connection is not None:
            self.connection.write_body(data)

    def end_body(self) -> None:
        if self.connection is not None:
            self.connection.end_body()


class Drain:
    """The sink of an answer nobody wants: counts its bytes so that the connection may be used again, or drops it."""

    __slots__ = ("_bytes_left", "_handle", "_timer")

    def __init__(self, handle: Handle, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = handle
        self._bytes_left = DRAIN_BYTES
        # Through the handle: by then the connection may carry another exchange.
        self._timer = loop.call_later(DRAIN_S, handle.abort)

    def on_head(self, head: ResponseHead) -> None:
        """Nobody asks."""

    def on_body(self, data: bytes) -> None:
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._timer.cancel()
            self._handle.abort()

    on_last_body = on_body

    def on_end(self) -> None:
        self._timer.cancel()

    def on_fail(self, failure: Failure, *, may_resend: bool) -> None:
        """The timer will find an empty handle."""
