"""How the tests over sockets leave, wait, and see what the sidecar did about it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme

from sidecar.app import App
from sidecar.errors import Outcome
from sidecar.gateway import ClientConnection
from sidecar.settings import Address
from sidecar.stream import Stream
from tests.app_support import Client

POLL_S = 0.002
DEPARTURES = ("fin", "reset", "half-close")


async def until(holds: Callable[[], Any]) -> None:
    """Wait for what nothing announces; the test's own deadline bounds it."""
    while not holds():
        await asyncio.sleep(POLL_S)


def leave(client: Client, how: str) -> None:
    """End the client's side: FIN, RST, or FIN with the other direction left open."""
    transport = client.writer.transport
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as copy:
        if how == "half-close":
            copy.shutdown(socket.SHUT_WR)
            return
        if how == "reset":
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            copy.shutdown(socket.SHUT_RDWR)
    transport.abort()


@dataclass
class Departures:
    """The callbacks that told of a client's departure: whether each ended its stream, and what it left busy."""

    app: App | None = None
    seen: list[tuple[str, int]] = field(default_factory=list)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Look at every departure from now on, in the callback, on its return."""
        for owner, name in (
            (ClientConnection, "eof_received"),
            (ClientConnection, "connection_lost"),
            (Stream, "look_for_client"),
        ):
            patch.setattr(owner, name, self._watched(getattr(owner, name), name))

    def _watched(self, callback: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            assert self.app is not None
            before = self.app.streams.outcomes[Outcome.CLIENT_CANCELLED]
            result = callback(*args)
            if self.app.streams.outcomes[Outcome.CLIENT_CANCELLED] > before:
                self.seen.append((name, self.app.pool("llm").active))
            return result

        return watched


@dataclass(frozen=True)
class Certificates:
    """One CA and a server certificate of its own for loopback."""

    ca_file: str
    certificate: str
    key: str

    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca_file)


def make_certificates(folder: Any) -> Certificates:
    """Written into ``folder``, a path."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost", "llm.test")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    issued.private_key_pem.write_to_path(str(folder / "server.key"))
    return Certificates(str(folder / "ca.pem"), str(folder / "server.pem"), str(folder / "server.key"))


@asynccontextmanager
async def connected(app: App, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    """A connection to the traffic port, over TLS if a context is given."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.address.port, ssl=tls)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


@contextmanager
def blackhole() -> Iterator[Address]:
    """An address where connecting neither succeeds nor fails: its backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            yield Address("127.0.0.1", listener.getsockname()[1])
        finally:
            for filler in fillers:
                filler.close()
