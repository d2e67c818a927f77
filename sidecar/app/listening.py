"""The traffic port's socket.

Owns how an address is bound. Must not know what is served on it.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.settings import Address


def listening_socket(address: Address) -> socket.socket:
    """A bound socket. A Unix path left by a dead process is taken over; one that somebody listens on is not."""
    if address.path:
        _remove_stale_socket(address.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bind_to: Any = address.path
    else:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, bind_to = found[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(bind_to)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {address}: {error.strerror or error}") from error
    return listener


def _remove_stale_socket(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def bound_address(listener: socket.socket, asked: Address) -> Address:
    """Where ``listener`` really is, where port 0 was ``asked`` for."""
    if asked.path:
        return asked
    return type(asked)(asked.host, int(listener.getsockname()[1]))
