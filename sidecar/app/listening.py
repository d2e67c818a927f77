"""The traffic port's socket.

Owns how an address is bound. Must not know what is served on it.
"""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sidecar.subscribers import prepare_listener

if TYPE_CHECKING:
    from sidecar.ports import Counts
    from sidecar.settings import Address, Settings


@dataclass(frozen=True, slots=True)
class Shared:
    """What the processes of one sidecar have together: the ``listener``, which belongs to none of them, the ``counts``
    of streams, and the ``caller_key`` that callers' names are hashed with, so that all count the same ones."""

    listener: socket.socket
    counts: Counts
    caller_key: bytes = field(repr=False)


def open_listener(settings: Settings) -> socket.socket:
    """The traffic port's socket, bound and set up; it does not listen yet. Raises OSError."""
    listener = listening_socket(settings.listen)
    prepare_for(listener, settings)
    return listener


def prepare_for(listener: socket.socket, settings: Settings) -> None:
    """What is accepted from now on is set up as ``settings`` want it."""
    prepare_listener(listener, max(route.limits.stall_timeout_s for route in settings.routes))


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
