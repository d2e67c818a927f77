"""Limits over real sockets: who is served, who waits, who is refused and how, and that nothing is left of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from sidecar.app import App
from sidecar.errors import Outcome
from sidecar.settings import Callers, Cors, Limits, Match, Route, SecretSource
from sidecar.streams import Streams
from tests.app_support import (
    CHAT,
    LAST_CHUNK,
    MESSAGES,
    OLLAMA_CHAT,
    SSE_HEAD,
    Client,
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
    running,
    settings_for,
    upstream_at,
)
from tests.app_support import stream as streamed
from tests.departures import DEPARTURES, leave, until
from tests.observing import Observing
from tests.upstream_support import Peer, Server, serving, turns

WHOLE = SSE_HEAD + b"".join(map(chunk, openai_frames("hi"))) + LAST_CHUNK
FIRST_TOKEN = SSE_HEAD + chunk(openai_frames("hi")[0])
ONE = Limits(streams=1)
OTHER = "/other"


class Crowd:
    """Clients of one app whose upstream answers when the test says so."""

    def __init__(self, app: App, servers: Sequence[Server], stack: AsyncExitStack) -> None:
        self.app = app
        self.servers = servers
        self._stack = stack

    async def client(self) -> Client:
        return await self._stack.enter_async_context(client_of(self.app))

    async def runs(self, **options: Any) -> tuple[Client, Peer]:
        """A client whose request has reached an upstream."""
        client = await self.client()
        known = {id(peer): len(peer.data) for server in self.servers for peer in server.peers}
        await client.send(ask(**options))
        await until(lambda: any(len(p.data) > known.get(id(p), 0) for s in self.servers for p in s.peers))
        peers = [peer for server in self.servers for peer in server.peers if len(peer.data) > known.get(id(peer), 0)]
        await peers[0].request()
        peers[0].data.clear()
        return client, peers[0]

    async def waits(self, **options: Any) -> Client:
        """A client whose request waits for a place."""
        client = await self.client()
        waiting = self.app.admission.waiting
        await client.send(ask(**options))
        await until(lambda: self.app.admission.waiting == waiting + 1)
        return client

    async def is_served(self, client: Client, peer: Peer) -> None:
        """The upstream answers this client's request whole."""
        peer.send(WHOLE)
        reply = await client.reply()
        assert (reply.status, reply.is_whole) == (200, True)


