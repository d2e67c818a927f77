"""HTTP proxies: which one an upstream is reached through, and the tunnel it opens for https.

Owns the meaning of HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY and the proxy's credentials, which go to the proxy
alone. Must not know TLS or what is sent through.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from sidecar.errors import Failure
from sidecar.settings import Address, Upstream

HEAD_END: Final = b"\r\n\r\n"
MAX_ANSWER_BYTES: Final = 16 * 1024
DEFAULT_PORT: Final = 80


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. ``headers`` authenticate the sidecar to it and are kept out of every repr."""

    address: Address
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)


def choose(upstream: Upstream, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy of an upstream, configured or from the environment, or None.

    Lower-case variables come first, as curl reads them. Unix sockets are never proxied, loopback only where the
    upstream names a proxy itself. Raises ValueError for a proxy URL that cannot be used, without its credentials.
    """
    if upstream.address.path or upstream.proxy == "":
        return None
    if upstream.proxy is not None:
        return _parse(upstream.proxy, f"upstream {upstream.name}: proxy")
    if _is_exempt(upstream.address, _variable(environ, "no_proxy")[1]):
        return None
    for variable in (f"{upstream.scheme}_proxy", "all_proxy"):
        name, url = _variable(environ, variable)
        if url:
            return _parse(url, name)
    return None


def _variable(environ: Mapping[str, str], lower: str) -> tuple[str, str]:
    for name in (lower, lower.upper()):
        value = environ.get(name, "").strip()
        if value:
            return name, value
    return lower, ""


def _parse(url: str, source: str) -> Proxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{source}: not a valid URL") from None
    if parts.scheme != "http" or not host:
        raise ValueError(f"{source}: only http:// proxies are supported, with a host")
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers = ((b"Proxy-Authorization", b"Basic " + base64.b64encode(login)),)
    return Proxy(Address(host, port or DEFAULT_PORT), headers)


def _is_exempt(target: Address, no_proxy: str) -> bool:
    ip = _as_ip(target.host)
    if target.is_loopback or (ip is not None and ip.is_loopback):
        return True
    return any(_fits(entry, target, ip) for entry in re.split(r"[\s,]+", no_proxy.lower()) if entry)


def _fits(entry: str, target: Address, ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    """One NO_PROXY entry: ``*``, a network, or a host or domain suffix, the latter two with an optional port."""
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return ip is not None and ip in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    host, port = _split_port(entry)
    if port and port != target.port:
        return False
    if ip is not None:
        return _as_ip(host) == ip
    name = target.host.lower().rstrip(".")
    domain = host.removeprefix("*").strip(".")
    return bool(domain) and (name == domain or name.endswith(f".{domain}"))


def _split_port(entry: str) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?", entry)
    if bracketed:
        return bracketed[1], int(bracketed[2] or 0)
    host, _, port = entry.rpartition(":")
    if host and port.isdigit() and ":" not in host:
        return host, int(port)
    return entry, 0


def _as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


async def open_tunnel(sock: socket.socket, proxy: Proxy, target: Address) -> None:
    """Ask the proxy for a tunnel (RFC 9110 section 9.3.6). Raises Failure ``upstream_refused`` with its status."""
    loop = asyncio.get_running_loop()
    authority = str(target).encode("idna" if not target.host.isascii() else "ascii")
    lines = [b"CONNECT %b HTTP/1.1" % authority, b"Host: %b" % authority]
    lines += [b"%b: %b" % header for header in proxy.headers]
    answer = b""
    try:
        await loop.sock_sendall(sock, b"\r\n".join([*lines, b"", b""]))
        while HEAD_END not in answer and len(answer) < MAX_ANSWER_BYTES:
            piece = await loop.sock_recv(sock, 4096)
            answer += piece
            if not piece:
                break
    except ConnectionError:
        answer = b""
    if HEAD_END not in answer:
        raise Failure("upstream_refused", f"proxy {proxy.address}: no answer to CONNECT")
    status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    if status is None:
        raise Failure("upstream_refused", f"proxy {proxy.address}: its answer to CONNECT is not HTTP")
    if not status[1].startswith(b"2"):
        raise Failure("upstream_refused", f"proxy {proxy.address}: refused CONNECT with status {int(status[1])}")
    if answer.index(HEAD_END) + len(HEAD_END) != len(answer):
        raise Failure("upstream_refused", f"proxy {proxy.address}: sent bytes before the tunnel was used")
