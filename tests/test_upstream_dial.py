"""Dialling: names, addresses, Unix sockets, TLS, proxies, deadlines, and what each failure is called."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import socket
import ssl
import weakref
from pathlib import Path
from typing import Any

import pytest
import trustme

from sidecar.errors import Failure
from sidecar.settings import Address, UpstreamTls
from sidecar.upstream import UpstreamPool
from sidecar.upstream.sockets import RECEIVE_BUFFER_BYTES, bound_descriptor
from tests.upstream_support import (
    CHUNKED,
    OK,
    Peer,
    Recorder,
    Run,
    asked,
    each_loop,
    open_files,
    pooled,
    raises,
    send,
    serving,
    turns,
    upstream_at,
)

LOGIN = "user:p%40ss"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    certificate.configure_cert(context)
    return context


def resolve_to(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """The running loop's look-up of llm.test gives these rows, raises this, or awaits this."""

    async def getaddrinfo(host: str, port: int, **_options: object) -> Any:
        if host != "llm.test":
            # uvloop's sock_connect passes the address through here once more.
            return [row(host, port)]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
        return answer

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)


def row(host: str, port: int) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = (host, port, 0, 0) if ":" in host else (host, port)
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def answers(pool: UpstreamPool, peer: Peer, sink: Recorder) -> None:
    peer.send(OK)
    await sink.over()
    assert (sink.body, pool.idle) == (b"ok", 1)


