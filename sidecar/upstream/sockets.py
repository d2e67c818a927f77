"""Socket options of upstream connections. Knows nothing of HTTP or asyncio."""

from __future__ import annotations

import select
import socket
from typing import Any, Final

RECEIVE_BUFFER_BYTES: Final = 64 * 1024
"""Without a set bound the kernel takes megabytes more before a paused read reaches the sender. One read gives at most
twice as much: what the kernel holds."""

MIN_RECEIVE_BUFFER_BYTES: Final = 4 * 1024

WRITE_BUFFER_BYTES: Final = 64 * 1024
KEEPALIVE_IDLE_S: Final = 30
KEEPALIVE_INTERVAL_S: Final = 10
KEEPALIVE_PROBES: Final = 3
_KEEPALIVE: Final = (
    (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
)

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""One row of getaddrinfo."""


def receive_buffer_for(stream_buffer_bytes: int) -> int:
    """The SO_RCVBUF under which a paused stream stays within its own buffer: a quarter of that fills before the pause,
    and one read comes on top."""
    return max(MIN_RECEIVE_BUFFER_BYTES, min(RECEIVE_BUFFER_BYTES, stream_buffer_bytes // 4))


def tcp_socket(info: AddressInfo, receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES) -> socket.socket:
    """An unconnected, non-blocking TCP socket with our options set."""
    sock = socket.socket(info[0], info[1], info[2])
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound_socket(sock, receive_buffer_bytes)
    except BaseException:
        sock.close()
        raise
    return sock


def bound_descriptor(file_descriptor: int, receive_buffer_bytes: int, *, is_local: bool) -> None:
    """`bound_socket` for a connection that a loop has made: uvloop's own stand-in makes a socket for each option.

    ``is_local``: the peer is on this machine, whose kernel tells when it dies, so that no probes are needed.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, file_descriptor)
    try:
        if is_local:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        else:
            bound_socket(sock, receive_buffer_bytes)
    finally:
        sock.detach()


def bound_socket(sock: socket.socket, receive_buffer_bytes: int) -> None:
    """Bound what the kernel reads ahead and how long it believes in a silent peer; before connecting or just after."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def unix_socket() -> socket.socket:
    """An unconnected, non-blocking Unix stream socket; its buffers bound themselves."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def is_quiet(file_descriptor: int) -> bool:
    """Neither bytes nor an end nor an error wait to be read: the peer has done nothing since the last read."""
    poll = select.poll()
    poll.register(file_descriptor, select.POLLIN)
    return not poll.poll(0)
