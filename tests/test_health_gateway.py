"""Health over the whole sidecar: circuits, checks, readiness, and an upstream that starts late."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import App
from sidecar.errors import Failure
from sidecar.health import Health, State
from sidecar.settings import Address, Circuit, Credentials, HealthCheck, SecretSource, Timeouts
from tests.app_support import (
    ANY_PORT,
    MESSAGES,
    Answers,
    Received,
    Reply,
    answering,
    ask,
    asked,
    before,
    client_of,
    on_uvloop,
    openai_frames,
    plain,
    stream,
)
from tests.departures import until
from tests.test_admin import admin
from tests.test_upstream_balanced import HOSTS, Names, site
from tests.upstream_support import Server, serving, turns

QUICK = Circuit(failures=2, backoff_s=0.05, max_backoff_s=0.1)
SLOW = Circuit(failures=2, backoff_s=60)
CHECK = HealthCheck(interval_s=0.02, timeout_s=0.2, unhealthy_after=2)
ANSWER = stream(openai_frames("hello"))


def health_of(app: App, name: str = "llm") -> Health:
    return app._gateway.plan.targets[name].health


def code_of(reply: Reply) -> str:
    return str(reply.json()["error"]["code"])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def by_target(health: Callable[[], bytes], rest: bytes | list[bytes] = ANSWER) -> Callable[[Received], Any]:
    return lambda received: health() if received.target == "/health" else rest


@on_uvloop
async def test_a_circuit_opens_and_one_stream_closes_it_again() -> None:
    async with serving() as server, before(server.address, upstream={"circuit": QUICK}) as app:
        health = health_of(app)
        for number in range(2):
            asking = asyncio.create_task(asked(app, ask()))
            (await server.peer(number)).reset()
            assert (await asking).status == 502
        assert health.state is State.OPEN
        health._until += 60
        reply = await asked(app, ask())
        assert (reply.status, code_of(reply), reply.header("Retry-After")) == (503, "upstream_unavailable", "30")
        assert len(server.peers) == 2
        health._until = 0
        trial = asyncio.create_task(asked(app, ask()))
        peer = await server.peer(2)
        await peer.request()
        reply = await asked(app, ask())
        assert (reply.status, reply.header("Retry-After"), len(server.peers)) == (503, "1", 3)
        for piece in ANSWER[:2]:
            peer.send(piece)
        await until(lambda: health.state is State.CLOSED)  # with its first content, long before its end
        for piece in ANSWER[2:]:
            peer.send(piece)
        assert (await trial).is_whole


@on_uvloop
async def test_a_trial_whose_client_leaves_gives_its_place_back() -> None:
    async with serving() as server, before(server.address, upstream={"circuit": QUICK}) as app:
        health = health_of(app)
        for number in range(2):
            asking = asyncio.create_task(asked(app, ask()))
            (await server.peer(number)).reset()
            await asking
        await until(lambda: health.is_up(app._clock()))
        async with client_of(app) as client:
            await client.send(ask())
            await (await server.peer(2)).request()
            assert health.state is State.TRIAL
        await until(lambda: health.state is State.HALF_OPEN)
        trial = asyncio.create_task(asked(app, ask()))
        peer = await server.peer(3)
        await peer.request()
        peer.send(b"".join(ANSWER))
        assert (await trial).status == 200


@on_uvloop
async def test_a_stream_that_ended_before_it_was_its_turn_takes_no_trial() -> None:
    async with (
        serving() as server,
        before(server.address, ANY_PORT, upstream={"circuit": QUICK}) as app,
        client_of(app) as client,
    ):
        second = health_of(app, "second")
        second.state = State.HALF_OPEN
        await client.send(ask())
        peer = await server.peer()
        await peer.request()
        (stream,) = app.streams
        # Both in one turn: the upstream's end, which leads to the next one, and the client's, which leads nowhere.
        stream.on_fail(Failure("upstream_reset", ""), may_resend=False)
        stream.client_gone()
        await until(lambda: not len(app.streams))
        await turns(3)
        assert (second.state, second._admitted) == (State.HALF_OPEN, 0)


@on_uvloop
async def test_streams_to_a_name_are_spread_over_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    async with site(HOSTS[:2]) as there:
        Names(monkeypatch, there.port, HOSTS[:2])
        async with before(Address("llm.test", there.port)) as app:
            assert app.streams.tasks == 1  # who looks the name up
            asking = [loop.create_task(asked(app, ask())) for _ in range(8)]
            for host in HOSTS[:2]:
                for number in range(4):
                    peer = await there.servers[host].peer(number)
                    await peer.request()
                    assert len(there.peers(host)) <= 4
            (shown,) = (await admin(app, "/upstreams")).json()["upstreams"]
            assert [(one["active"], one["idle"]) for one in shown["addresses"]] == [(4, 0), (4, 0)]
            for peer in (*there.peers(HOSTS[0]), *there.peers(HOSTS[1])):
                peer.send(b"".join(ANSWER))
            assert [reply.is_whole for reply in await asyncio.gather(*asking)] == [True] * 8
            assert (app.pool("llm").active, app.pool("llm").idle) == (0, 8)


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "529 Overloaded"])
@pytest.mark.parametrize("form", ["native", "typed"])
@on_uvloop
async def test_statuses_open_it(status: str, form: str) -> None:
    async with answering(plain(b"{}", status)) as upstream, before(upstream.address, upstream={"circuit": SLOW}) as app:
        for _ in range(2):
            reply = await asked(app, ask(headers=[("X-Stream-Format", form)]))
            assert reply.status == int(status[:3])
        reply = await asked(app, ask())
        assert (reply.status, code_of(reply)) == (503, "upstream_unavailable")
        assert len(upstream.received) == 2


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "429 Too Many Requests", "501 Not Implemented"])
@on_uvloop
async def test_other_answers_do_not(status: str) -> None:
    async with answering(plain(b"{}", status)) as upstream, before(upstream.address, upstream={"circuit": SLOW}) as app:
        for _ in range(5):
            assert (await asked(app, ask(stream=False))).status == int(status[:3])
        assert (len(upstream.received), health_of(app)._admitted) == (5, 0)


@on_uvloop
async def test_a_first_token_that_does_not_come_opens_it_though_the_head_came() -> None:
    late = {"circuit": SLOW, "timeouts": Timeouts(first_token_s=0.01)}
    async with answering([ANSWER[0]]) as upstream, before(upstream.address, upstream=late) as app:
        for _ in range(2):
            assert not (await asked(app, ask())).is_whole
        assert (await asked(app, ask())).status == 503
        assert len(upstream.received) == 2


@on_uvloop
async def test_the_next_upstream_is_asked_in_place_of_one_that_is_left_alone() -> None:
    async with (
        serving() as server,
        answering(ANSWER) as second,
        before(server.address, second.address, upstream={"circuit": SLOW}) as app,
    ):
        for number in range(2):
            asking = asyncio.create_task(asked(app, ask()))
            (await server.peer(number)).reset()
            assert (await asking).status == 200
        assert (await asked(app, ask())).status == 200
        assert (len(server.peers), len(second.received)) == (2, 3)


@on_uvloop
async def test_a_model_server_that_starts_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.upstream.health_check.HURRY_S", 0.02)
    port = free_port()
    async with before(Address("127.0.0.1", port), mode="ingress") as app:
        ready = await admin(app, "/readyz")
        assert (ready.status, ready.body) == (503, b"no upstream of route all is up: llm is starting\n")
        assert (await admin(app, "/livez")).status == 200
        reply = await asked(app, ask())
        assert (reply.status, code_of(reply), reply.header("Retry-After")) == (503, "upstream_starting", "1")
        assert reply.json()["error"]["message"] == "upstream starting: llm has not answered its health check yet"
        reply = await asked(app, ask(MESSAGES))
        assert (reply.status, reply.header("Retry-After"), reply.json()["type"]) == (503, "1", "error")
        answers = Answers(by_target(lambda: plain(b"")))
        late = await asyncio.start_server(answers.serve, "127.0.0.1", port)
        try:
            while (await admin(app, "/readyz")).status != 200:
                await asyncio.sleep(0)
            reply = await asked(app, ask())
            assert (reply.status, reply.is_whole) == (200, True)
            assert b"hello" in reply.body
        finally:
            late.close()


@on_uvloop
async def test_readiness_is_each_routes_in_ingress_mode_and_nobodys_in_egress_mode() -> None:
    async with serving() as server:
        for mode, statuses in (("ingress", [503, 200, 503]), ("egress", [200, 200, 200])):
            check = HealthCheck(interval_s=60, unhealthy_after=1)
            async with before(server.address, upstream={"health": check, "circuit": SLOW}, mode=mode) as app:
                peer = await server.peer(len(server.peers))
                await peer.request()
                seen = [(await admin(app, "/readyz")).status]
                peer.send(plain(b"{}"))
                await until(lambda: health_of(app).state is State.CLOSED)
                seen.append((await admin(app, "/readyz")).status)
                for _ in range(2):
                    asking = asyncio.create_task(asked(app, ask()))
                    while not asking.done():  # the connection of the check is tried first, and then a fresh one
                        reset_what_is_asked(server)
                        await asyncio.sleep(0)
                    assert asking.result().status == 502
                seen.append((await admin(app, "/readyz")).status)
                assert seen == statuses


def reset_what_is_asked(server: Server) -> None:
    for peer in server.peers:
        if b"chat/completions" in peer.data and not peer.is_lost:
            peer.data.clear()
            peer.reset()


@on_uvloop
async def test_a_check_is_a_get_without_credentials() -> None:
    secret = Credentials("replace", secret=SecretSource(env="KEY"))
    check = HealthCheck(path="/v1/up?x=1", interval_s=60)
    async with answering(plain(b"ok")) as upstream:
        options = {"credentials": secret, "health": check, "base_path": "/base", "set_headers": (("X-Team", "a"),)}
        async with before(upstream.address, environ={"KEY": "hush"}, upstream=options) as app:
            await until(lambda: health_of(app).state is State.CLOSED)
            received = upstream.received[0]
            assert (received.method, received.target, received.body) == ("GET", "/v1/up?x=1", b"")
            assert [name for name, _ in received.headers] == ["Host", "User-Agent", "Accept"]
            assert received.header("Host") == "llm.test"
            await until(lambda: app.pool("llm").idle == 1)  # and what it was asked over serves streams


GARBAGE = [
    b"SSH-2.0\r\n\r\n",
    b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nBroken\r\n\r\n",
    b"x" * 300_000,
]


@pytest.mark.parametrize("answer", GARBAGE)
@on_uvloop
async def test_what_answers_no_check_is_down_and_up_again_at_once(answer: bytes) -> None:
    answers = {"health": plain(b"")}
    async with (
        answering(by_target(lambda: answers["health"])) as upstream,
        before(upstream.address, upstream={"health": CHECK}) as app,
    ):
        health = health_of(app)
        await until(lambda: health.state is State.CLOSED)
        answers["health"] = answer
        await until(lambda: health.state is State.DOWN)
        reply = await asked(app, ask())
        assert (reply.status, code_of(reply), reply.header("Retry-After")) == (503, "upstream_unavailable", "1")
        answers["health"] = plain(b"")
        await until(lambda: health.state is State.CLOSED)
        assert (await asked(app, ask())).status == 200


@on_uvloop
async def test_a_check_that_is_silent_or_slow_in_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.upstream.health_check.HURRY_S", 0.02)
    check = HealthCheck(interval_s=0.02, timeout_s=0.05, unhealthy_after=1)
    async with serving() as server, before(server.address, upstream={"health": check}) as app:
        health = health_of(app)
        await (await server.peer(0)).lost()  # it said nothing within the time
        assert health.state is State.STARTING
        peer = await server.peer(1)
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await until(lambda: health.state is State.CLOSED)  # its body need not have ended
        big = await server.peer(2)
        await big.request()
        big.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 1_000_000)
        await big.lost()  # nobody reads so much
        await peer.lost()  # nor waits so long


@on_uvloop
async def test_checks_over_a_unix_socket_end_with_the_app(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with serving(unix_path=path) as server:
        async with before(Address(path=path), upstream={"health": CHECK}) as app:
            peer = await server.peer()
            await peer.request()
            assert app.streams.tasks == 1
        await peer.lost()


@on_uvloop
async def test_the_admin_port_shows_upstreams() -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address, upstream={"circuit": SLOW}) as app:
        assert (await asked(app, ask(stream=False))).status == 200
        reply = await admin(app, "/upstreams")
        assert json.loads(reply.body) == {
            "upstreams": [
                {
                    "upstream": "llm",
                    "state": "closed",
                    "is_up": True,
                    "next_try_s": None,
                    "addresses": [{"address": str(upstream.address), "active": 0, "idle": 1}],
                }
            ]
        }
