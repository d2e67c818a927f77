"""A second upstream asked beside one that is slow, over real sockets: one wins, the other is dropped in that moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.app import App
from sidecar.contender import Contest
from sidecar.errors import Outcome
from sidecar.gateway import sending
from sidecar.health import State
from sidecar.settings import Circuit, Retry, Timeouts
from tests.app_support import LAST_CHUNK, SSE_HEAD, Client, Headers, ask, before, chunk, on_uvloop, plain
from tests.departures import DEPARTURES, blackhole, connected, leave, until
from tests.fallback_support import BUSY, GOOD, GOOD_BODY, ROLE, nobody
from tests.observing import Observing
from tests.upstream_support import Peer, Server, serving, turns

FORMATS = pytest.mark.parametrize("format_name", ["native", "typed"])
MODES = pytest.mark.parametrize("commit", ["headers", "first_content", "request"])
SOON: dict[str, Any] = {"retry": Retry(hedge_after_s=0.02)}
FRAME = chunk(b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n')


def in_format(name: str) -> Headers:
    return [("X-Stream-Format", name)]


@asynccontextmanager
async def hedged(commit: str, **options: Any) -> AsyncIterator[tuple[App, Server, Server]]:
    """Two upstreams that the test speaks for."""
    async with serving() as first, serving() as second:
        route = {**SOON, "commit": commit, **options.pop("route", {})}
        async with before(first.address, second.address, route=route, **options) as app:
            yield app, first, second


async def both_asked(client: Client, first: Server, second: Server, format_name: str = "native") -> tuple[Peer, Peer]:
    """The request went to both."""
    await client.send(ask(headers=in_format(format_name)))
    peers = await first.peer(), await second.peer()
    for peer in peers:
        await peer.request()
    return peers


@FORMATS
@MODES
@pytest.mark.parametrize("winner", [0, 1])
@on_uvloop
async def test_the_one_that_commits_first_wins(winner: int, commit: str, format_name: str) -> None:
    observer = Observing()
    async with hedged(commit, observer=observer) as (app, first, second), connected(app) as client:
        peers = await both_asked(client, first, second, format_name)
        peers[winner].send(GOOD)
        reply = await client.reply()
        await peers[1 - winner].lost()
        assert (reply.status, reply.is_whole) == (200, True)
        if format_name == "native":
            assert reply.body == GOOD_BODY
        else:
            assert [name for name, _ in reply.events()] == ["start", "token", "token", "usage", "done"]
            assert reply.events()[0][1]["upstream"] == ("llm", "second")[winner]
        assert app.streams.outcomes == {Outcome.COMPLETED: 1}
        assert (len(first.peers), len(second.peers)) == (1, 1)
    (record,) = observer.records
    assert (record.upstream, record.attempts, record.upstream_status) == (("llm", "second")[winner], 2, 200)


@pytest.mark.parametrize("winner", [0, 1])
@on_uvloop
async def test_heads_alone_decide_nothing_where_content_commits(winner: int) -> None:
    async with hedged("first_content") as (app, first, second), connected(app) as client:
        peers = await both_asked(client, first, second)
        for peer in peers:
            peer.send(SSE_HEAD + chunk(ROLE))
        await until(lambda: next(iter(app.streams)).buffered_bytes == 2 * len(ROLE))
        peers[winner].send(FRAME)
        assert (await client.head()).status == 200
        await peers[1 - winner].lost()
        assert await client.chunk() == ROLE + FRAME[FRAME.index(b"data") : -2]


@on_uvloop
async def test_the_loser_is_dropped_within_the_callback_that_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    won = Contest.won

    def watched(contest: Contest, contender: Any) -> None:
        before_it = app.pool("llm").active, app.pool("second").active
        won(contest, contender)
        seen.append((before_it[0] + before_it[1], app.pool("llm").active + app.pool("second").active))

    monkeypatch.setattr(Contest, "won", watched)
    async with hedged("first_content") as (app, first, second), connected(app) as client:
        _, peer = await both_asked(client, first, second)
        peer.send(GOOD)
        await client.reply()
        assert seen == [(2, 1)]


@on_uvloop
async def test_an_answer_in_time_asks_nobody_else() -> None:
    late = {"retry": Retry(hedge_after_s=5.0)}
    async with hedged("first_content", route=late) as (app, first, second), connected(app) as client:
        await client.send(ask())
        peer = await first.peer()
        await peer.request()
        peer.send(GOOD)
        assert (await client.reply()).is_whole
        assert second.peers == []


@pytest.mark.parametrize("failing", [0, 1])
@MODES
@on_uvloop
async def test_one_that_fails_leaves_it_to_the_other(failing: int, commit: str) -> None:
    async with hedged(commit) as (app, first, second), connected(app) as client:
        peers = await both_asked(client, first, second)
        peers[failing].send(BUSY)
        await until(lambda: app.pool(("llm", "second")[failing]).active == 0)
        peers[1 - failing].send(GOOD)
        reply = await client.reply()
        assert (reply.status, reply.body) == (200, GOOD_BODY)
        assert (len(first.peers), len(second.peers)) == (1, 1)


@MODES
@on_uvloop
async def test_both_fail(commit: str) -> None:
    observer = Observing()
    async with hedged(commit, observer=observer) as (app, first, second), connected(app) as client:
        one, other = await both_asked(client, first, second)
        one.reset()
        await until(lambda: app.pool("llm").active == 0)
        other.reset()
        reply = await client.reply()
        assert reply.status == (200 if commit == "request" else 502)
        assert app.streams.outcomes == {Outcome.UPSTREAM_BROKEN: 1}
    assert (observer.records[0].attempts, observer.records[0].upstream) == (2, "second")


@on_uvloop
async def test_a_hedge_that_cannot_connect_changes_nothing() -> None:
    async with (
        nobody() as nowhere,
        serving() as first,
        before(first.address, nowhere, route=SOON) as app,
        connected(app) as client,
    ):
        await client.send(ask())
        peer = await first.peer()
        await peer.request()
        await until(lambda: next(iter(app.streams)).attempts == 2 and app.streams.tasks == 0)
        peer.send(GOOD)
        assert (await client.reply()).is_whole


@on_uvloop
async def test_a_first_that_is_still_being_dialled() -> None:
    with blackhole() as nowhere:
        async with serving() as second, before(nowhere, second.address, route=SOON) as app, connected(app) as client:
            await client.send(ask())
            peer = await second.peer()
            await peer.request()
            assert app.pool("llm").active == 1
            peer.send(GOOD)
            assert (await client.reply()).body == GOOD_BODY
            await until(lambda: app.pool("llm").active == 0)
            assert app.streams.outcomes == {Outcome.COMPLETED: 1}


@on_uvloop
async def test_a_hedge_that_is_still_being_dialled_when_the_first_answers() -> None:
    with blackhole() as nowhere:
        async with serving() as first, before(first.address, nowhere, route=SOON) as app, connected(app) as client:
            await client.send(ask())
            peer = await first.peer()
            await peer.request()
            await until(lambda: app.pool("second").active == 1)
            peer.send(GOOD)
            assert (await client.reply()).body == GOOD_BODY
            await until(lambda: (app.pool("second").active, app.streams.tasks) == (0, 0))


@on_uvloop
async def test_never_more_than_two_at_once() -> None:
    async with serving() as first, serving() as second, serving() as third:
        route = {"retry": Retry(hedge_after_s=0.01)}
        async with before(first.address, second.address, third.address, route=route) as app, connected(app) as client:
            peers = await both_asked(client, first, second)
            stream = next(iter(app.streams))
            assert (stream.attempts, third.peers) == (2, [])
            peers[0].reset()
            await peers[0].lost()
            peers[1].reset()
            last = await third.peer()
            await last.request()
            last.send(GOOD)
            assert (await client.reply()).is_whole
            assert stream.attempts == 3


@on_uvloop
async def test_both_are_silent() -> None:
    quick = {"timeouts": Timeouts(first_token_s=0.1)}
    async with hedged("first_content", upstream=quick) as (app, first, second), connected(app) as client:
        peers = await both_asked(client, first, second)
        assert (await client.reply()).status == 504
        for peer in peers:
            await peer.lost()
        assert app.streams.outcomes == {Outcome.TIMED_OUT: 1}


@on_uvloop
async def test_plain_answers_are_hedged_by_their_heads() -> None:
    async with hedged("headers") as (app, first, second), connected(app) as client:
        await client.send(ask(stream=False))
        peers = await first.peer(), await second.peer()
        await peers[1].request()
        peers[1].send(plain(b'{"ok":1}'))
        assert (await client.reply()).json() == {"ok": 1}
        await peers[0].lost()


Phase = Callable[[Client, Server, Server], Any]


async def two_waiting(client: Client, first: Server, second: Server) -> None:
    await both_asked(client, first, second)


async def two_with_heads(client: Client, first: Server, second: Server) -> None:
    for peer in await both_asked(client, first, second):
        peer.send(SSE_HEAD + chunk(ROLE))
    await asyncio.sleep(0)


async def one_left(client: Client, first: Server, second: Server) -> None:
    (peer, _) = await both_asked(client, first, second)
    peer.send(BUSY)


async def streaming(client: Client, first: Server, second: Server) -> None:
    (_, peer) = await both_asked(client, first, second)
    peer.send(SSE_HEAD + FRAME)
    await client.head()
    await client.chunk()


@pytest.mark.parametrize("how", DEPARTURES)
@pytest.mark.parametrize("commit", ["first_content", "request"])
@pytest.mark.parametrize("phase", [two_waiting, two_with_heads, one_left, streaming])
@on_uvloop
async def test_leaving_drops_both(phase: Phase, commit: str, how: str) -> None:
    async with hedged(commit) as (app, first, second):
        async with connected(app) as client:
            await phase(client, first, second)
            leave(client, how)
            for server in (first, second):
                await (await server.peer()).until(lambda: True)
            await until(lambda: len(app.streams) == 0)
            await until(lambda: (app.pool("llm").active, app.pool("second").active, app.streams.tasks) == (0, 0, 0))
        assert app.streams.outcomes == {Outcome.CLIENT_CANCELLED: 1}
        assert app.streams.body_bytes == 0


@pytest.mark.parametrize("how", DEPARTURES)
@on_uvloop
async def test_leaving_while_the_same_upstream_is_left_alone(how: str) -> None:
    async with serving() as server:
        retry = Retry(attempts=2, max_wait_s=30.0)
        async with before(server.address, route={"retry": retry}) as app, connected(app) as client:
            await client.send(ask())
            peer = await server.peer()
            await peer.request()
            peer.send(plain(b"{}", "429 Slow", [("Retry-After", "20")]))
            await until(lambda: next(iter(app.streams)).phase == "connecting")
            leave(client, how)
            await until(lambda: len(app.streams) == 0)
            assert app.streams.outcomes == {Outcome.CLIENT_CANCELLED: 1}
            assert len(server.peers) == 1


@on_uvloop
async def test_a_shutdown_tells_who_has_an_answer_already() -> None:
    async with serving() as first, serving() as second:
        route = {**SOON, "commit": "request", "format": "typed"}
        async with before(first.address, second.address, route=route) as app, connected(app) as client:
            await both_asked(client, first, second, "typed")
            closing = asyncio.get_running_loop().create_task(app.close())
            reply = await client.reply()
            await closing
            assert [name for name, _ in reply.events()] == ["start", "error", "done"]
            assert reply.events()[-1][1]["status"] == "interrupted"


@on_uvloop
async def test_heartbeats_run_before_anybody_has_answered() -> None:
    async with serving() as server:
        route = {"commit": "request", "heartbeat_s": 0.05, "native_heartbeat": True}
        async with before(server.address, route=route) as app:
            for format_name in ("typed", "native"):
                async with connected(app) as client:
                    await client.send(ask(headers=in_format(format_name)))
                    peer = await server.peer()
                    await peer.request()
                    head = await client.head()
                    assert (head.status, head.header("X-Stream-Format")) == (200, format_name)
                    assert await client.chunk() == b": keep-alive\n\n"
                    peer.send(SSE_HEAD + FRAME + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
                    rest = [piece async for piece in _pieces(client)]
                    assert rest[-1] == b""
                    assert b"".join(rest).count(b'"x"') == 1


async def _pieces(client: Client) -> AsyncIterator[bytes]:
    """Every chunk; the last is empty."""
    while piece := await client.chunk():
        yield piece
    assert piece is not None
    yield piece


@on_uvloop
async def test_a_winner_whose_client_leaves_before_content_gives_its_trial_back() -> None:
    async with hedged("headers", upstream={"circuit": Circuit(failures=2)}) as (app, first, second):
        health = app._gateway.plan.targets["second"].health
        health.state = State.HALF_OPEN
        async with connected(app) as client:
            _, peer = await both_asked(client, first, second)
            peer.send(SSE_HEAD)
            await client.head()
            assert health.state is State.TRIAL
        await until(lambda: len(app.streams) == 0)
        await turns(3)
        assert (health.state, health._admitted) == (State.HALF_OPEN, 0)


async def keep_idle(app: App) -> None:
    """The second upstream has a connection that has been used before."""
    connection = await app.pool("second").dial()
    connection.idle_since, connection.is_reused = asyncio.get_running_loop().time(), True
    app.pool("second").give_back(connection)


@on_uvloop
async def test_a_hedge_on_a_dead_connection_asks_nobody_for_the_first_again() -> None:
    """The first has failed by then: its place and its word are given back."""
    limits = {"circuit": Circuit(failures=9), "max_streams": 1}
    async with hedged("first_content", upstream=limits) as (app, first, second), connected(app) as client:
        healths = [app._gateway.plan.targets[name].health for name in ("llm", "second")]
        await keep_idle(app)
        one, other = await both_asked(client, first, second)
        one.reset()
        await until(lambda: app.pool("llm").active == 0)
        other.reset()
        reply = await client.reply()
        assert (reply.status, len(first.peers), len(second.peers)) == (502, 1, 1)
        assert [health._admitted for health in healths] == [0, 0]


@pytest.mark.parametrize("is_idle", [True, False])
@on_uvloop
async def test_a_hedge_that_is_wanted_no_more_by_the_time_it_begins(
    is_idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []
    monkeypatch.setattr(sending, "_plan_hedge", lambda *given: planned.append(given))
    async with hedged("headers") as (app, first, second), connected(app) as client:
        if is_idle:
            await keep_idle(app)
        await client.send(ask())
        peer = await first.peer()
        await peer.request()
        (stream,) = app.streams
        # Both in one turn: the hedge's time has come, and the client leaves.
        sending._start_hedge(*planned[0])
        stream.client_gone()
        await until(lambda: app.streams.tasks == 0)
        await peer.lost()
        assert app.pool("second").active == 0
        assert [bytes(each.data) for each in second.peers] == [b""] * is_idle
