"""The simulated upstream as a server: where it listens, and what it has seen.

Owns the listening socket and the books. Must not know what an answer looks like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidecar.settings import Address
from sidecar.simulator.answering import answer
from sidecar.simulator.connection import Books, Connection
from sidecar.simulator.faults import Behaviour


class SimulatorServer:
    """A running simulator. Made by `serve`, ended by `close`."""

    def __init__(self, defaults: Behaviour) -> None:
        self.defaults = defaults
        self._books = Books(changed=self._announce)
        self._change = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._address = Address()

    @property
    def address(self) -> Address:
        """Where it listens, with the port the system gave."""
        return self._address

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return len(self._books.connections)

    @property
    def open_exchanges(self) -> int:
        """Requests that have come and are not answered to the end."""
        return sum(connection.is_exchanging for connection in self._books.connections)

    @property
    def cancelled(self) -> int:
        """Exchanges whose peer left before their end."""
        return self._books.cancelled

    @property
    def bytes_sent(self) -> int:
        """Bytes handed to the kernel, heads and framing included."""
        return self._books.bytes_sent

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds()``, asked again after every arrival, departure, request and finished answer."""
        while not holds():
            self._change.clear()
            await self._change.wait()

    async def close(self) -> None:
        """Stop listening, drop every connection and wait for what they were doing."""
        self._books.is_closing = True
        tasks = [connection.task for connection in self._books.connections if connection.task is not None]
        for connection in list(self._books.connections):
            connection.transport.abort()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        await self.until(lambda: not self._books.connections)
        if tasks:
            await asyncio.wait(tasks)

    async def listen(self, address: Address) -> None:
        """Bind ``address`` and begin to answer; called once, by `serve`."""
        loop = asyncio.get_running_loop()
        if address.path:
            self._server = await loop.create_unix_server(self._connection, address.path)
            self._address = address
        else:
            self._server = await loop.create_server(self._connection, address.host, address.port, backlog=4096)
            host, port = self._server.sockets[0].getsockname()[:2]
            self._address = Address(host, port)

    def _connection(self) -> Connection:
        return Connection(self._books, lambda request, connection: answer(request, connection, self.defaults))

    def _announce(self) -> None:
        self._change.set()


async def serve(address: Address, defaults: Behaviour) -> SimulatorServer:
    """Listen on ``address`` (port 0: any free one) and answer as ``defaults`` says. Raises OSError as binding does."""
    server = SimulatorServer(defaults)
    await server.listen(address)
    return server