@asynccontextmanager
async def crowd(
    *, route: Any = None, routes: Sequence[Route] = (), upstreams: Sequence[Any] = ({},), **options: Any
) -> AsyncIterator[Crowd]:
    """An app with nothing left of its limits when it is over."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving()) for _ in upstreams]
        names = ["llm", "second", "third"]
        made = [
            upstream_at(server.address, name, **changed)
            for server, name, changed in zip(servers, names, upstreams, strict=False)
        ]
        told = {name: options.pop(name) for name in ("observer", "environ") if name in options}
        settings = settings_for(*made, routes=routes, route=route or {}, **options)
        app = await stack.enter_async_context(running(settings, **told))
        yield Crowd(app, servers, stack)
        await stack.aclose()
        assert (app.admission.waiting, len(app.admission._counts)) == (0, 0)  # type: ignore[arg-type]  # local ones


def code_of(reply: Any) -> str:
    return str(reply.json()["error"]["code"])


CALLER: Any = {"headers": [("X-User", "ann")]}
SCOPES: dict[str, Any] = {
    "process": {"max_streams": 2},
    "route": {"route": {"limits": Limits(streams=2)}},
    "upstream": {"upstreams": [{"max_streams": 2}]},
    "caller": {"callers": Callers(header="X-User", streams=2)},
    "caller of a route": {"callers": Callers(header="X-User"), "route": {"limits": Limits(caller_streams=2)}},
}


@pytest.mark.parametrize("scope", SCOPES)
@on_uvloop
async def test_exactly_the_limit_is_served(scope: str) -> None:
    async with crowd(**SCOPES[scope]) as people:
        running_ones = [await people.runs(**CALLER) for _ in range(2)]
        client = await people.client()
        for _ in range(2):
            reply = await client.ask(ask(**CALLER))
            kind = scope.split()[0]
            assert (reply.status, code_of(reply)) == (
                (429, "caller_limit") if kind == "caller" else (503, "overloaded")
            )
            assert reply.header("RateLimit-Policy") == f'"{kind}";q=2;qu="concurrent-requests"'
            assert reply.header("RateLimit") == f'"{kind}";r=0;t=1'
            assert reply.header("Retry-After") == "1"
        assert len(people.app.streams) == 2
        for running_one in running_ones:
            await people.is_served(*running_one)
        await people.is_served(*await people.runs(**CALLER))


@on_uvloop
async def test_of_many_at_once_exactly_the_limit_is_served() -> None:
    observer = Observing()
    async with crowd(max_streams=10, observer=observer) as people:
        clients = [await people.client() for _ in range(60)]
        for client in clients:
            await client.send(ask())
        await until(lambda: len(observer.records) == 50)
        assert len(people.app.streams) == 10
        assert {record.outcome for record in observer.records} == {Outcome.REFUSED}
        for client in clients:
            leave(client, "reset")
        await until(lambda: len(observer.records) == 60)


@on_uvloop
async def test_one_callers_limit_is_no_others() -> None:
    async with crowd(callers=Callers(header="X-User", streams=1)) as people:
        ann = await people.runs(**CALLER)
        bob = await people.runs(headers=[("X-User", "bob")])
        nobody = await people.runs()
        keyed = await people.runs(headers=[("Authorization", "Bearer k")])
        for headers in ([("X-User", "bob")], [], [("x-api-key", "k")]):
            assert (await asked(people.app, ask(headers=headers))).status == 429
        for one in (ann, bob, nobody, keyed):
            await people.is_served(*one)


@on_uvloop
async def test_the_sidecars_own_bearer_names_a_caller() -> None:
    bearer = [("Authorization", "Bearer t")]
    limited: Any = {"auth": SecretSource(env="T"), "environ": {"T": "t"}, "callers": Callers(streams=1)}
    async with crowd(**limited) as people:
        one = await people.runs(headers=bearer)
        assert (await asked(people.app, ask(headers=bearer))).status == 429
        assert (await asked(people.app, ask(headers=[("Authorization", "Bearer x")]))).status == 401
        await people.is_served(*one)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@on_uvloop
async def test_what_asks_for_no_generation_needs_no_place(method: str) -> None:
    async with crowd(max_streams=1) as people:
        one = await people.runs()
        client = await people.client()
        await client.send(request(method, "/v1/models"))
        other = await people.servers[0].peer(1)
        await other.request()
        other.send(plain(b"" if method == "HEAD" else b"{}"))
        assert (await client.reply(to_head=method == "HEAD")).status == 200
        await people.is_served(*one)


@on_uvloop
async def test_an_upstream_that_is_full_leaves_it_to_the_next() -> None:
    async with crowd(upstreams=[{"max_streams": 1}, {"max_streams": 1}]) as people:
        first, second = await people.runs(), await people.runs()
        assert [len(server.peers) for server in people.servers] == [1, 1]
        assert (await asked(people.app, ask())).status == 503
        await people.is_served(*first)
        await people.is_served(*second)


@on_uvloop
async def test_waiting_requests_are_served_in_order() -> None:
    observer = Observing()
    async with crowd(route={"limits": Limits(streams=1, queue=2)}, observer=observer) as people:
        client, peer = await people.runs()
        waiting = [await people.waits(), await people.waits()]
        shown = people.app.describe_streams()
        assert [each["phase"] for each in shown] == ["waiting", "queued", "queued"]
        assert (await asked(people.app, ask())).status == 503
        for next_one in waiting:
            await people.is_served(client, peer)
            await peer.request()
            client = next_one
        await people.is_served(client, peer)
        await until(lambda: len(observer.records) == 4)
        served = [record for record in observer.records if record.outcome is Outcome.COMPLETED]
        assert [record.queued_s is not None for record in served] == [False, True, True]
        for record in served[1:]:
            assert record.queued_s is not None
            assert record.body_read_at is not None
            assert record.sent_at is not None
            assert 0 < record.queued_s <= record.sent_at - record.body_read_at


@on_uvloop
async def test_nobody_waits_longer_than_it_may() -> None:
    observer = Observing()
    limits = Limits(streams=1, queue=2, queue_timeout_s=0.05)
    async with crowd(route={"limits": limits}, observer=observer) as people:
        one = await people.runs()
        client = await people.client()
        reply = await client.ask(ask())
        assert (reply.status, code_of(reply), reply.header("Retry-After")) == (503, "overloaded", "1")
        assert "no place within 0.05 s" in reply.json()["error"]["message"]
        record = await observer.record()
        assert record.queued_s is not None
        assert 0.05 <= record.queued_s <= 0.1  # what the queue promises: 50 ms at most
        await people.is_served(*one)
        await client.send(ask())  # on the same connection
        await one[1].request()
        await people.is_served(client, one[1])


@pytest.mark.parametrize("how", DEPARTURES)
@on_uvloop
async def test_who_leaves_while_waiting_is_gone_at_once(how: str) -> None:
    observer = Observing()
    async with crowd(route={"limits": Limits(streams=1, queue=2)}, observer=observer) as people:
        one = await people.runs()
        gone, stays = await people.waits(), await people.waits()
        leave(gone, how)
        record = await observer.record()
        assert (record.outcome, record.attempts, record.status) == (Outcome.CLIENT_CANCELLED, 0, None)
        assert people.app.admission.waiting == 1
        await people.is_served(*one)
        await one[1].request()
        await people.is_served(stays, one[1])
        assert len(people.servers[0].peers) == 1


def classes(**first: Any) -> list[Route]:
    """Three routes of one upstream, for a class each."""
    return [
        Route(name, ("llm",), match=Match(headers=(("X-Class", name),)), priority=name, **options)  # type: ignore[arg-type]
        for name, options in (("low", {}), ("normal", {}), ("high", first))
    ]


def of_class(name: str) -> Any:
    return {"headers": [("X-Class", name)]}


@on_uvloop
async def test_a_higher_priority_goes_first() -> None:
    routes = [replace(route, limits=Limits(queue=5)) for route in classes()]
    async with crowd(routes=routes, max_streams=1) as people:
        client, peer = await people.runs(**of_class("low"))
        waiting = {name: await people.waits(**of_class(name)) for name in ("low", "normal", "high")}
        for name in ("high", "normal", "low"):
            await people.is_served(client, peer)
            await peer.request()
            client = waiting[name]
        await people.is_served(client, peer)


@on_uvloop
async def test_a_higher_priority_takes_a_queued_place() -> None:
    routes = [replace(route, limits=Limits(queue=1)) for route in classes()]
    async with crowd(routes=routes, max_streams=1) as people:
        one = await people.runs(**of_class("low"))
        low = await people.waits(**of_class("low"))
        first = await people.waits(**of_class("high"))
        second = await people.client()
        await second.send(ask(**of_class("high")))
        reply = await low.reply()
        assert (reply.status, code_of(reply)) == (503, "overloaded")
        assert "higher priority" in reply.json()["error"]["message"]
        for client in (first, second):
            await people.is_served(*one)
            await one[1].request()
            one = client, one[1]
        await people.is_served(*one)


@on_uvloop
async def test_a_stream_without_a_token_is_preempted() -> None:
    observer = Observing()
    async with crowd(routes=classes(preempt=True), max_streams=1, observer=observer) as people:
        low, peer = await people.runs(**of_class("low"))
        high, other = await people.runs(**of_class("high"))
        reply = await low.reply()
        assert (reply.status, code_of(reply), reply.header("Retry-After")) == (503, "preempted", "1")
        await peer.lost()
        assert (await asked(people.app, ask(**of_class("high")))).status == 503
        await people.is_served(high, other)
        await until(lambda: len(observer.records) == 3)
        codes = [record.failure.code for record in observer.records if record.failure is not None]
        assert sorted(codes) == ["overloaded", "preempted"]


@on_uvloop
async def test_a_stream_whose_head_went_out_is_told_that_it_is_preempted() -> None:
    async with crowd(routes=classes(preempt=True), max_streams=1) as people:
        headers = [*of_class("low")["headers"], ("X-Stream-Format", "typed")]
        low, peer = await people.runs(headers=headers)
        peer.send(SSE_HEAD)
        head = await low.head()
        high = await people.runs(**of_class("high"))
        head.chunks = [data async for data in _chunks(low)]
        names = [name for name, _ in head.events()]
        assert names[-2:] == ["error", "done"]
        assert dict(head.events())["error"]["code"] == "preempted"
        await people.is_served(*high)


@pytest.mark.parametrize("format_name", ["native", "typed"])
@on_uvloop
async def test_an_answer_that_began_before_its_upstreams_is_preempted_until_it_has_a_token(format_name: str) -> None:
    routes = [replace(route, commit="request") for route in classes(preempt=True)]
    async with crowd(routes=routes, max_streams=1) as people:
        headers = [*of_class("low")["headers"], ("X-Stream-Format", format_name)]
        low, peer = await people.runs(headers=headers)
        high, other = await people.runs(**of_class("high"))
        await peer.lost()
        reply = await low.reply()
        assert (reply.status, b"preempted" in reply.body) == (200, True)
        await people.is_served(high, other)
        headers = [*of_class("low")["headers"], ("X-Stream-Format", format_name)]
        low, peer = await people.runs(headers=headers)
        peer.send(FIRST_TOKEN)
        await low.head()
        assert await low.chunk()
        assert b"overloaded" in (await asked(people.app, ask(**of_class("high")))).body
        peer.reset()


async def _chunks(client: Client) -> AsyncIterator[bytes]:
    while data := await client.chunk():
        yield data
    assert data == b""


@pytest.mark.parametrize("name", ["normal", "high"])
@on_uvloop
async def test_a_stream_that_has_a_token_or_is_as_good_is_left_alone(name: str) -> None:
    async with crowd(routes=classes(preempt=True), max_streams=1) as people:
        client, peer = await people.runs(**of_class(name))
        if name == "normal":
            peer.send(FIRST_TOKEN)
            await client.head()
            assert await client.chunk()
        assert (await asked(people.app, ask(**of_class("high")))).status == 503
        if name == "normal":
            peer.send(b"".join(map(chunk, openai_frames("hi"))) + LAST_CHUNK)
            assert [data async for data in _chunks(client)]
        else:
            await people.is_served(client, peer)


@pytest.mark.parametrize(("path", "is_caller"), [(p, c) for p in (CHAT, MESSAGES, OLLAMA_CHAT, OTHER) for c in (0, 1)])
@on_uvloop
async def test_a_refusal_has_the_shape_of_the_paths_api(path: str, is_caller: int) -> None:
    limited: Any = {"callers": Callers(streams=1)} if is_caller else {"max_streams": 1}
    async with crowd(**limited) as people:
        one = await people.runs()
        reply = await asked(people.app, ask(path))
        body = reply.json()
        assert reply.status == (429 if is_caller else 503)
        if path == OTHER:
            kind = "quota-exceeded" if is_caller else "temporary-reduced-capacity"
            assert reply.header("Content-Type") == "application/problem+json"
            assert body["type"] == f"https://iana.org/assignments/http-problem-types#{kind}"
            assert body["violated-policies"] == ["caller" if is_caller else "process"]
        elif path == OLLAMA_CHAT:
            assert set(body) == {"error"}
        else:
            kinds = {CHAT: ("server_error", "rate_limit_error"), MESSAGES: ("overloaded_error", "rate_limit_error")}
            assert body["error"]["type"] == kinds[path][is_caller]
        assert reply.header("RateLimit") is not None
        await people.is_served(*one)


@on_uvloop
async def test_a_browser_may_read_when_to_come_back() -> None:
    origin = "https://app.example.com"
    async with crowd(max_streams=1, cors=Cors((origin,))) as people:
        one = await people.runs()
        reply = await asked(people.app, ask(headers=[("Origin", origin)]))
        exposed = (reply.header("Access-Control-Expose-Headers") or "").split(", ")
        assert {"Retry-After", "RateLimit", "RateLimit-Policy"} <= set(exposed)
        await people.is_served(*one)


@on_uvloop
async def test_a_body_that_is_refused_in_any_case_is_not_waited_for() -> None:
    async with crowd(max_streams=1) as people:
        one = await people.runs()
        client = await people.client()
        whole = ask()
        await client.send(whole[:-1])
        reply = await client.reply()
        assert (reply.status, code_of(reply)) == (503, "overloaded")
        await people.is_served(*one)


@on_uvloop
async def test_nothing_is_held_while_a_body_comes() -> None:
    async with crowd(max_streams=1) as people:
        slow = await people.client()
        whole = ask()
        await slow.send(whole[:-1])
        await until(lambda: people.app.streams.body_bytes)
        await people.is_served(*await people.runs())
        leave(slow, "fin")
        await until(lambda: not people.app.streams.body_bytes)


@pytest.mark.parametrize("answer", ["unreachable", "rejected", "broken", "composed"])
@on_uvloop
async def test_every_end_gives_the_place_back(answer: str) -> None:
    limited: Any = {"max_streams": 1, "callers": Callers(streams=1), "route": {"limits": ONE}}
    async with AsyncExitStack() as stack:
        answers = await stack.enter_async_context(
            answering(
                {"rejected": plain(b"{}", "400 Bad Request"), "broken": SSE_HEAD + b"x"}.get(answer, plain(b"{}"))
            )
        )
        credentials: Any = {}
        address = answers.address
        if answer == "unreachable":
            async with answering(plain(b"{}")) as gone:
                address = gone.address
        app = await stack.enter_async_context(before(address, upstream={"max_streams": 1, **credentials}, **limited))
        for _ in range(3):
            target = f"{CHAT}?\x80" if answer == "composed" else CHAT
            reply = await asked(app, ask(target))
            assert (reply.status, reply.header("RateLimit")) != (503, '"process";r=0;t=1')
            await until(lambda: len(app.streams) == 0)
            assert len(app.admission._counts) == 0  # type: ignore[arg-type]  # local ones


@on_uvloop
async def test_a_stream_that_cannot_be_made_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError

    async with answering(streamed(openai_frames("hi"))) as upstream, before(upstream.address, max_streams=1) as app:
        with monkeypatch.context() as patch:
            patch.setattr(Streams, "open", fails)
            assert (await asked(app, ask())).status == 500
        assert (await asked(app, ask())).status == 200


@on_uvloop
async def test_a_shutdown_tells_those_who_wait() -> None:
    observer = Observing()
    async with crowd(route={"limits": Limits(streams=1, queue=2)}, observer=observer) as people:
        await people.runs()
        waits = await people.waits()
        closing = asyncio.create_task(people.app.close())
        reply = await waits.reply()
        assert (reply.status, code_of(reply)) == (503, "shutting_down")
        await closing
        assert [record.outcome for record in observer.records] == [Outcome.SHUT_DOWN] * 2


@on_uvloop
async def test_a_burst_of_slow_clients_is_noticed_before_it_is_counted() -> None:
    frame = chunk(openai_frames("a" * 4000)[0])
    async with crowd(max_buffered_bytes=512 * 1024, route={"limits": Limits(buffer_bytes=1024 * 1024)}) as people:
        slow = [await people.runs() for _ in range(4)]
        people.app.streams._count_at = float("inf")  # nobody adds up
        for client, peer in slow:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the type knows only its writing half
            peer.send(SSE_HEAD + frame * 2000)
        await until(lambda: people.app.streams.buffered_bytes > 512 * 1024)
        held = sum(stream.buffered_bytes for stream in people.app.streams)
        assert people.app.streams.buffered_bytes <= held + 4 * 64 * 1024
        reply = await asked(people.app, ask())
        assert (reply.status, code_of(reply)) == (503, "overloaded")
        assert len(people.app.streams) == 4  # nobody who runs pays for it
        for client, _ in slow:
            leave(client, "reset")
        await until(lambda: len(people.app.streams) == 0)
        assert people.app.streams.buffered_bytes == 0
        await turns(3)
