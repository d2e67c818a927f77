"""A client's HTTP connection as a stream sees it: where encoded bytes go, and how far they really got.

Owns the HTTP framing of a body towards the client, the socket options that keep the kernel from hiding megabytes, and
what the kernel says of the peer. Must not know streams, dialects or aiohttp.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    CallSoon = Callable[[Callable[[], None]], object]

WRITE_HIGH_WATER_BYTES: Final = 16 * 1024
"""What a client's transport takes ahead of it before it says that it is full."""

_NOTSENT_LOWAT_BYTES: Final = 16 * 1024
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_USER_TIMEOUT_MARGIN_S: Final = 30.0
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; CPython names it from 3.12 on
_TCP_CLOSE: Final = 7  # include/net/tcp_states.h
_TCP_CLOSE_WAIT: Final = 8
_TCP_INFO_BYTES: Final = 8


def prepare_listener(sock: socket.socket, stall_timeout_s: float) -> None:
    """Bound what the kernel takes ahead of a client that does not read.

    What it accepts on a listening socket has that one's options from the start, which spares six system calls for each
    connection. ``TCP_USER_TIMEOUT`` lies above the stall deadline, or it would be the stall deadline; it frees what is
    left over when a stream has ended and its client never reads the tail.
    """
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOTSENT_LOWAT_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int((stall_timeout_s + _USER_TIMEOUT_MARGIN_S) * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class HttpSubscriber:
    """One HTTP answer being written to one client's transport. ``call_soon`` is the loop's."""

    __slots__ = ("_call_soon", "_head", "_is_chunked", "_transport", "is_ready")

    def __init__(self, transport: asyncio.Transport, call_soon: CallSoon, *, is_ready: bool) -> None:
        self._transport = transport
        self._call_soon = call_soon
        self._is_chunked = False
        self._head = b""
        self.is_ready = is_ready

    def start(self, head: bytes, *, is_chunked: bool) -> None:
        """Send the answer's head: with the body that came in the same read, or else at the next turn of the loop.

        A short answer is then one packet and one system call, and a head alone waits for nobody.
        """
        self._is_chunked = is_chunked
        self._head = head
        self._call_soon(self._send_head)

    def _send_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def write(self, data: bytes) -> None:
        """Send a piece of the body: the last step of the line."""
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    def finish(self, last: bytes) -> None:
        """Send the ``last`` bytes of the body, b"" for none, and its last chunk where it has one."""
        if self._is_chunked:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n"
        if self._head or last:
            last, self._head = self._head + last, b""
            self._transport.write(last)

    def abort(self) -> None:
        """Drop the connection in this turn of the loop; what was buffered for it is freed."""
        self._head = b""
        self._transport.abort()

    @property
    def unsent_bytes(self) -> int:
        """Bytes in the transport's own buffer."""
        return self._transport.get_write_buffer_size()

    def undelivered_bytes(self) -> int:
        """Bytes still in our buffer or the kernel's: a drained write buffer alone is not delivery."""
        return self.unsent_bytes + _unacknowledged_bytes(self._transport)

    def is_peer_gone(self) -> bool:
        """The peer's FIN or RST has come, though data before it may still be unread."""
        return self._transport.is_closing() or _is_closed_by_peer(self._transport)


def _unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """The kernel's send queue (SIOCOUTQ); 0 where the socket is gone."""
    sock: Any = transport.get_extra_info("socket")
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError, AttributeError):
        return 0
    return int(struct.unpack("i", answer)[0])


def _is_closed_by_peer(transport: asyncio.Transport) -> bool:
    sock: Any = transport.get_extra_info("socket")
    try:
        if sock.family not in {socket.AF_INET, socket.AF_INET6}:
            return _is_unix_peer_closed(sock)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, AttributeError):
        return True
    return info[0] in {_TCP_CLOSE, _TCP_CLOSE_WAIT}


def _is_unix_peer_closed(sock: Any) -> bool:
    """Unix sockets have no TCP_INFO; poll tells of a hang-up whatever is still unread."""
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLRDHUP)
    return any(event & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, event in poller.poll(0))
