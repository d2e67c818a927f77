"""Messages over a pair of sockets: each its length in four bytes, then itself.

Owns the bytes on the way, their bounds and the end of either side. Must not know what messages mean.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

from sidecar.workers.messages import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

MAX_UNSENT_BYTES: Final = 2 * MAX_MESSAGE_BYTES
"""What may wait for the other side to read. One that leaves more is as good as gone."""

CALM_UNSENT_BYTES: Final = 64 * 1024
"""As long as more than this waits, nothing is said that can as well be left out."""

_LENGTH: Final = struct.Struct(">I")
_READ_BYTES: Final = 256 * 1024


class Channel:
    """One end. ``on_message`` is called with each message, ``on_lost`` once when the other end is gone, or broke the
    rules; both from the loop. Takes the socket over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._on_message = on_message
        self._on_lost = on_lost
        self._read = bytearray()
        self._unsent = bytearray()
        self._is_open = True
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    @property
    def unsent_bytes(self) -> int:
        """What waits for the other side."""
        return len(self._unsent)

    def send(self, message: bytes) -> None:
        """Say something. What cannot be said any more is dropped: `on_lost` has told, or will."""
        if not self._is_open:
            return
        is_waiting = bool(self._unsent)
        self._unsent += _LENGTH.pack(len(message)) + message
        if is_waiting:
            if len(self._unsent) > MAX_UNSENT_BYTES:
                self._lose()
        elif self._write():
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def close(self) -> None:
        """Hang up. The other side learns of it; ``on_lost`` is not called here. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._unsent.clear()

    def leave(self) -> None:
        """Neither say nor hear anything more, but leave the line open: the other side learns nothing of it."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())

    def drain(self) -> None:
        """Take in what the other side had said when it ended. Only then: else more may always come."""
        while self._is_open:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self._take(data)

    def _lose(self) -> None:
        self.close()
        self._on_lost()

    def _write(self) -> bool:
        """Whether something is left to be written."""
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return True
        except OSError:
            return False  # it is gone, and reading tells so, after what it had said
        del self._unsent[:sent]
        return bool(self._unsent)

    def _writable(self) -> None:
        if not self._write():
            self._loop.remove_writer(self._socket.fileno())
            self._unsent.clear()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        self._read += data
        while self._is_open and (message := self._next()) is not None:
            self._on_message(message)

    def _next(self) -> bytes | None:
        if len(self._read) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._read)
        if length > MAX_MESSAGE_BYTES:
            self._lose()
            return None
        end = _LENGTH.size + length
        if len(self._read) < end:
            return None
        message = bytes(self._read[_LENGTH.size : end])
        del self._read[:end]
        return message


def receive(sock: socket.socket, timeout_s: float) -> bytes:
    """One message, before there is a loop. Raises OSError (TimeoutError too) where none comes."""
    sock.settimeout(timeout_s)
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    if length > MAX_MESSAGE_BYTES:
        raise OSError("the other side says something that is no message")
    return _exactly(sock, length)


def tell(sock: socket.socket, message: bytes, timeout_s: float) -> None:
    """Say one thing where there is no loop. Raises OSError (TimeoutError too) where nobody takes it."""
    sock.settimeout(timeout_s)
    sock.sendall(_LENGTH.pack(len(message)) + message)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise OSError("the other side is gone")
        data += piece
    return bytes(data)
