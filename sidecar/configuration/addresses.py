"""Addresses and URLs: where to listen, what an upstream is, which proxy.

Owns their spelling. Must not know YAML. Every ValueError is a complaint that can be shown: it never repeats the text,
which may hold a password.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from sidecar.settings import Address

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})")
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*/?")
_UNIX: Final = "unix://"
_MAX_SOCKET_PATH: Final = 107
_URL_HELP: Final = "must be http://HOST[:PORT][/PATH], https://HOST[:PORT][/PATH] or unix:///PATH/TO.sock"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class UpstreamUrl:
    """The parts of an upstream's URL that `settings.Upstream` holds."""

    scheme: Literal["http", "https"]
    address: Address
    authority: str
    base_path: str = ""


def parse_address(text: str) -> Address:
    """Where to listen: HOST:PORT, [IPV6]:PORT or unix:///path. Port 0 takes a free one."""
    if text.startswith(_UNIX):
        return _socket(text.removeprefix(_UNIX))
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8080, or unix:///path")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("must end in a port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        return Address(_ipv6(host[1:-1]), int(port))
    if ":" in host:
        raise ValueError("has an IPv6 address without brackets: write [::1]:8080, in quotes")
    return Address(_host(host), int(port))


def parse_upstream_url(text: str) -> UpstreamUrl:
    """An upstream's URL. ``unix:///path`` is plain HTTP over a Unix socket."""
    if text.startswith(_UNIX):
        return UpstreamUrl("http", _socket(text.removeprefix(_UNIX)), "localhost")
    parts = _split(text)
    if parts.scheme not in ("http", "https"):
        raise ValueError(_URL_HELP)
    if parts.query:
        raise ValueError(
            "must have no query: a key in it would be a secret in the file, and it would reach every request"
        )
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    address = _address(parts, _DEFAULT_PORTS[scheme])
    return UpstreamUrl(scheme, address, _authority(address, _DEFAULT_PORTS[scheme]), _base_path(parts.path))


def parse_proxy(text: str) -> str:
    """A proxy's URL, http://HOST:PORT, or "" for the word none."""
    if text == "none":
        return ""
    parts = _split(text)
    if parts.scheme != "http" or parts.path not in ("", "/") or parts.query:
        raise ValueError("must be http://HOST:PORT, or none")
    return f"http://{_authority(_address(parts, 80), 80)}"


def parse_collector(text: str) -> str:
    """A telemetry collector's base URL, to which OTLP over HTTP appends a path for each signal."""
    parts = _split(text)
    if parts.scheme not in ("http", "https") or parts.query:
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT, maybe with a path, without a query")
    if parts.path.rstrip("/").endswith(("/v1/traces", "/v1/metrics")):
        raise ValueError("must be the base URL: /v1/traces and /v1/metrics are appended to it")
    address = _address(parts, _DEFAULT_PORTS[parts.scheme])
    return f"{parts.scheme}://{_authority(address, _DEFAULT_PORTS[parts.scheme])}{_base_path(parts.path)}"


def parse_origin(text: str) -> str:
    """A browser origin: "*", or a scheme and host as browsers send them."""
    if text == "*":
        return text
    parts = _split(text)
    if parts.scheme not in ("http", "https") or parts.path or parts.query:
        raise ValueError('must be an origin such as https://app.example.com, without a path, or "*"')
    default_port = _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{_authority(_address(parts, default_port), default_port)}"


def parse_path(text: str) -> str:
    """A plain absolute path for ``rewrite`` and ``strip_prefix``."""
    if not text.startswith("/") or "?" in text or not _is_plain_path(text):
        raise ValueError("must be a plain path that begins with /, without a query or dot segments")
    return text


def _split(text: str) -> SplitResult:
    # urlsplit drops tabs and newlines; a URL that holds them is not what it seems.
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("must be printable ASCII without spaces (write other host names in their xn-- form)")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError:
        raise ValueError("is not a URL") from None
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password: a secret does not belong in the file")
    if parts.fragment or "#" in text:
        raise ValueError("must have no #fragment")
    return parts


def _address(parts: SplitResult, default_port: int) -> Address:
    host = parts.hostname or ""
    port = default_port if parts.port is None else parts.port
    if port == 0:
        raise ValueError("must not name port 0")
    return Address(_ipv6(host) if ":" in host else _host(host), port)


def _authority(address: Address, default_port: int) -> str:
    text = str(address)
    return text.removesuffix(f":{default_port}") if address.port == default_port else text


def _base_path(path: str) -> str:
    if not _is_plain_path(path):
        raise ValueError("has a path with empty or dot segments or characters that must be escaped")
    return path.rstrip("/")


def _is_plain_path(path: str) -> bool:
    return _PATH.fullmatch(path) is not None and not {".", ".."} & set(unquote(path).split("/"))


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("does not hold a host name or address")
    return text.lower()


def _ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError("does not hold an IPv6 address between its brackets") from None


def _socket(path: str) -> Address:
    if not path.startswith("/") or not path.isprintable() or path.endswith("/"):
        raise ValueError("must name a socket by its absolute path: unix:///run/name.sock")
    if len(path.encode()) > _MAX_SOCKET_PATH:
        raise ValueError(f"names a socket path longer than the {_MAX_SOCKET_PATH} bytes an address can hold")
    return Address(path=path)
