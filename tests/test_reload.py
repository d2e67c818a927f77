"""Another configuration for a running sidecar: what changes, what stays, and what a running stream keeps."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import App
from sidecar.app.changes import NEEDS_RESTART, Changes, compare
from sidecar.configuration import Loaded, load_file
from sidecar.errors import Outcome
from sidecar.gateway import Plan
from sidecar.reload import FileWatch, Reloader
from sidecar.secrets import SecretUnreadableError
from sidecar.settings import (
    Address,
    Connections,
    Credentials,
    Drain,
    Limits,
    Logs,
    Match,
    Route,
    SecretSource,
    ServerTls,
    Settings,
    Telemetry,
    Timeouts,
    UpstreamTls,
)
from sidecar.upstream import UpstreamPool
from tests.app_support import (
    SSE_HEAD,
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
from tests.departures import until
from tests.kubelet import ConfigMap, Model, client_at, in_a_pod, model
from tests.upstream_support import open_files, serving, turns

NOWHERE = Address("127.0.0.1", 9)
BASE = settings_for(upstream_at(NOWHERE), upstream_at(NOWHERE, "second"))


# What has changed


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ()),
        ({"max_buffered_bytes": 1, "drain": Drain(1.0, 1.0)}, ("max_buffered changed", "drain changed")),
        ({"routes": (replace(BASE.routes[0], format="typed"),)}, ("route all changed (format)",)),
        (
            {"routes": (Route("new", ("llm",)), BASE.routes[0])},
            ("route new is new",),
        ),
        ({"routes": (Route("other", ("llm",)),)}, ("route other is new", "route all is gone")),
        (
            {
                "upstreams": {
                    "llm": replace(BASE.upstreams["llm"], authority="b", base_path="/c", timeouts=Timeouts(1.0))
                }
            },
            ("upstreams.llm changed (url, timeouts)", "upstreams.second is gone"),
        ),
    ],
)
def test_changes_are_told_by_their_keys(changed: dict[str, Any], told: tuple[str, ...]) -> None:
    settings, changes = compare(BASE, replace(BASE, **changed))
    assert changes == Changes(told, ())
    assert settings == replace(BASE, **changed)


def test_routes_in_another_order_are_a_change() -> None:
    routes = (Route("a", ("llm",)), Route("b", ("llm",)))
    _, changes = compare(replace(BASE, routes=routes), replace(BASE, routes=routes[::-1]))
    assert changes.live == ("routes are in another order",)


def test_what_needs_a_restart_stays_as_it_was() -> None:
    wanted = replace(
        BASE,
        listen=Address("127.0.0.1", 1),
        admin=Address("127.0.0.1", 2),
        tls=ServerTls("a", "b"),
        telemetry=Telemetry(sample=0.5),
        logs=Logs("json"),
        connections=Connections(most=5),
        workers=3,
        mode="ingress",
        warnings=("new",),
    )
    settings, changes = compare(replace(BASE, warnings=("old",)), wanted)
    assert changes == Changes(("mode changed",), NEEDS_RESTART, ("new",))
    assert settings == replace(BASE, mode="ingress", warnings=("new",))


# What a running process keeps


@on_uvloop
async def test_what_has_not_changed_goes_on_and_what_has_is_retired() -> None:
    async with answering(plain(b"{}")) as one, answering(plain(b"{}")) as other:
        upstreams = upstream_at(one.address), upstream_at(other.address, "second")
        routes = Route("first", ("llm",), Match("/first")), Route("second", ("second",))
        settings = settings_for(*upstreams, routes=routes)
        async with running(settings) as app:
            for path in ("/first", "/second"):
                assert (await asked(app, request("GET", path))).status == 200
            first, second = app.pool("llm"), app.pool("second")
            assert (first.idle, second.idle) == (1, 1)
            changed = replace(upstreams[1], timeouts=Timeouts(idle_s=5.0))
            changes = app.reload(settings_for(upstreams[0], changed, routes=routes))
            assert changes == Changes(("upstreams.second changed (timeouts)",), ())
            assert app.pool("llm") is first
            assert app.pool("second") is not second
            assert (first.idle, second.idle) == (1, 0), "idle connections of a retired pool are closed at once"
            smaller = replace(routes[0], limits=Limits(buffer_bytes=16 * 1024))
            app.reload(settings_for(upstreams[0], changed, routes=(smaller, routes[1])))
            assert app.pool("llm") is not first, "its sockets were made for a larger buffer"
            assert (await asked(app, request("GET", "/first"))).status == 200
            app.reload(settings)


@on_uvloop
async def test_a_running_stream_keeps_its_route_and_its_upstream() -> None:
    frames = openai_frames("a", "b")
    async with serving() as server, answering(plain(b"{}")) as other:
        old = settings_for(upstream_at(server.address), route={"format": "typed"})
        new = settings_for(upstream_at(other.address), routes=[Route("other", ("llm",))])
        async with running(old) as app, client_of(app) as client:
            await client.send(ask())
            peer = await server.peer()
            await peer.request()
            peer.send(SSE_HEAD + chunk(frames[0]))
            assert (await client.head()).header("X-Stream-Format") == "typed"
            pool = app.pool("llm")
            app.reload(new)
            (stream,) = app.streams
            assert (stream.route.name, stream.upstream) == ("all", old.upstreams["llm"])
            assert (await asked(app, ask(stream=False))).body == b"{}"
            assert [pool.active, app._retired] == [1, [pool]]
            peer.send(b"".join(map(chunk, frames[1:])) + b"0\r\n\r\n")
            assert b"event: done" in b"".join(iter(await body(client)))
            assert (pool.active, pool.idle) == (0, 0), "given back, and closed"
            await peer.lost()
            await until(lambda: app._retired == [])


async def body(client: Any) -> list[bytes]:
    parts = []
    while part := await client.chunk():
        parts.append(part)
    assert part == b""
    return parts


@on_uvloop
async def test_a_retired_pool_is_closed_with_the_app() -> None:
    async with serving() as server, before(server.address) as app, client_of(app) as client:
        await client.send(ask())
        peer = await server.peer()
        await peer.request()
        app.reload(settings_for(upstream_at(NOWHERE)))
        await app.close()
        assert (await client.reply()).status == 503
        await peer.lost()


@on_uvloop
async def test_a_request_still_being_read_goes_by_what_was_there_at_its_head() -> None:
    async with (
        answering(plain(b"old")) as old,
        answering(plain(b"new")) as new,
        before(old.address) as app,
        client_of(app) as client,
    ):
        whole = ask(stream=False, text="x" * 50_000)
        await client.send(whole[:-10])
        await until(app.active)
        app.reload(settings_for(upstream_at(new.address)))
        await client.send(whole[-10:])
        assert (await client.reply()).body == b"old"
        assert (await client.ask(ask(stream=False))).body == b"new"
        assert app._gateway.plan.targets["llm"].pool.idle == 1


@on_uvloop
async def test_secrets_are_kept_and_read_again_where_that_is_asked(tmp_path: Path) -> None:
    key, bearer = tmp_path / "key", tmp_path / "bearer"
    key.write_text("one")
    bearer.write_text("client-one")
    ours = Credentials("replace", secret=SecretSource(file=str(key)))
    async with answering(plain(b"{}")) as upstream:
        settings = settings_for(upstream_at(upstream.address, credentials=ours), auth=SecretSource(file=str(bearer)))
        async with running(settings) as app:

            async def sent(token: str) -> str | None:
                assert (await asked(app, request("GET", "/", headers=[("Authorization", token)]))).status == 200
                return upstream.received[-1].header("Authorization")

            assert await sent("Bearer client-one") == "Bearer one"
            key.unlink()  # a rotation half done
            app.reload(replace(settings, max_header_bytes=8192))
            assert await sent("Bearer client-one") == "Bearer one"
            app.reload(settings, afresh=True)
            assert await sent("Bearer client-one") == "Bearer one", "the last good one is better than none"
            key.write_text("two")
            bearer.write_text("client-two")
            app.reload(settings, afresh=True)
            assert await sent("Bearer client-two") == "Bearer two", "at once, not within a second"
            changed = replace(settings, upstreams={"llm": replace(settings.upstreams["llm"], forwarded=True)})
            target = app._gateway.plan.targets["llm"]
            app.reload(changed)
            assert app._gateway.plan.targets["llm"].secret is target.secret


@on_uvloop
async def test_what_can_never_work_changes_nothing(tmp_path: Path) -> None:
    async with answering(plain(b"{}")) as upstream, before(upstream.address) as app:
        plan = app._gateway.plan
        unset = Credentials("replace", secret=SecretSource(env="SIDECAR_TEST_UNSET"))
        with pytest.raises(SecretUnreadableError):
            app.reload(settings_for(upstream_at(upstream.address, credentials=unset)))
        no_file = UpstreamTls(ca_file=str(tmp_path / "none"))
        with pytest.raises(ValueError, match="ca_file"):
            app.reload(settings_for(upstream_at(upstream.address, scheme="https", tls=no_file)))
        assert app._gateway.plan is plan
        assert (await asked(app, ask(stream=False))).status == 200


@on_uvloop
async def test_the_admin_ports_bearer_changes_too() -> None:
    environ = {"ADMIN": "token"}
    async with answering(plain(b"{}")) as upstream, before(upstream.address, environ=environ) as app:
        at = Address("127.0.0.1", app.admin_port)

        async def status() -> int:
            async with client_at(at) as client:
                return (await client.ask(request("GET", "/streams"))).status

        assert await status() == 200
        app.reload(settings_for(upstream_at(upstream.address), admin_auth=SecretSource(env="ADMIN")))
        assert await status() == 401


# A hundred times under load

RELOADS = 100


def nth(number: int, models: list[Model]) -> Settings:
    """Another configuration each time: upstreams come, go, move and change, and so do routes and limits."""
    here, there = models[number % 2], models[(number + 1) % 2]
    upstreams = [upstream_at(here.address, timeouts=Timeouts(idle_s=30.0 + number))]
    routes = [Route(f"route-{number % 7}", ("llm",), limits=Limits(buffer_bytes=(64 + number) * 1024))]
    if number % 3 == 0:
        upstreams.append(upstream_at(there.address, "extra"))
        routes.insert(0, Route("extra", ("extra",), Match("/extra")))
    return settings_for(*upstreams, routes=routes, max_buffered_bytes=(100 + number) * 1024 * 1024)


async def whole_stream(app: App, sent_by: Model, path: str = "/v1/chat/completions") -> tuple[Model, bytes]:
    """One stream, on a connection of its own."""
    async with client_of(app) as client:
        reply = await client.ask(request("GET", path))
        assert reply.is_whole
        return sent_by, reply.body


async def load_and_reload(app: App, models: list[Model], pools: weakref.WeakSet[Any]) -> list[tuple[Model, bytes]]:
    """Streams that begin and run all the time, while one configuration follows the other; what each gave, and who
    should have sent it."""
    streams: list[asyncio.Task[tuple[Model, bytes]]] = []
    for number in range(1, RELOADS + 1):
        app.reload(nth(number, models))
        pools.update(target.pool for target in app._gateway.plan.targets.values())
        with pytest.raises(SecretUnreadableError):  # a bad one in between changes nothing
            app.reload(replace(nth(number + 1, models), auth=SecretSource(env="SIDECAR_TEST_UNSET")))
        here, there = models[number % 2], models[(number + 1) % 2]
        streams += [asyncio.create_task(whole_stream(app, here)) for _ in range(2)]
        if number % 3 == 0:
            streams.append(asyncio.create_task(whole_stream(app, there, "/extra")))
        count = 1 + len(streams)
        await until(partial(_have_begun, models, count))
    assert len(app._retired) > 5, "streams were running on upstreams of earlier configurations"
    return await asyncio.gather(*streams)


def _have_begun(models: list[Model], count: int) -> bool:
    return sum(len(each.sent) for each in models) == count


def count_of(kind: type) -> int:
    """How many there are; what was there before the collector froze is not counted."""
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


@in_a_pod
async def test_a_hundred_reloads_under_load_drop_nothing_and_leak_nothing() -> None:
    pools: weakref.WeakSet[Any] = weakref.WeakSet()
    async with AsyncExitStack() as stack:
        models = [await stack.enter_async_context(model(40, name)) for name in ("even", "odd")]
        app = await stack.enter_async_context(running(nth(0, models)))
        first = await whole_stream(app, models[0])
        files, tasks = open_files(), len(asyncio.all_tasks())
        received = [first, *await load_and_reload(app, models, pools)]
        for served in models:
            assert sorted(body for sent_by, body in received if sent_by is served) == sorted(served.sent)
        app._sweep_idle(0.0)
        targets = app._gateway.plan.targets.values()
        assert app._retired == []
        assert app.streams.outcomes == {Outcome.COMPLETED: len(received)}
        await until(lambda: open_files() <= files + 2 * len(targets))  # both ends of an idle connection to each
        await turns(5)
        assert (count_of(Plan), count_of(UpstreamPool)) == (1, len(targets))
        assert set(pools) == {target.pool for target in targets}
        assert app.streams.tasks == 0
        assert len(asyncio.all_tasks()) <= tasks + len(targets)  # the models', one to a connection
        app.reload(nth(0, models))


# The file


def test_a_file_is_taken_when_it_has_stood_still(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("a: 1")
    watch = FileWatch(str(file))
    assert not watch.has_changed()
    for half in ("a: 12", "a: 123", "a: 1234"):
        file.write_text(half)
        assert not watch.has_changed(), "it is still being written"
    assert watch.has_changed()
    assert not watch.has_changed()
    file.unlink()
    assert [watch.has_changed() for _ in range(3)] == [False, True, False]
    file.write_text("a: 1")
    watch.take()
    assert [watch.has_changed() for _ in range(2)] == [False, False]


def test_a_config_map_is_seen_to_change(tmp_path: Path) -> None:
    config_map = ConfigMap(tmp_path / "config", "a: 1")
    watch = FileWatch(str(config_map.file))
    assert not watch.has_changed()
    config_map.update("a: 2")
    assert [watch.has_changed() for _ in range(3)] == [False, True, False]


class Taken:
    """A process that takes configurations and remembers them."""

    def __init__(self) -> None:
        self.taken: list[tuple[Settings, bool]] = []
        self.more = threading.Event()

    def prepare(self, wanted: Settings, *, afresh: bool) -> tuple[Settings, bool]:
        if wanted.max_header_bytes == 1024:
            raise ValueError("this can never work")
        return wanted, afresh

    def adopt(self, prepared: tuple[Settings, bool]) -> Changes:
        self.taken.append(prepared)
        self.more.set()
        return Changes((f"max_header is {prepared[0].max_header_bytes}",), ("listen",), ("a warning",))


@contextmanager
def reloading(file: Path, process: Taken, patch: pytest.MonkeyPatch) -> Iterator[Reloader[Any]]:
    patch.setattr("sidecar.reload.LOOK_INTERVAL_S", 0.01)

    def load() -> Loaded:
        return load_file(str(file), environ={})

    reloader = Reloader(process, load, FileWatch(str(file)), asyncio.get_running_loop())
    reloader.start()
    try:
        yield reloader
    finally:
        reloader.close()


class Slow(Taken):
    """Tells how many were prepared when it takes one over."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared = 0
        self.seen: list[int] = []

    def prepare(self, wanted: Settings, *, afresh: bool) -> tuple[Settings, bool]:
        self.prepared += 1
        return super().prepare(wanted, afresh=afresh)

    def adopt(self, prepared: tuple[Settings, bool]) -> Changes:
        self.seen.append(self.prepared)
        return super().adopt(prepared)


