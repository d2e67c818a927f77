"""The client's side of a stream on a real socket: framing, options, and what the kernel says of the peer."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest

from sidecar.subscribers import HttpSubscriber, prepare_listener
from tests.app_support import on_uvloop
from tests.departures import until


class Written:
    """A transport that keeps what it is given; ``held`` bytes of it are still its own."""

    def __init__(self, sock: Any = None) -> None:
        self.data = b""
        self.held = 0
        self.is_aborted = False
        self.turn: list[Callable[[], None]] = []
        self._socket = sock

    def write(self, data: bytes) -> None:
        self.data += data

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def get_write_buffer_size(self) -> int:
        return self.held

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self._socket

    def set_write_buffer_limits(self, *, high: int) -> None:
        self.high = high


def subscriber(transport: Written, *, is_ready: bool = True) -> HttpSubscriber:
    return HttpSubscriber(cast("asyncio.Transport", transport), transport.turn.append, is_ready=is_ready)


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        ours, _ = listener.accept()
        with ours:
            yield ours, peer


@contextmanager
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair(socket.AF_UNIX)
    with ours, peer:
        yield ours, peer


def test_a_chunked_body_is_framed_and_ended() -> None:
    transport = Written()
    one = subscriber(transport)
    one.start(b"HEAD", is_chunked=True)
    one.write(b"x" * 26)
    one.write(b"y")
    one.finish(b"")
    assert transport.data == b"HEAD1a\r\n" + b"x" * 26 + b"\r\n1\r\ny\r\n0\r\n\r\n"


def test_the_last_bytes_and_the_last_chunk_go_together() -> None:
    transport = Written()
    one = subscriber(transport)
    one.start(b"HEAD", is_chunked=True)
    one.finish(b"end")
    assert transport.data == b"HEAD3\r\nend\r\n0\r\n\r\n"


def test_a_head_alone_goes_out_in_the_next_turn_and_only_once() -> None:
    alone, joined, dropped = Written(), Written(), Written()
    for transport in (alone, joined, dropped):
        one = subscriber(transport)
        one.start(b"HEAD", is_chunked=False)
        if transport is joined:
            one.write(b"body")
        elif transport is dropped:
            one.abort()
    assert (alone.data, joined.data, dropped.data) == (b"", b"HEADbody", b"")
    for transport in (alone, joined, dropped):
        transport.turn.pop()()
    assert (alone.data, joined.data, dropped.data) == (b"HEAD", b"HEADbody", b"")


def test_another_body_goes_out_bare() -> None:
    transport = Written()
    one = subscriber(transport)
    one.start(b"HEAD", is_chunked=False)
    one.write(b"abc")
    one.finish(b"")
    assert transport.data == b"HEADabc"


def test_abort_drops_the_connection() -> None:
    transport = Written()
    subscriber(transport).abort()
    assert transport.is_aborted


@pytest.mark.parametrize("is_ready", [True, False])
def test_it_begins_as_ready_as_its_transport(is_ready: bool) -> None:
    assert subscriber(Written(), is_ready=is_ready).is_ready is is_ready


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
def test_undelivered_is_what_our_buffer_and_the_kernel_hold(pair: Any) -> None:
    with pair() as (ours, peer):
        transport = Written(ours)
        one = subscriber(transport)
        transport.held = 60
        assert (one.unsent_bytes, one.undelivered_bytes()) == (60, 60)
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(b"x" * 65536)
        full = one.undelivered_bytes()
        assert full > 60
        peer.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                peer.recv(1 << 20)
        assert one.undelivered_bytes() < full


def test_a_socket_that_is_gone_holds_nothing() -> None:
    sock = socket.socket()
    sock.close()
    one = subscriber(Written(sock))
    assert one.undelivered_bytes() == 0
    assert one.is_peer_gone()


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
def test_a_departure_is_seen_behind_unread_data(pair: Any, how: str) -> None:
    with pair() as (ours, peer):
        one = subscriber(Written(ours))
        peer.send(b"unread")
        assert not one.is_peer_gone()
        if how == "half-close":
            peer.shutdown(socket.SHUT_WR)
        elif how == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how != "half-close":
            peer.close()
        assert one.is_peer_gone()


def test_an_aborted_transport_has_no_peer() -> None:
    with tcp_pair() as (ours, _):
        one = subscriber(Written(ours))
        one.abort()
        assert one.is_peer_gone()


@on_uvloop
async def test_the_kernel_is_kept_from_taking_much_ahead() -> None:
    """What is accepted has the options of the socket it was accepted on."""
    made: list[asyncio.Transport] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(cast("asyncio.Transport", transport))

    listener = socket.create_server(("127.0.0.1", 0))
    prepare_listener(listener, 30.0)
    server = await asyncio.get_running_loop().create_server(Protocol, sock=listener)
    _, writer = await asyncio.open_connection(*listener.getsockname())
    await until(lambda: made)
    sock = made[0].get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, 25) == 16 * 1024  # TCP_NOTSENT_LOWAT
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000  # above the stall deadline
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    writer.close()
    made[0].abort()
    server.close()


def test_a_unix_socket_has_no_such_options() -> None:
    with unix_pair() as (ours, _):
        prepare_listener(ours, 30.0)  # or the system would refuse them
        assert ours.family == socket.AF_UNIX
