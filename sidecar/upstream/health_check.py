"""Asking an upstream whether it is up: one small request, again and again.

Owns the request, its deadline and when the next one is due. Must not know what the answer leads to: whoever is told
decides (`Verdicts`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.ports import ResponseHead
    from sidecar.settings import HealthCheck
    from sidecar.upstream.pool import UpstreamPool

FIRST_ERROR_STATUS: Final = 500
HURRY_S: Final = 1.0
"""How often one that is not up is asked at least: everybody waits for it."""


class Verdicts(Protocol):
    """Who is told what checks find."""

    next_check_at: float

    def check_up(self, now: float) -> None:
        """A check was answered."""

    def check_down(self, now: float) -> None:
        """A check was not answered, or by an error of the server's."""

    def is_up(self, now: float) -> bool:
        """Whether the upstream is up, as far as is known."""


class _Status:
    """The sink of a check's answer: its status, or the failure to give one."""

    def __init__(self) -> None:
        self.told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_head(self, head: ResponseHead) -> None:
        if not self.told.done():
            self.told.set_result(head.status)

    def on_body(self, data: bytes) -> None:
        """Nobody wants it."""

    on_last_body = on_body

    def on_end(self) -> None:
        """The status was all."""

    def on_fail(self, failure: Failure, *, may_resend: bool) -> None:
        del may_resend
        if not self.told.done():
            self.told.set_exception(failure)


class Checker:
    """Checks one upstream over its own pool: through its proxy, with its TLS, at one of its addresses.

    ``authority`` is the Host that it is asked by; no credential is sent.
    """

    def __init__(
        self,
        check: HealthCheck,
        pool: UpstreamPool,
        authority: str,
        verdicts: Verdicts,
        clock: Callable[[], float],
    ) -> None:
        self._check = check
        self._pool = pool
        self._verdicts = verdicts
        self._clock = clock
        headers = [(b"Host", authority.encode()), (b"User-Agent", b"llm-sidecar"), (b"Accept", b"*/*")]
        self._head = pool.request_head(b"GET", check.path.encode(), headers)

    async def run(self) -> None:
        """Check again and again; runs until it is cancelled."""
        while True:
            begun_at = self._clock()
            is_up = await self.is_answered()
            now = self._clock()
            if is_up:
                self._verdicts.check_up(now)
            else:
                self._verdicts.check_down(now)
            interval_s = self._check.interval_s
            if not self._verdicts.is_up(now):
                interval_s = min(interval_s, HURRY_S)
            self._verdicts.next_check_at = max(now, begun_at + interval_s)
            await asyncio.sleep(self._verdicts.next_check_at - now)

    async def is_answered(self) -> bool:
        """One check: whether any status below 500 came in time."""
        try:
            async with asyncio.timeout(self._check.timeout_s):
                return await self._status() < FIRST_ERROR_STATUS
        except (Failure, TimeoutError):
            return False

    async def _status(self) -> int:
        connection = await self._pool.dial()
        sink = _Status()
        exchange = connection.send(sink, method=b"GET", head=self._head, body=b"", chunked_body=False)
        try:
            status = await sink.told
        except BaseException:
            exchange.abort()
            raise
        exchange.drain()  # within bounds of its own, after which the connection serves streams
        return status
