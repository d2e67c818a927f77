"""From a configured upstream to an open transport: names, addresses, proxy, TLS.

Owns every step of connecting, its deadline and what its failures are called. Must not know pools or exchanges.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Final

import aiohappyeyeballs

from sidecar.errors import Failure
from sidecar.settings import Address, Upstream
from sidecar.upstream import proxy, tls
from sidecar.upstream.attempts import Attempts
from sidecar.upstream.sockets import RECEIVE_BUFFER_BYTES, AddressInfo, bound_descriptor, tcp_socket, unix_socket

HAPPY_EYEBALLS_DELAY_S: Final = 0.25
"""RFC 8305 section 5."""


class Dialler:
    """Opens connections to one upstream. ``environ`` is read once; see `UpstreamPool` for what is raised."""

    def __init__(
        self, upstream: Upstream, environ: Mapping[str, str], receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES
    ) -> None:
        self._receive_buffer_bytes = receive_buffer_bytes
        self._name = upstream.name
        self._address = upstream.address
        self._timeout_s = upstream.timeouts.connect_s
        self._tls = tls.client_context(upstream) if upstream.scheme == "https" else None
        self._server_name = tls.server_name(upstream)
        self._proxy = proxy.choose(upstream, environ)
        self._is_bare = (
            self._proxy is None
            and self._tls is None
            and _literal(self._address) is not None
            # A smaller one has to be set before the handshake advertises more: the kernel drops what it cannot take.
            and receive_buffer_bytes == RECEIVE_BUFFER_BYTES
        )
        literal = _literal(self._address)
        self._is_loopback = literal is not None and ipaddress.ip_address(self._address.host).is_loopback
        self._attempts = Attempts(self._timeout_s)
        self.is_absolute_form = self._proxy is not None and self._tls is None
        self.proxy_headers: tuple[tuple[bytes, bytes], ...] = self._proxy.headers if self._proxy is not None else ()

    def connect(self, protocol: asyncio.Protocol, loop: asyncio.AbstractEventLoop) -> Awaitable[None]:
        """Connect ``protocol``; name look-up, proxy and TLS all within the connect deadline. Raises Failure."""
        return self._connect_bare(protocol, loop) if self._is_bare else self.in_time(self._connect(protocol))

    async def in_time(self, connecting: Awaitable[None]) -> None:
        """Await it within the connect deadline. Raises Failure ``upstream_connect_timeout``."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await connecting
        except TimeoutError:
            raise self._too_late() from None

    def _too_late(self) -> Failure:
        return Failure("upstream_connect_timeout", f"upstream {self._name}: no connection within {self._timeout_s:g} s")

    async def _connect(self, protocol: asyncio.Protocol) -> None:
        await self.attach(await self._open_socket(), protocol)

    async def attach(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        """What is left to do on an open socket, which is closed if that fails: tunnel and TLS. Raises Failure."""
        try:
            if self._proxy is not None and self._tls is not None:
                await proxy.open_tunnel(sock, self._proxy, self._address)
            await self._attach(sock, protocol)
        except BaseException as error:
            # Idempotent; where a transport already owns the socket this only lets go of it.
            sock.close()
            if isinstance(error, TimeoutError) or not isinstance(error, OSError):
                raise
            raise self._handshake_failure(error) from None

    async def _connect_bare(self, protocol: asyncio.Protocol, loop: asyncio.AbstractEventLoop) -> None:
        """One address and no TLS, as for a model server in the same pod: the loop's own way, half the work."""
        attempt = self._attempts.begin(loop)
        try:
            transport, _ = await loop.create_connection(lambda: protocol, self._address.host, self._address.port)
        except asyncio.CancelledError:
            if not attempt.was_cut_off():
                raise
            raise self._too_late() from None
        except TimeoutError:  # the kernel gave up before we did: no connection in time, all the same
            raise self._too_late() from None
        except OSError as error:
            raise self._refused(self._address, error) from None
        finally:
            self._attempts.end(attempt)
        bound_descriptor(
            transport.get_extra_info("socket").fileno(), self._receive_buffer_bytes, is_local=self._is_loopback
        )

    async def _open_socket(self) -> socket.socket:
        target = self._proxy.address if self._proxy is not None else self._address
        if not target.path:
            return await self.open_socket(await self._resolve(target), interleave=1)
        try:
            return await _connect_unix(target.path)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._refused(target, error) from None

    async def open_socket(self, infos: Sequence[AddressInfo], *, interleave: int = 0) -> socket.socket:
        """A socket connected to whichever of ``infos`` answers first, each begun a moment after the one before it or
        when that one has failed. ``interleave``: families in turn, instead of the order given. Raises Failure."""
        target = self._proxy.address if self._proxy is not None else self._address
        try:
            return await aiohappyeyeballs.start_connection(
                infos,
                happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S,
                interleave=interleave,
                socket_factory=partial(tcp_socket, receive_buffer_bytes=self._receive_buffer_bytes),
            )
        except TimeoutError:
            raise
        except (OSError, RuntimeError) as error:
            raise self._refused(target, error) from None

    def _refused(self, target: Address, error: Exception) -> Failure:
        where = f"proxy {target}" if self._proxy is not None else str(target)
        return Failure("upstream_refused", f"upstream {self._name}: cannot connect to {where}: {_words(error)}")

    async def resolve(self) -> list[AddressInfo]:
        """What the upstream's name leads to now. Raises Failure ``upstream_dns``."""
        return await self._resolve(self._address)

    async def _resolve(self, target: Address) -> list[AddressInfo]:
        literal = _literal(target)
        if literal is not None:
            return [literal]
        loop = asyncio.get_running_loop()
        try:
            return list(await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))
        except (socket.gaierror, UnicodeError) as error:
            words = error.strerror if isinstance(error, socket.gaierror) else "not a valid host name"
            raise Failure("upstream_dns", f"upstream {self._name}: cannot resolve {target.host}: {words}") from None

    async def _attach(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        loop = asyncio.get_running_loop()
        server_name = self._server_name if self._tls is not None else None
        # Ours is the deadline; the loop's own only has to be later.
        handshake_s = self._timeout_s + 1 if self._tls is not None else None
        create = loop.create_unix_connection if sock.family == socket.AF_UNIX else loop.create_connection
        await create(
            lambda: protocol,
            sock=sock,
            ssl=self._tls,
            server_hostname=server_name,
            ssl_handshake_timeout=handshake_s,
        )

    def _handshake_failure(self, error: OSError) -> Failure:
        if isinstance(error, ssl.SSLError):
            return Failure("upstream_tls", f"upstream {self._name}: {tls.words(error, self._server_name)}")
        step = "the TLS handshake" if self._tls is not None else "connecting"
        return Failure("upstream_reset", f"upstream {self._name}: connection lost during {step}: {_words(error)}")


def is_dialled_by_name(upstream: Upstream, environ: Mapping[str, str]) -> bool:
    """Whether its host has to be looked up by us. Raises ValueError for a proxy that cannot be used."""
    address = upstream.address
    return not address.path and _literal(address) is None and proxy.choose(upstream, environ) is None


def _literal(target: Address) -> AddressInfo | None:
    """The address information of an IP literal, which needs no thread to look it up; None for a name."""
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        return None
    if address.version == 4:
        return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (target.host, target.port))
    if address.scope_id is not None:
        return None
    return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (target.host, target.port, 0, 0))


async def _connect_unix(path: str) -> socket.socket:
    sock = unix_socket()
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


def _words(error: Exception) -> str:
    """What the system calls the error; loops and libraries word it each in their own way."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