@each_loop
def test_socket_options(run: Run) -> None:
    async def script() -> None:
        async with serving() as server, pooled(upstream_at(server.address)) as pool:
            connection = await pool.dial()
            held = connection._transport
            assert held is not None
            option = held.get_extra_info("socket").getsockopt
            assert option(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * RECEIVE_BUFFER_BYTES
            assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert held.get_write_buffer_limits()[1] == 64 * 1024

    run(script())


@pytest.mark.parametrize("is_local", [True, False])
def test_only_a_peer_elsewhere_is_probed(is_local: bool) -> None:
    with socket.socket() as sock:
        bound_descriptor(sock.fileno(), RECEIVE_BUFFER_BYTES, is_local=is_local)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * RECEIVE_BUFFER_BYTES
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is not is_local
        assert (sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30) is not is_local


@each_loop
def test_unix_socket(run: Run, tmp_path: Path) -> None:
    async def script() -> None:
        path = str(tmp_path / "s")
        async with serving(unix_path=path) as server, pooled(upstream_at(Address(path=path))) as pool:
            sink = Recorder()
            peer, _ = await asked(pool, server, sink)
            await answers(pool, peer, sink)
        async with pooled(upstream_at(Address(path=str(tmp_path / "none")))) as pool:
            failure = await raises("upstream_refused", pool.dial())
            assert "No such file" in failure.message

    run(script())


@each_loop
def test_a_name_is_resolved_and_its_addresses_tried_in_turn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        async with serving() as server:
            port = server.address.port
            resolve_to(
                monkeypatch, [row("::1", closed_port()), row("127.0.0.2", closed_port()), row("127.0.0.1", port)]
            )
            async with pooled(upstream_at(Address("llm.test", port))) as pool:
                sink = Recorder()
                peer, _ = await asked(pool, server, sink)
                await answers(pool, peer, sink)

    run(script())


@each_loop
def test_an_address_that_never_answers_does_not_hold_up_the_next(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        real = loop.sock_connect

        async def sock_connect(sock: socket.socket, address: Any) -> None:
            if address[0] == "127.0.0.9":
                await asyncio.Event().wait()
            await real(sock, address)

        monkeypatch.setattr(loop, "sock_connect", sock_connect, raising=False)
        monkeypatch.setattr("sidecar.upstream.dial.HAPPY_EYEBALLS_DELAY_S", 0.01)
        async with serving() as server:
            port = server.address.port
            resolve_to(monkeypatch, [row("127.0.0.9", port), row("127.0.0.1", port)])
            before = open_files()
            async with pooled(upstream_at(Address("llm.test", port))) as pool:
                (await pool.dial()).close()
                await (await server.peer()).lost()
            await turns(5)
            assert open_files() == before

    run(script())


@each_loop
def test_failures_before_a_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        before = open_files()
        async with pooled(upstream_at(Address("127.0.0.1", closed_port()))) as pool:
            failure = await raises("upstream_refused", pool.dial())
            assert "Connection refused" in failure.message
        async with pooled(upstream_at(Address("x" * 70, 80))) as pool:
            await raises("upstream_dns", pool.dial())
        resolve_to(monkeypatch, [row("127.0.0.1", closed_port()), row("::1", closed_port())])
        async with pooled(upstream_at(Address("llm.test", 80))) as pool:
            await raises("upstream_refused", pool.dial())
        resolve_to(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        async with pooled(upstream_at(Address("llm.test", 80))) as pool:
            failure = await raises("upstream_dns", pool.dial())
            assert failure.message == "upstream llm: cannot resolve llm.test: Name or service not known"
        resolve_to(monkeypatch, asyncio.Event())
        async with pooled(upstream_at(Address("llm.test", 80), connect_s=0.02)) as pool:
            await raises("upstream_connect_timeout", pool.dial())
        await turns(3)
        assert open_files() <= before + 1

    run(script())


@each_loop
def test_a_dial_may_be_cancelled_at_any_turn(run: Run, authority: trustme.CA, ca_file: str) -> None:
    async def script() -> None:
        tls = server_context(authority.issue_cert("127.0.0.1"))
        secure = UpstreamTls(ca_file=ca_file)
        async with serving() as plain, serving(tls=tls) as encrypted:
            for upstream in (
                upstream_at(plain.address),
                upstream_at(encrypted.address, scheme="https", tls=secure),
            ):
                async with pooled(upstream) as pool:
                    (await pool.dial()).close()
                    await turns(5)
                    tasks = len(asyncio.all_tasks())
                    for count in range(25):
                        dialling = asyncio.create_task(pool.dial())
                        await turns(count)
                        dialling.cancel()
                        await asyncio.wait([dialling])
                        if not dialling.cancelled():
                            dialling.result().close()
                        assert pool.active == 0
                    await turns(5)
                    assert len(asyncio.all_tasks()) == tasks
            for peer in [*plain.peers, *encrypted.peers]:
                await peer.lost()

    before = open_files()
    run(script())
    assert open_files() <= before + 1


@each_loop
def test_tls(run: Run, authority: trustme.CA, ca_file: str) -> None:
    async def script() -> None:
        context = server_context(authority.issue_cert("127.0.0.1"))
        async with serving(tls=context) as server:
            upstream = upstream_at(server.address, scheme="https", tls=UpstreamTls(ca_file=ca_file))
            async with pooled(upstream) as pool:
                sink = Recorder()
                peer, _ = await asked(pool, server, sink)
                assert peer.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
                await answers(pool, peer, sink)
                again = Recorder()
                await asked(pool, server, again)
                await answers(pool, peer, again)
                assert len(server.peers) == 1
                third = Recorder()
                _, exchange = await asked(pool, server, third)
                peer.send(CHUNKED + b"2\r\nok\r\n")
                await third.until(lambda: bool(third.pieces))
                exchange.abort()
                await peer.lost()
                fourth = Recorder()
                peer, _ = await asked(pool, server, fourth, number=1)
                peer.send(b"HTTP/1.1 200 OK\r\n\r\nall")
                await fourth.until(lambda: bool(fourth.pieces))
                peer.end()
                await fourth.over()
                assert (fourth.body, fourth.words[-1]) == (b"all", "end")
                fifth = Recorder()
                peer, _ = await asked(pool, server, fifth, number=2)
                peer.reset()
                await fifth.over()
                assert fifth.code == "upstream_reset"

    run(script())


@each_loop
def test_tls_failures_say_what_is_wrong(run: Run, authority: trustme.CA, ca_file: str) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    cases = [
        (authority.issue_cert("127.0.0.1"), UpstreamTls(), "unable to get local issuer certificate"),
        (authority.issue_cert("elsewhere.test"), UpstreamTls(ca_file=ca_file), "mismatch"),
        (authority.issue_cert("127.0.0.1", not_after=past), UpstreamTls(ca_file=ca_file), "expired"),
    ]

    async def script() -> None:
        for certificate, tls, words in cases:
            async with (
                serving(tls=server_context(certificate)) as server,
                pooled(upstream_at(server.address, scheme="https", tls=tls)) as pool,
            ):
                failure = await raises("upstream_tls", pool.dial())
                assert words in failure.message
                assert "127.0.0.1" in failure.message

    before = open_files()
    run(script())
    assert open_files() <= before + 1


@each_loop
def test_tls_name_and_verification_can_be_told(run: Run, authority: trustme.CA, ca_file: str) -> None:
    async def script() -> None:
        for tls in (UpstreamTls(ca_file=ca_file, server_name="llm.test"), UpstreamTls(verify=False)):
            names: list[str | None] = []
            context = server_context(authority.issue_cert("llm.test"))
            context.sni_callback = lambda _object, name, _context, names=names: names.append(name)
            async with (
                serving(tls=context) as server,
                pooled(upstream_at(server.address, scheme="https", tls=tls)) as pool,
            ):
                (await pool.dial()).close()
            assert names == ([tls.server_name] if tls.server_name else [None])

    run(script())


@each_loop
def test_a_plain_or_silent_or_closing_server_on_a_tls_port(run: Run, ca_file: str) -> None:
    async def script() -> None:
        async with serving() as server:
            upstream = upstream_at(server.address, scheme="https", tls=UpstreamTls(ca_file=ca_file), connect_s=0.3)
            async with pooled(upstream) as pool:
                for number, (act, code) in enumerate(
                    [("http", "upstream_tls"), ("end", "upstream_reset"), ("reset", "upstream_reset")]
                ):
                    dialling = asyncio.create_task(pool.dial())
                    peer = await server.peer(number)
                    await peer.received()
                    if act == "http":
                        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    elif act == "end":
                        peer.end()
                    else:
                        peer.reset()
                    await raises(code, dialling)
                await raises("upstream_connect_timeout", pool.dial())
                await server.peers[3].lost()

    before = open_files()
    run(script())
    assert open_files() <= before + 1


def test_a_ca_file_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for path, words in ((tmp_path / "none.pem", "No such file"), (empty, "no valid certificate")):
        upstream = upstream_at(Address("h", 443), scheme="https", tls=UpstreamTls(ca_file=str(path)))
        with pytest.raises(ValueError, match=words) as caught:
            UpstreamPool(upstream, environ={})
        assert str(path) in str(caught.value)


@each_loop
def test_https_through_a_proxy_is_a_tunnel(run: Run, authority: trustme.CA, ca_file: str) -> None:
    async def script() -> None:
        context = server_context(authority.issue_cert("llm.test"))
        async with serving() as server:
            upstream = upstream_at(
                Address("llm.test", 443),
                scheme="https",
                tls=UpstreamTls(ca_file=ca_file),
                proxy=f"http://{LOGIN}@{server.address}",
            )
            async with pooled(upstream) as pool:
                assert not pool.absolute_form
                dialling = asyncio.create_task(pool.dial())
                peer = await server.peer()
                assert await peer.request() == (
                    b"CONNECT llm.test:443 HTTP/1.1\r\nHost: llm.test:443\r\n"
                    b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n\r\n"
                )
                peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                loop = asyncio.get_running_loop()
                inner = await loop.start_tls(peer.transport, peer, context, server_side=True)
                peer.transport = inner
                connection = await dialling
                sink = Recorder()
                head = pool.request_head(b"GET", b"/v1/models", [(b"Host", b"llm.test")])
                assert b"Proxy" not in head
                connection.send(sink, method=b"GET", head=head, body=b"", chunked_body=False)
                assert await peer.request() == b"GET /v1/models HTTP/1.1\r\nHost: llm.test\r\n\r\n"
                await answers(pool, peer, sink)

    run(script())


@each_loop
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nwho", "status 407"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "status 502"),
        (b"SSH-2.0\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nearly", "before the tunnel"),
        (b"x" * 20_000, "no answer"),
        (b"", "no answer"),
    ],
)
def test_a_proxy_that_opens_no_tunnel(run: Run, answer: bytes, words: str) -> None:
    async def script() -> None:
        async with serving() as server:
            proxy = f"http://{LOGIN}@{server.address}"
            async with pooled(upstream_at(Address("llm.test", 443), scheme="https", proxy=proxy)) as pool:
                dialling = asyncio.create_task(pool.dial())
                peer = await server.peer()
                await peer.request()
                peer.send(answer)
                if not answer:
                    peer.end()
                failure = await raises("upstream_refused", dialling)
                assert words in failure.message
                for secret in ("user", "p@ss", "p%40ss", "dXNlcjpwQHNz", "early", "who"):
                    assert secret not in f"{failure!r} {failure}"
                await peer.lost()

    run(script())


@each_loop
def test_http_through_a_proxy_is_absolute_form(run: Run) -> None:
    async def script() -> None:
        async with serving() as server:
            upstream = upstream_at(Address("llm.test", 8000), authority="llm.test:8000")
            environ = {"http_proxy": f"http://{LOGIN}@{server.address}"}
            async with pooled(upstream, environ=environ) as pool:
                assert pool.absolute_form
                connection, sink = await pool.dial(), Recorder()
                head = pool.request_head(b"GET", b"/v1/models", [(b"Host", b"llm.test:8000")])
                connection.send(sink, method=b"GET", head=head, body=b"", chunked_body=False)
                peer = await server.peer()
                assert await peer.request() == (
                    b"GET http://llm.test:8000/v1/models HTTP/1.1\r\nHost: llm.test:8000\r\n"
                    b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n\r\n"
                )
                await answers(pool, peer, sink)

    run(script())


@each_loop
def test_an_unreachable_proxy_is_named_without_its_credentials(run: Run) -> None:
    async def script() -> None:
        port = closed_port()
        proxy = f"http://{LOGIN}@127.0.0.1:{port}"
        async with pooled(upstream_at(Address("llm.test", 443), scheme="https", proxy=proxy)) as pool:
            failure: Failure = await raises("upstream_refused", pool.dial())
            assert failure.message == f"upstream llm: cannot connect to proxy 127.0.0.1:{port}: Connection refused"

    run(script())


@each_loop
@pytest.mark.parametrize("word", ["head", "body"])
def test_abort_inside_a_tls_callback_is_heard_by_the_peer_and_frees_everything(
    run: Run, word: str, authority: trustme.CA, ca_file: str
) -> None:
    async def script() -> None:
        context = server_context(authority.issue_cert("127.0.0.1"))
        async with (
            serving(tls=context) as server,
            pooled(upstream_at(server.address, scheme="https", tls=UpstreamTls(ca_file=ca_file))) as pool,
        ):
            sink = Recorder(lambda said: exchange.abort() if said == word else None)
            connection = await pool.dial()
            gone = weakref.ref(connection)
            exchange = send(connection, sink)
            del connection
            peer = await server.peer()
            peer.send(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
            await peer.lost()
            await turns(5)
            assert sink.words[-1] == word
            assert gone() is None

    gc.disable()
    try:
        run(script())
    finally:
        gc.enable()


@each_loop
def test_a_proxy_that_resets(run: Run) -> None:
    async def script() -> None:
        async with serving() as server:
            proxy = f"http://{server.address}"
            async with pooled(upstream_at(Address("llm.test", 443), scheme="https", proxy=proxy)) as pool:
                dialling = asyncio.create_task(pool.dial())
                peer = await server.peer()
                await peer.request()
                peer.reset()
                await raises("upstream_refused", dialling)

    run(script())