@on_uvloop
async def test_each_reload_is_made_from_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(text("2KiB"))
    process = Slow()
    with reloading(file, process, monkeypatch) as reloader:
        reloader.ask()
        while not process.prepared:
            time.sleep(0.001)  # the loop stands still, and takes nothing over
        reloader.ask()
        time.sleep(0.1)
        await until(lambda: len(process.taken) == 2)
    assert process.seen == [1, 2]
    reloader._thread.join(10.0)
    assert not reloader._thread.is_alive()


def text(header: str) -> str:
    return f"max_header: {header}\nupstreams: {{llm: {{url: 'http://127.0.0.1:9'}}}}\n"


@on_uvloop
async def test_a_file_that_changes_is_taken_and_a_bad_one_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sidecar.reload")
    process = Taken()
    config_map = ConfigMap(tmp_path / "config", text("2KiB"))

    def said(what: str) -> int:
        return sum(what in record.getMessage() for record in caplog.records)

    with reloading(config_map.file, process, monkeypatch) as reloader:
        config_map.update(text("3KiB"))
        await until(lambda: len(process.taken) == 1)
        assert (process.taken[0][0].max_header_bytes, process.taken[0][1]) == (3072, False)
        config_map.update(text("3 parsecs") + "colour: blue\n")
        await until(lambda: said("colour"))
        assert said("stays as it is: 2 problems") == said(f"{config_map.file}:1: max_header: ") == 1
        assert said(f"{config_map.file}:3: colour: unknown key") == 1
        config_map.update(text("1KiB"))
        await until(lambda: said("stays as it is: this can never work"))
        assert len(process.taken) == 1
        reloader.ask()
        await until(lambda: said("this can never work") == 2)
        config_map.update(text("4KiB"))
        await until(lambda: len(process.taken) == 2)
        reloader.ask()
        await until(lambda: len(process.taken) == 3)
        assert [(each.max_header_bytes, afresh) for each, afresh in process.taken[1:]] == [(4096, False), (4096, True)]
    assert said("configuration reloaded: max_header is 4096") == 2
    assert said("listen: stays as it was until a restart") == said("a warning") == 3
