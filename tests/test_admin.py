"""The admin port, the token of either port, and what browsers are told."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest

from sidecar.app import App
from sidecar.settings import Cors, SecretSource
from tests.app_support import (
    CHAT,
    SSE_HEAD,
    Client,
    Reply,
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
)
from tests.departures import until
from tests.upstream_support import serving, turns

ENVIRON = {"TRAFFIC": "traffic-token", "ADMIN": "admin-token"}
PAGE = "https://app.example.com"


async def admin(app: App, path: str, token: str = "") -> Reply:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.admin_port)
    headers = [("Authorization", f"Bearer {token}")] if token else []
    try:
        return await Client(reader, writer).ask(request("GET", path, headers=headers))
    finally:
        writer.transport.abort()
        await turns(2)


async def streams(app: App) -> list[dict[str, Any]]:
    body = (await admin(app, "/streams")).json()
    assert body["active"] == len(body["streams"])
    found: list[dict[str, Any]] = body["streams"]
    return found


@on_uvloop
async def test_probes() -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        for path in ("/livez", "/readyz"):
            reply = await admin(app, path)
            assert (reply.status, reply.body) == (200, b"ok\n")
        assert (await admin(app, "/nothing")).status == 404
        assert await streams(app) == []


@on_uvloop
async def test_liveness_fails_while_the_data_loop_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        monkeypatch.setattr(app, "silent_s", lambda: 10.5)
        reply = await admin(app, "/livez")
        assert (reply.status, reply.body) == (503, b"the data loop has not turned for 10 s\n")


@on_uvloop
async def test_liveness_sees_a_loop_that_really_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.admin.STUCK_AFTER_S", 0.3)
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        statuses: list[int] = []
        asker = threading.Thread(target=lambda: statuses.append(status_when_it_fails(app.admin_port)))
        asker.start()
        asker.join()  # the data loop stands here, in this very thread
        assert statuses == [503]
        await until(lambda: app.silent_s() < 0.3)
        assert (await admin(app, "/livez")).status == 200


def status_when_it_fails(port: int) -> int:
    """Asks /livez until it is no longer 200, from outside the loop."""
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5):
                pass
        except urllib.error.HTTPError as error:
            return error.code


@on_uvloop
async def test_readiness_ends_with_the_traffic_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        monkeypatch.setattr(app, "_server", None)
        reply = await admin(app, "/readyz")
        monkeypatch.undo()
        assert (reply.status, reply.body) == (503, b"not accepting requests\n")


@on_uvloop
async def test_streams_through_their_phases() -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(ask(headers=[("X-Stream-Format", "typed")]))
        peer = await server.peer()
        await peer.request()
        (waiting,) = await streams(app)
        assert set(waiting) == {
            "stream",
            "route",
            "upstream",
            "model",
            "format",
            "phase",
            "age_s",
            "content_events",
            "bytes_buffered",
            "lag_bytes",
        }
        assert (waiting["phase"], waiting["content_events"]) == ("waiting", 0)
        half = b"data: half a fra"
        peer.send(SSE_HEAD + chunk(b"".join(openai_frames("a", "b")[:2]) + half))
        head = await client.head()
        assert b"event: token" in (await client.chunk() or b"")
        (streaming,) = await streams(app)
        assert streaming["stream"] == head.header("X-Stream-Id") == waiting["stream"]
        assert (streaming["route"], streaming["upstream"], streaming["model"]) == ("all", "llm", "m")
        assert (streaming["phase"], streaming["format"], streaming["content_events"]) == ("streaming", "typed", 2)
        assert (streaming["bytes_buffered"], streaming["lag_bytes"]) == (len(half), 0)
        assert 0 <= waiting["age_s"] <= streaming["age_s"] < 10
        peer.send(chunk(b"\n\n" + openai_frames("c")[-1]) + b"0\r\n\r\n")
        while await client.chunk():
            pass
        assert await streams(app) == []


@on_uvloop
async def test_admin_token() -> None:
    auth = {"auth": SecretSource(env="TRAFFIC"), "admin_auth": SecretSource(env="ADMIN")}
    async with answering(plain(b"{}")) as upstream, before(upstream.address, environ=ENVIRON, **auth) as app:
        for token in ("", "wrong", "traffic-token", "admin-token-and-more"):
            reply = await admin(app, "/streams", token)
            assert (reply.status, reply.header("WWW-Authenticate")) == (401, "Bearer")
            assert reply.json() == {"error": "unauthorized"}
        assert (await admin(app, "/streams", "admin-token")).status == 200
        assert (await admin(app, "/livez")).status == (await admin(app, "/readyz")).status == 200


@on_uvloop
async def test_traffic_token() -> None:
    auth = SecretSource(env="TRAFFIC")
    async with answering(plain(b"{}")) as upstream, before(upstream.address, environ=ENVIRON, auth=auth) as app:
        for value in ("", "Bearer wrong", "Bearer admin-token", "traffic-token", "Basic traffic-token", "Bearer "):
            reply = await asked(app, ask(headers=[("Authorization", value)] if value else []))
            assert (reply.status, reply.json()["error"]["code"]) == (401, "unauthorized")
            assert reply.json()["error"]["type"] == "authentication_error"
            assert reply.header("WWW-Authenticate") == "Bearer"
        assert upstream.received == []
        for value in ("Bearer traffic-token", "bearer  traffic-token"):
            assert (await asked(app, ask(headers=[("Authorization", value)]))).status == 200
        assert (await admin(app, "/streams")).status == 200


def preflight(origin: str, method: str = "POST", headers: str = "authorization, x-stream-format") -> bytes:
    asking = [
        ("Origin", origin),
        ("Access-Control-Request-Method", method),
        ("Access-Control-Request-Headers", headers),
    ]
    return request("OPTIONS", CHAT, headers=asking)


@on_uvloop
async def test_preflight() -> None:
    """It carries no token, by the Fetch standard, and is answered without the upstream."""
    options: dict[str, Any] = {"cors": Cors((PAGE,)), "auth": SecretSource(env="TRAFFIC"), "environ": ENVIRON}
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, **options) as app,
        client_of(app) as client,
    ):
        reply = await client.ask(preflight(PAGE))
        assert (reply.status, reply.body) == (204, b"")
        assert reply.header("Access-Control-Allow-Origin") == PAGE
        assert reply.header("Vary") == "Origin"
        assert reply.header("Access-Control-Allow-Headers") == "authorization, x-stream-format"
        assert "POST" in (reply.header("Access-Control-Allow-Methods") or "")
        for refused in (preflight("https://evil.example.com"), preflight(PAGE, "BREW")):
            reply = await client.ask(refused)
            assert (reply.status, reply.json()["error"]["code"]) == (403, "forbidden_origin")
        assert upstream.received == []


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
@on_uvloop
async def test_pages_may_read_answers_and_errors(origins: tuple[str, ...]) -> None:
    origin = ("Origin", PAGE)
    async with answering(plain(b"{}")) as upstream, before(upstream.address, cors=Cors(origins)) as app:
        for data in (ask(headers=[origin]), ask(headers=[origin, ("X-Stream-Format", "no")])):
            reply = await asked(app, data)
            assert reply.header("Access-Control-Allow-Origin") == (PAGE if origins == (PAGE,) else "*")
            assert reply.header("Access-Control-Expose-Headers") == (
                "X-Stream-Id, X-Stream-Format, Retry-After, RateLimit, RateLimit-Policy"
            )
        reply = await asked(app, ask(headers=[("Origin", "https://evil.example.com")]))
        assert reply.header("Access-Control-Allow-Origin") == (None if origins == (PAGE,) else "*")


@on_uvloop
async def test_without_cors_a_preflight_is_the_upstreams_business() -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        reply = await asked(app, preflight(PAGE))
        assert (reply.status, reply.header("Access-Control-Allow-Origin")) == (200, None)
        assert upstream.received[0].method == "OPTIONS"
