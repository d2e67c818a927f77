"""Everything that is no stream: relayed in both directions, with its framing, whatever the method and version."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.errors import Outcome
from sidecar.settings import MIB, Limits
from tests.app_support import (
    CHAT,
    Received,
    answering,
    ask,
    asked,
    before,
    chunk,
    client_of,
    on_uvloop,
    openai_frames,
    plain,
    request,
    stream,
)
from tests.upstream_support import serving, turns

TYPED = ("X-Stream-Format", "typed")
MODELS = plain(b'{"object":"list","data":[]}')


@pytest.mark.parametrize("headers", [[], [TYPED], [("X-Stream-Format", "native")]])
@on_uvloop
async def test_list_of_models(headers: list[tuple[str, str]]) -> None:
    async with answering(MODELS) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("GET", "/v1/models?limit=2", headers=headers))
        assert (reply.status, reply.json()) == (200, {"object": "list", "data": []})
        assert reply.header("X-Stream-Format") == "native"
        assert reply.header("X-Stream-Id")
        received = upstream.received[0]
        assert (received.method, received.target, received.body) == ("GET", "/v1/models?limit=2", b"")
        assert (received.header("Content-Length"), received.header("Transfer-Encoding")) == (None, None)
        assert (received.header("Host"), received.header("Accept-Encoding")) == ("llm.test", "identity")
        assert received.header("X-Stream-Format") is None


@on_uvloop
async def test_plain_answer_to_a_typed_request_is_native() -> None:
    answer = plain(b'{"id": "c1",   "choices": []}')
    async with answering(answer) as upstream, before(upstream.address, route={"format": "typed"}) as app:
        reply = await asked(app, ask(stream=False))
        assert (reply.body, reply.header("X-Stream-Format")) == (b'{"id": "c1",   "choices": []}', "native")
        assert reply.header("Content-Type") == "application/json"


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
@on_uvloop
async def test_head_request_leaves_the_connection_in_step(status: str) -> None:
    def answer(received: Received) -> bytes:
        whole = plain(b"12345", status)
        return whole.removesuffix(b"12345") if received.method == "HEAD" else whole

    async with answering(answer) as upstream, before(upstream.address) as app, client_of(app) as client:
        for _ in range(2):
            reply = await client.ask(request("HEAD", "/v1/models"), to_head=True)
            assert (reply.status, reply.header("Content-Length")) == (int(status[:3]), "5")
            assert (await client.ask(request("GET", "/v1/models"))).body == b"12345"
        assert app.pool("llm").idle == 1


@on_uvloop
async def test_own_answer_to_head_has_no_body() -> None:
    async with answering(MODELS) as upstream, before(upstream.address) as app, client_of(app) as client:
        bad = request("HEAD", "/v1/models", headers=[("X-Stream-Format", "no")])
        reply = await client.ask(bad, to_head=True)
        assert (reply.status, int(reply.header("Content-Length") or "") > 0) == (400, True)
        assert (await client.ask(request("GET", "/v1/models"))).status == 200


@on_uvloop
async def test_http_1_0_client_gets_a_stream_until_eof() -> None:
    frames = openai_frames("a", "b")
    async with answering(stream(frames)) as upstream, before(upstream.address) as app:
        for headers in ([], [TYPED]):
            async with client_of(app) as client:
                reply = await client.ask(ask(headers=headers, version="1.0"))
                assert (reply.status, reply.header("Transfer-Encoding")) == (200, None)
                assert reply.header("Connection") == "close"
                assert (reply.body == b"".join(frames)) is not bool(headers)
                assert reply.body.endswith(b"\n\n")
        assert app.streams.outcomes == {Outcome.COMPLETED: 2}


@on_uvloop
async def test_http_1_0_client_keeps_its_connection_for_a_plain_answer() -> None:
    async with answering(MODELS) as upstream, before(upstream.address) as app, client_of(app) as client:
        kept = request("GET", "/v1/models", headers=[("Connection", "keep-alive")], version="1.0")
        for _ in range(2):
            assert (await client.ask(kept)).header("Connection") == "keep-alive"
        assert (await client.ask(request("GET", "/", version="1.0"))).header("Connection") == "close"
        assert await client.rest() == b""


@on_uvloop
async def test_http_1_0_client_gets_a_chunked_answer_unchunked() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with (
        answering([head, chunk(b"[1,"), chunk(b"2]"), b"0\r\n\r\n"]) as upstream,
        before(upstream.address) as app,
    ):
        assert (await asked(app, request("GET", "/", version="1.0"))).body == b"[1,2]"
        reply = await asked(app, request("GET", "/"))
        assert (reply.body, reply.header("Transfer-Encoding")) == (b"[1,2]", "chunked")


@on_uvloop
async def test_multipart_upload_streams() -> None:
    """The upstream has the first part before the client has sent the last."""
    headers = [("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", "11")]
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(request("POST", "/v1/audio/transcriptions", headers=headers) + b"first")
        peer = await server.peer()
        head = await peer.request()
        assert b"Content-Length: 11\r\n" in head
        assert b"Content-Type: multipart/form-data; boundary=x\r\n" in head
        await peer.until(lambda: bytes(peer.data) == b"first")
        await client.send(b"second")
        await peer.until(lambda: bytes(peer.data) == b"firstsecond")
        peer.send(plain(b"{}"))
        assert (await client.reply()).body == b"{}"


@on_uvloop
async def test_chunked_upload_streams() -> None:
    headers = [("Content-Type", "application/octet-stream"), ("Transfer-Encoding", "chunked")]
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(request("PUT", "/files/1", headers=headers) + chunk(b"ab"))
        peer = await server.peer()
        assert b"Transfer-Encoding: chunked\r\n" in await peer.request()
        await peer.until(lambda: bytes(peer.data) == chunk(b"ab"))
        await client.send(chunk(b"c") + b"0\r\n\r\n")
        await peer.until(lambda: bytes(peer.data) == chunk(b"ab") + chunk(b"c") + b"0\r\n\r\n")
        peer.send(plain(b"{}"))
        assert (await client.reply()).status == 200


@on_uvloop
async def test_large_upload_waits_for_a_slow_upstream() -> None:
    size = 30 * MIB
    route = {"limits": Limits(max_body_bytes=size)}
    head = request("POST", "/up", headers=[("Content-Type", "x/y"), ("Content-Length", str(size))])
    async with serving() as server, before(server.address, route=route) as app, client_of(app) as client:
        client.writer.write(head + bytes(size))
        peer = await server.peer()
        await peer.request()
        peer.transport.pause_reading()
        await turns(50)
        left = client.writer.transport.get_write_buffer_size()
        assert left > size // 2  # held back at its source, not in the sidecar
        assert app.streams.buffered_bytes == 0
        peer.transport.resume_reading()
        await peer.until(lambda: len(peer.data) == size)
        peer.send(plain(b"{}"))
        assert (await client.reply()).status == 200


@on_uvloop
async def test_upload_over_the_limit_is_cut_off() -> None:
    route = {"limits": Limits(max_body_bytes=1000)}
    headers = [("Content-Type", "x/y"), ("Transfer-Encoding", "chunked")]
    async with serving() as server, before(server.address, route=route) as app, client_of(app) as client:
        await client.send(request("POST", "/up", headers=headers) + chunk(bytes(600)))
        peer = await server.peer()
        await client.send(chunk(bytes(600)))
        assert (await client.reply()).json()["code"] == "body_too_large"
        await peer.lost()
        assert b"0\r\n\r\n" not in bytes(peer.data)[-5:]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
@on_uvloop
async def test_other_methods(method: str) -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        reply = await asked(app, request(method, "/v1/files/1", b'{"a":1}', [("Content-Type", "application/json")]))
        assert (reply.status, upstream.received[0].method, upstream.received[0].body) == (200, method, b'{"a":1}')


@on_uvloop
async def test_delete_without_a_body() -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        assert (await asked(app, request("DELETE", "/v1/files/1"))).status == 200
        assert upstream.received[0].header("Content-Length") is None


@on_uvloop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with (
        answering(lambda received: plain(received.target.encode())) as upstream,
        before(upstream.address) as app,
        client_of(app) as client,
    ):
        await client.send(b"".join(request("GET", f"/{number}") for number in range(20)))
        assert [(await client.reply()).body for _ in range(20)] == [b"/%d" % number for number in range(20)]


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
@on_uvloop
async def test_expect_continue(content_type: str) -> None:
    headers = [("Content-Type", content_type), ("Content-Length", "2"), ("Expect", "100-continue")]
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app, client_of(app) as client:
        interim = await client.ask(request("POST", "/any", headers=headers))
        assert (interim.status, interim.headers) == (100, [])
        assert (await client.ask(b"{}")).status == 200
        assert (upstream.received[0].body, upstream.received[0].header("Expect")) == (b"{}", None)


@on_uvloop
async def test_expect_continue_is_not_said_to_what_is_refused() -> None:
    headers = [("Content-Type", "application/json"), ("Content-Length", str(2**40)), ("Expect", "100-continue")]
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        assert (await asked(app, request("POST", CHAT, headers=headers))).status == 413


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
@on_uvloop
async def test_redirect_is_passed_on_unfollowed(status: str) -> None:
    answer = plain(b"moved", status, [("Location", "http://elsewhere.test/x"), ("X-Odd", "1")])
    async with answering(answer) as upstream, before(upstream.address) as app:
        reply = await asked(app, ask())
        assert (reply.status, reply.reason, reply.body) == (int(status[:3]), status[4:], b"moved")
        assert reply.header("Location") == "http://elsewhere.test/x"
        assert len(upstream.received) == 1


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@on_uvloop
async def test_answers_without_a_body(status: str) -> None:
    answer = f'HTTP/1.1 {status}\r\nETag: "a"\r\n\r\n'.encode()
    async with answering(answer) as upstream, before(upstream.address) as app, client_of(app) as client:
        for _ in range(3):
            reply = await client.ask(request("GET", "/"))
            assert (reply.status, reply.header("ETag")) == (int(status[:3]), '"a"')
            assert (reply.header("Content-Length"), reply.header("Transfer-Encoding")) == (None, None)
        assert app.streams.outcomes == {Outcome.COMPLETED: 3}


@pytest.mark.parametrize("path", [CHAT, "/other"])
@on_uvloop
async def test_websocket_upgrade_is_not_supported(path: str) -> None:
    headers = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        reply = await asked(app, request("GET", path, headers=headers))
        body = reply.json()
        assert (reply.status, body.get("code") or body["error"]["code"]) == (501, "websocket_unsupported")
        assert upstream.received == []


@on_uvloop
async def test_interim_answers_of_the_upstream_are_not_the_answer() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with answering(early + plain(b"{}")) as upstream, before(upstream.address) as app, client_of(app) as client:
        assert (await client.ask(request("GET", "/"))).status == 200
        assert (await client.ask(request("GET", "/"))).status == 200


@on_uvloop
async def test_connections_do_not_mix() -> None:
    """Many clients at once, each with its own answer."""
    async with answering(lambda received: plain(received.body)) as upstream, before(upstream.address) as app:
        bodies = [b'{"number":%d}' % number for number in range(100)]
        headers = [("Content-Type", "application/json")]
        replies = await asyncio.gather(*(asked(app, request("POST", "/echo", body, headers)) for body in bodies))
        assert [reply.body for reply in replies] == bodies
