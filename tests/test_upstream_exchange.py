"""One exchange over real sockets: what the sink is told, and when the connection is used again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sidecar.ports import Exchange
from sidecar.upstream import UpstreamPool
from tests.upstream_support import (
    CHUNKED,
    OK,
    Peer,
    Recorder,
    Run,
    Server,
    asked,
    each_loop,
    pooled,
    send,
    serving,
    turns,
    upstream_at,
)

pytestmark = each_loop


Script = Callable[[UpstreamPool, Server], Awaitable[None]]


async def with_pool(script: Script) -> None:
    async with serving() as server, pooled(upstream_at(server.address)) as pool:
        await script(pool, server)


def is_writable(exchange: Exchange) -> bool:
    """Asked anew each time, which a type checker that narrows properties would not."""
    return exchange.is_writable


async def answered(*answer: bytes, then: str = "", method: bytes = b"GET") -> tuple[Recorder, int]:
    """What a sink is told of an answer in these writes, and how many connections are idle afterwards."""
    sink = Recorder()
    async with serving() as server, pooled(upstream_at(server.address)) as pool:
        peer, _ = await asked(pool, server, sink, method=method)
        for piece in answer:
            before = len(sink.words)
            peer.send(piece)
            if piece is not answer[-1]:
                await sink.told_more(before)
        if then == "end":
            peer.end()
        elif then == "reset":
            peer.reset()
        await sink.over()
        assert pool.active == 0
        return sink, pool.idle


@pytest.mark.parametrize(
    ("answer", "status", "body", "idle"),
    [
        (OK, 200, b"ok", 1),
        (CHUNKED + b"2\r\nok\r\n3\r\n...\r\n0\r\n\r\n", 200, b"ok...", 1),
        (CHUNKED + b"2;a=b\r\nok\r\n0\r\nTrailer: x\r\n\r\n", 200, b"ok", 1),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, b"ok", 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", 1),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 304, b"", 1),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, b"", 1),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", 0),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", 0),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", 1),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", 1),
    ],
)
def test_whole_answer(run: Run, answer: bytes, status: int, body: bytes, idle: int) -> None:
    async def script() -> None:
        sink, idle_after = await answered(answer)
        assert sink.head is not None
        assert (sink.head.status, sink.body, sink.words[-1]) == (status, body, "end")
        assert not sink.head.is_eof_delimited
        assert idle_after == idle

    run(script())


@pytest.mark.parametrize(
    "extra",
    [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"HTTP/1.1 2", b"\r\nHTTP/1.1 200 OK\r\n\r\nevil"],
)
@pytest.mark.parametrize("answer", [OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"])
def test_bytes_after_the_answer_are_nobodys_and_end_the_connection(run: Run, answer: bytes, extra: bytes) -> None:
    async def script() -> None:
        sink, idle = await answered(answer + extra)
        assert sink.words[-1] == "end"
        assert sink.body in {b"ok", b""}
        assert idle == 0

    run(script())


def test_head_answer_is_never_read_for_a_body(run: Run) -> None:
    async def script() -> None:
        sink, idle = await answered(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", method=b"HEAD")
        assert (sink.words, idle) == (["head", "end"], 1)
        sink, idle = await answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", method=b"HEAD")
        assert (sink.words, idle) == (["head", "end"], 0)

    run(script())


def test_connection_carries_a_get_after_a_head(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder()
        peer, _ = await asked(pool, server, sink, method=b"HEAD")
        peer.send(CHUNKED)
        await sink.over()
        second = Recorder()
        await asked(pool, server, second)
        peer.send(OK)
        await second.over()
        assert (second.body, len(server.peers), pool.idle) == (b"ok", 1, 1)

    run(with_pool(script))


def test_eof_delimited_body(run: Run) -> None:
    async def script() -> None:
        sink, idle = await answered(b"HTTP/1.1 200 OK\r\n\r\nall ", b"of it", then="end")
        assert sink.head is not None
        assert sink.head.is_eof_delimited
        assert (sink.body, sink.words[-1], idle) == (b"all of it", "end", 0)

    run(script())


@pytest.mark.parametrize(
    ("answer", "then", "code"),
    [
        (b"", "end", "upstream_reset"),
        (b"", "reset", "upstream_reset"),
        (b"HTTP/1.1 200 OK\r\nContent-", "end", "upstream_truncated"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", "end", "upstream_truncated"),
        (CHUNKED + b"2\r\nok\r\n", "end", "upstream_truncated"),
        (CHUNKED + b"2\r\nok\r\n0\r\n", "end", "upstream_truncated"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "", "upstream_not_http"),
        (b"\x16\x03\x01\x00\x02\x02\x28", "", "upstream_not_http"),
        (b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "", "upstream_not_http"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "", "upstream_not_http"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "", "upstream_not_http"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "", "upstream_not_http"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "", "upstream_not_http"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", "", "upstream_not_http"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "", "upstream_not_http"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "", "upstream_not_http"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 40, "", "upstream_not_http"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000, "", "upstream_not_http"),
        (CHUNKED + b"zz\r\n", "", "malformed_upstream"),
        (CHUNKED + b"2\r\nok!\r\n", "", "malformed_upstream"),
        (CHUNKED + b"0\r\nX: " + b"x" * 600_000, "", "malformed_upstream"),
    ],
)
def test_broken_answer(run: Run, answer: bytes, then: str, code: str) -> None:
    async def script() -> None:
        sink, idle = await answered(answer, then=then)
        assert (sink.code, sink.may_resend, idle) == (code, False, 0)
        assert sink.words.count("fail") == 1

    run(script())


def test_reset_within_the_body(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        for head in (CHUNKED + b"2\r\nok\r\n", b"HTTP/1.1 200 OK\r\n\r\nok"):
            sink = Recorder()
            peer, _ = await asked(pool, server, sink, number=len(server.peers))
            peer.send(head)
            await sink.has_body(b"ok")
            peer.reset()
            await sink.over()
            assert (sink.code, sink.may_resend) == ("upstream_reset", False)

    run(with_pool(script))


def test_good_bytes_before_a_malformed_chunk_are_handed_on(run: Run) -> None:
    async def script() -> None:
        sink, _ = await answered(CHUNKED + b"2\r\nok\r\nzz\r\n")
        assert (sink.words, sink.body) == (["head", "body", "fail"], b"ok")

    run(script())


def test_one_read_is_one_call(run: Run) -> None:
    async def script() -> None:
        sink, _ = await answered(CHUNKED, b"2\r\nab\r\n2\r\ncd\r\n", b"2\r\nef\r\n0\r\n\r\n")
        assert sink.pieces == [b"abcd", b"ef"]

    run(script())


def test_head_over_the_bound_is_refused_however_it_comes(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address), max_header_bytes=100) as pool:
            for start, rest, code in (
                (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 90 + b"\r\n\r\n", "upstream_not_http"),
                (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 200\r\n\r\n" + b"x" * 200, None),
            ):
                sink = Recorder()
                peer, _ = await asked(pool, server, sink, number=len(server.peers))
                peer.send(start)
                await turns(3)
                peer.send(rest)
                await sink.over()
                assert sink.code == code

    run(script())


@pytest.mark.parametrize("word", ["head", "body"])
def test_nothing_is_heard_after_abort_even_within_one_read(run: Run, word: str) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder(lambda said: exchange.abort() if said == word else None)
        peer, exchange = await asked(pool, server, sink)
        peer.send(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
        await peer.lost()
        await turns(5)
        assert sink.words[-1] == word
        exchange.abort()

    run(with_pool(script))


def test_abort_before_the_answer(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder()
        peer, exchange = await asked(pool, server, sink)
        exchange.abort()
        assert pool.active == 0
        await peer.lost()
        assert sink.words == []

    run(with_pool(script))


def test_pause_inside_the_callback_holds_until_resume(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder(lambda said: exchange.pause() if len(sink.pieces) == 1 else None)
        peer, exchange = await asked(pool, server, sink)
        peer.send(CHUNKED + b"2\r\nab\r\n")
        await sink.until(lambda: bool(sink.pieces))
        exchange.pause()
        peer.send(b"2\r\ncd\r\n")
        peer.end()
        await turns(20)
        assert sink.words == ["head", "body"]
        exchange.resume()
        exchange.resume()
        await sink.over()
        assert (sink.body, sink.code) == (b"abcd", "upstream_truncated")

    run(with_pool(script))


def test_connection_paused_in_its_last_read_is_used_again(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder(lambda said: exchange.pause())
        peer, exchange = await asked(pool, server, sink)
        peer.send(OK)
        await sink.over()
        again = Recorder()
        await asked(pool, server, again)
        peer.send(OK)
        await again.over()
        assert (again.body, len(server.peers)) == (b"ok", 1)

    run(with_pool(script))


@pytest.mark.parametrize("word", ["head", "body"])
def test_an_exception_of_the_sink_reaches_the_loop_and_drops_the_connection(run: Run, word: str) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        reported: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))

        def react(said: str) -> None:
            if said == word:
                raise LookupError("a bug of the sink")

        sink = Recorder(react)
        peer, _ = await asked(pool, server, sink)
        peer.send(OK)
        await peer.lost()
        await turns(3)
        assert [type(one) for one in reported] == [LookupError]
        assert sink.words[-1] == word
        assert (pool.active, pool.idle) == (0, 0)

    run(with_pool(script))


def test_drain_takes_the_rest_in_silence(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder()
        peer, exchange = await asked(pool, server, sink)
        peer.send(CHUNKED + b"2\r\nok\r\n")
        await sink.until(lambda: bool(sink.pieces))
        exchange.pause()
        exchange.drain()
        exchange.drain()
        peer.send(b"2\r\nno\r\n0\r\n\r\n")
        again = Recorder()
        while pool.idle == 0:
            await turns(1)
        await asked(pool, server, again)
        peer.send(OK)
        await again.over()
        assert (sink.body, again.body, len(server.peers)) == (b"ok", b"ok", 1)

    run(with_pool(script))


def test_the_clock_of_a_drain_stops_with_its_exchange(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.upstream.exchange.DRAIN_S", 0.01)

    async def script(pool: UpstreamPool, server: Server) -> None:
        peer, exchange = await asked(pool, server, Recorder())
        exchange.drain()
        exchange.drain()
        peer.send(OK)
        while pool.idle == 0:
            await turns(1)
        again = Recorder()
        await asked(pool, server, again)
        await asyncio.sleep(0.03)  # longer than the drain's clock, which must not strike
        peer.send(OK)
        await again.over()
        assert (again.body, len(server.peers)) == (b"ok", 1)

    run(with_pool(script))


def test_drain_is_bounded_in_bytes_and_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder()
        peer, exchange = await asked(pool, server, sink)
        exchange.drain()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"x" * 300_000)
        await peer.lost()
        monkeypatch.setattr("sidecar.upstream.exchange.DRAIN_S", 0.01)
        peer, exchange = await asked(pool, server, sink, number=1)
        exchange.drain()
        await peer.lost()
        assert (sink.words, pool.active) == ([], 0)

    run(with_pool(script))


@pytest.mark.parametrize("chunked", [True, False])
def test_streamed_request_body(run: Run, chunked: bool) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder()
        peer, exchange = await asked(pool, server, sink, method=b"POST", body=None, chunked=chunked)
        exchange.write_body(b"")
        exchange.write_body(b"abc")
        exchange.write_body(b"de")
        exchange.end_body()
        expected = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n" if chunked else b"abcde"
        await peer.until(lambda: bytes(peer.data) == expected)
        peer.send(OK)
        await sink.over()
        assert pool.idle == 1
        exchange.write_body(b"late")
        exchange.end_body()
        await turns(3)
        assert bytes(peer.data) == expected

    run(with_pool(script))


def test_answer_before_the_request_is_whole(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder()
        peer, exchange = await asked(pool, server, sink, method=b"POST", body=None, chunked=True)
        peer.transport.pause_reading()
        while is_writable(exchange):
            exchange.write_body(b"x" * 100_000)
        waiting = asyncio.create_task(exchange.wait_writable())
        await turns(2)
        assert not waiting.done()
        peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await waiting
        assert (sink.words, pool.idle, pool.active) == (["head", "end"], 0, 0)
        exchange.write_body(b"late")
        await exchange.wait_writable()

    run(with_pool(script))


def test_flow_control_of_the_request_body(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder()
        peer, exchange = await asked(pool, server, sink, method=b"POST", body=None)
        assert exchange.is_writable
        peer.transport.pause_reading()
        sent = 0
        while is_writable(exchange):
            exchange.write_body(b"x" * 100_000)
            sent += 100_000
        waiting = asyncio.create_task(exchange.wait_writable())
        await turns(2)
        assert not waiting.done()
        peer.transport.resume_reading()
        await waiting
        assert is_writable(exchange)
        exchange.end_body()
        await peer.until(lambda: len(peer.data) == sent)
        peer.transport.pause_reading()
        peer.reset()
        await sink.over()
        await exchange.wait_writable()
        assert sink.code == "upstream_reset"

    run(with_pool(script))


@pytest.mark.parametrize("size", [10, 300_000])
def test_whole_request_body(run: Run, size: int) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        sink = Recorder()
        peer, _ = await asked(pool, server, sink, method=b"POST", body=b"x" * size)
        await peer.until(lambda: len(peer.data) == size)
        peer.send(OK)
        await sink.over()
        assert pool.idle == 1

    run(with_pool(script))


def test_a_connection_lost_before_it_was_sent_on_fails_after_send_returned(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        connection = await pool.dial()
        peer: Peer = await server.peer()
        peer.end()
        while not connection.is_closing:
            await turns(1)
        sink = Recorder()
        send(connection, sink)
        assert sink.words == []
        await sink.over()
        assert (sink.code, sink.may_resend) == ("upstream_reset", False)
        ignored = Recorder()
        send(connection, ignored).abort()
        await turns(3)
        assert ignored.words == []

    run(with_pool(script))


def test_nothing_of_a_connection_says_a_header(run: Run) -> None:
    async def script(pool: UpstreamPool, server: Server) -> None:
        connection = await pool.dial()
        assert repr(connection) == "<Connection idle>"
        exchange = connection.send(
            Recorder(),
            method=b"GET",
            head=b"GET / HTTP/1.1\r\nAuthorization: secret\r\n\r\n",
            body=b"",
            chunked_body=False,
        )
        assert repr(connection) == "<Connection busy>"
        for one in (connection, exchange, pool):
            assert "secret" not in f"{one!r}{one}"
        exchange.abort()
        assert repr(connection) == "<Connection closed>"

    run(with_pool(script))
