"""No upstream ever receives a credential meant for another, and no log line, answer or repr holds one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from sidecar.settings import (
    Address,
    Cors,
    Credentials,
    CredentialsPolicy,
    Match,
    Retry,
    Route,
    SecretSource,
    Settings,
    Upstream,
)
from tests.app_support import (
    CHAT,
    Answers,
    Headers,
    answering,
    ask,
    asked,
    before,
    client_of,
    on_uvloop,
    openai_frames,
    plain,
    request,
    running,
    settings_for,
    stream,
    upstream_at,
)
from tests.departures import until
from tests.upstream_support import serving, turns

CLIENT_KEY = "client-key-7f3a"
ALPHA_KEY = "alpha-key-91bc"
BETA_KEY = "beta-key-44de"
OWN_TOKEN = "own-token-5a5a"
ENVIRON = {"ALPHA": ALPHA_KEY, "BETA": BETA_KEY, "OWN": OWN_TOKEN}
ALL_KEYS = [CLIENT_KEY, ALPHA_KEY, BETA_KEY, OWN_TOKEN]

CLIENT_FORMS: list[tuple[str, Headers]] = [
    *(
        (CHAT, [(name, f"{CLIENT_KEY}")])
        for name in ("x-api-key", "X-API-KEY", "api-key", "x-goog-api-key", "Ocp-Apim-Subscription-Key", "X-Beta-Key")
    ),
    (CHAT, [("Authorization", f"Bearer {CLIENT_KEY}")]),
    (CHAT, [("authorization", f"Basic {CLIENT_KEY}")]),
    (CHAT, [("Cookie", f"session={CLIENT_KEY}")]),
    (CHAT, [("X-Amz-Security-Token", CLIENT_KEY)]),
    (CHAT, [("Proxy-Authorization", f"Basic {CLIENT_KEY}")]),
    (CHAT, [("X-Hop", CLIENT_KEY), ("Connection", "X-Hop")]),
    (CHAT, [("x-api-key", CLIENT_KEY), ("Authorization", f"Bearer {CLIENT_KEY}"), ("X-Api-Key", CLIENT_KEY)]),
    *(
        (f"{CHAT}?a=1&{name}={CLIENT_KEY}&b=2", [])
        for name in ("key", "api_key", "api-key", "apikey", "access_token", "token", "KEY", "%6Bey", "api%5Fkey")
    ),
    (f"{CHAT}?a=1;key={CLIENT_KEY}", []),
]


@pytest.fixture(autouse=True)
def no_key_in_any_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, no logger of this process is told a key."""
    caplog.set_level(logging.DEBUG)
    yield
    said = "\n".join(record.getMessage() for record in caplog.get_records("call"))
    assert not any(key in said for key in ALL_KEYS)


def keyed(name: str, address: Address, env: str, **options: Any) -> Upstream:
    credentials = Credentials("replace", secret=SecretSource(env=env), **options)
    return upstream_at(address, name, credentials=credentials)


def two_routes(alpha: Answers, beta: Answers) -> Settings:
    """Beta, under /beta, takes its key in a header of its own; alpha takes a bearer token."""
    upstreams = (
        keyed("alpha", alpha.address, "ALPHA"),
        keyed("beta", beta.address, "BETA", header="X-Beta-Key", prefix=""),
    )
    routes = [
        Route("beta", ("beta",), Match("/beta/**"), strip_prefix="/beta"),
        Route("alpha", ("alpha",)),
    ]
    return settings_for(*upstreams, routes=routes)


def keys_in(answers: Answers) -> list[set[str]]:
    """Which keys each request that came held, anywhere in its bytes."""
    return [{key for key in ALL_KEYS if key.encode() in received.raw} for received in answers.received]


@pytest.mark.parametrize(("target", "headers"), CLIENT_FORMS)
@on_uvloop
async def test_each_upstream_is_sent_its_own_key_and_no_other(target: str, headers: Headers) -> None:
    async with (
        answering(stream(openai_frames("a"))) as alpha,
        answering(plain(b"{}")) as beta,
        running(two_routes(alpha, beta), ENVIRON) as app,
    ):
        for _ in range(2):
            assert (await asked(app, ask(target, headers))).status == 200
            assert (await asked(app, ask("/beta" + target, headers))).status == 200
        assert keys_in(alpha) == [{ALPHA_KEY}] * 2
        assert keys_in(beta) == [{BETA_KEY}] * 2
        assert alpha.received[0].header("Authorization") == f"Bearer {ALPHA_KEY}"
        assert alpha.received[0].header("X-Beta-Key") is None
        assert beta.received[0].header("X-Beta-Key") == BETA_KEY
        assert beta.received[0].header("Authorization") is None


@pytest.mark.parametrize(("target", "headers"), CLIENT_FORMS[:4] + CLIENT_FORMS[-3:])
@pytest.mark.parametrize(
    ("policy", "expected"),
    [("client", CLIENT_KEY), ("none", None), ("if_missing", CLIENT_KEY)],
)
@on_uvloop
async def test_policies(target: str, headers: Headers, policy: CredentialsPolicy, expected: str | None) -> None:
    secret = SecretSource(env="ALPHA") if policy == "if_missing" else None
    credentials = {"credentials": Credentials(policy, secret=secret)}
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, upstream=credentials, environ=ENVIRON) as app,
    ):
        assert (await asked(app, ask(target, headers))).status == 200
        assert keys_in(upstream) == [{expected} if expected else set()]


@on_uvloop
async def test_own_key_is_added_where_the_client_has_none() -> None:
    credentials = {"credentials": Credentials("if_missing", secret=SecretSource(env="ALPHA"))}
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, upstream=credentials, environ=ENVIRON) as app,
    ):
        await asked(app, ask(headers=[("Cookie", f"session={CLIENT_KEY}")]))
        assert keys_in(upstream) == [{ALPHA_KEY}]


@on_uvloop
async def test_fallback_is_sent_its_own_key() -> None:
    async with serving() as closed:
        nobody = closed.address
    await turns(3)
    async with answering(plain(b"{}")) as beta:
        upstreams = keyed("alpha", nobody, "ALPHA"), keyed("beta", beta.address, "BETA")
        async with running(settings_for(*upstreams), ENVIRON) as app:
            reply = await asked(app, ask(headers=[("x-api-key", CLIENT_KEY)]))
            assert (reply.status, keys_in(beta)) == (200, [{BETA_KEY}])


@on_uvloop
async def test_fallback_without_a_key_is_sent_none() -> None:
    async with serving() as closed:
        nobody = closed.address
    await turns(3)
    async with answering(plain(b"{}")) as beta:
        upstreams = keyed("alpha", nobody, "ALPHA"), upstream_at(beta.address, "beta")
        async with running(settings_for(*upstreams), ENVIRON) as app:
            reply = await asked(app, ask(headers=[("Authorization", f"Bearer {CLIENT_KEY}")]))
            assert (reply.status, keys_in(beta)) == (200, [set()])


@pytest.mark.parametrize("commit", ["headers", "first_content", "request"])
@pytest.mark.parametrize(
    "retry", [Retry(attempts=4, max_wait_s=0.0), Retry(hedge_after_s=0.01)], ids=["status", "hedge"]
)
@on_uvloop
async def test_each_try_is_sent_its_own_key(retry: Retry, commit: Any) -> None:
    """By status, round and round again; or beside one that says nothing."""
    async with (
        serving() as silent,
        answering(plain(b"{}", "503 Busy")) as beta,
        answering(plain(b"{}", "503 No")) as alpha,
    ):
        is_hedged = bool(retry.hedge_after_s)
        upstreams = (
            keyed("alpha", silent.address if is_hedged else alpha.address, "ALPHA"),
            keyed("beta", beta.address, "BETA"),
        )
        settings = settings_for(*upstreams, route={"retry": retry, "commit": commit})
        async with running(settings, ENVIRON) as app, client_of(app) as client:
            await client.send(ask(headers=[("x-api-key", CLIENT_KEY), ("Authorization", f"Bearer {CLIENT_KEY}")]))
            if is_hedged:
                peer = await silent.peer()
                head = await peer.request()
                assert [key for key in ALL_KEYS if key.encode() in head] == [ALPHA_KEY]
                await until(lambda: beta.received)
                peer.send(plain(b"{}", "503 Busy"))
            await client.reply()
            assert keys_in(alpha) == ([] if is_hedged else [{ALPHA_KEY}] * 2)
            assert keys_in(beta) == [{BETA_KEY}] * (1 if is_hedged else 2)


@on_uvloop
async def test_redirect_carries_no_key_anywhere() -> None:
    async with answering(plain(b"{}")) as beta:
        location = f"http://127.0.0.1:{beta.address.port}/stolen"
        moved = plain(b"", "307 Temporary Redirect", [("Location", location)])
        async with answering(moved) as alpha:
            upstreams = keyed("alpha", alpha.address, "ALPHA"), keyed("beta", beta.address, "BETA")
            async with running(settings_for(*upstreams), ENVIRON) as app:
                reply = await asked(app, ask())
                assert (reply.status, reply.header("Location")) == (307, location)
                assert (keys_in(alpha), keys_in(beta)) == ([{ALPHA_KEY}], [])


@pytest.mark.parametrize("policy", ["client", "none", "replace", "if_missing"])
@on_uvloop
async def test_bearer_for_the_sidecar_goes_no_further(policy: CredentialsPolicy) -> None:
    secret = SecretSource(env="ALPHA") if policy in {"replace", "if_missing"} else None
    credentials = {"credentials": Credentials(policy, secret=secret)}
    auth = SecretSource(env="OWN")
    async with (
        answering(plain(b"{}")) as upstream,
        before(upstream.address, upstream=credentials, environ=ENVIRON, auth=auth) as app,
    ):
        for headers in ([], [("Authorization", f"Bearer {CLIENT_KEY}")], [("Authorization", OWN_TOKEN)]):
            reply = await asked(app, ask(headers=headers))
            assert (reply.status, reply.json()["error"]["code"]) == (401, "unauthorized")
            assert reply.header("WWW-Authenticate") == "Bearer"
            assert not any(key.encode() in reply.raw_head + reply.body for key in ALL_KEYS)
        assert upstream.received == []
        assert (await asked(app, ask(headers=[("Authorization", f"Bearer {OWN_TOKEN}")]))).status == 200
        assert keys_in(upstream) == [{ALPHA_KEY} if secret else set()]


@on_uvloop
async def test_pooled_connection_carries_the_key_of_each_request() -> None:
    """Two clients share a connection to the upstream, never a key."""
    credentials = {"credentials": Credentials("client")}
    async with answering(plain(b"{}")) as upstream, before(upstream.address, upstream=credentials) as app:
        await asked(app, ask(headers=[("Authorization", f"Bearer {CLIENT_KEY}")]))
        await asked(app, ask())
        await asked(app, ask(headers=[("Authorization", f"Bearer {BETA_KEY}")]))
        assert keys_in(upstream) == [{CLIENT_KEY}, set(), {BETA_KEY}]


@pytest.fixture
def always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secret files are looked at for every request, not once a second."""
    monkeypatch.setattr("sidecar.secrets.CHECK_INTERVAL_S", 0)


@pytest.mark.usefixtures("always_looks")
@on_uvloop
async def test_rotated_secret_file_is_used_from_the_next_request_on(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(ALPHA_KEY + "\n")
    credentials = {"credentials": Credentials("replace", secret=SecretSource(file=str(file)))}
    async with answering(plain(b"{}")) as upstream, before(upstream.address, upstream=credentials) as app:
        await asked(app, ask())
        (tmp_path / "next").write_text(BETA_KEY + "\n")
        os.replace(tmp_path / "next", file)  # as Kubernetes and careful people do
        await asked(app, ask())
        file.write_text(ALPHA_KEY + ALPHA_KEY)
        await asked(app, ask())
        assert [received.header("Authorization") for received in upstream.received] == [
            f"Bearer {ALPHA_KEY}",
            f"Bearer {BETA_KEY}",
            f"Bearer {ALPHA_KEY}{ALPHA_KEY}",
        ]


@pytest.mark.usefixtures("always_looks")
@on_uvloop
async def test_half_done_rotation_keeps_the_last_good_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(ALPHA_KEY)
    credentials = {"credentials": Credentials("replace", secret=SecretSource(file=str(file)))}
    async with answering(plain(b"{}")) as upstream, before(upstream.address, upstream=credentials) as app:
        await asked(app, ask())
        file.write_text("")
        await asked(app, ask())
        file.unlink()
        assert (await asked(app, ask())).status == 200
        assert keys_in(upstream) == [{ALPHA_KEY}] * 3


@on_uvloop
async def test_without_a_readable_key_nothing_is_sent(tmp_path: Path) -> None:
    credentials = {"credentials": Credentials("replace", secret=SecretSource(file=str(tmp_path / "none")))}
    async with answering(plain(b"{}")) as upstream, before(upstream.address, upstream=credentials) as app:
        reply = await asked(app, ask(headers=[("x-api-key", CLIENT_KEY)]))
        assert (reply.status, reply.json()["error"]["code"], upstream.received) == (500, "internal", [])


FAILING = [
    b"garbage\r\n\r\n",
    plain(b'{"error":{"message":"bad key"}}', "401 Unauthorized"),
    plain(b"<html>", headers=[("Content-Type", "text/html")]),
]


@pytest.mark.parametrize("answer", FAILING, ids=["garbage", "rejected", "html"])
@pytest.mark.parametrize("format_name", ["native", "typed"])
@on_uvloop
async def test_no_failure_tells_a_key(answer: bytes, format_name: str) -> None:
    headers = [("x-api-key", CLIENT_KEY), ("X-Stream-Format", format_name)]
    async with answering(answer) as alpha, running(settings_for(keyed("a", alpha.address, "ALPHA")), ENVIRON) as app:
        for data in (ask(headers=headers), request("GET", f"{CHAT}?key={CLIENT_KEY}", headers=headers)):
            reply = await asked(app, data)
            assert not any(key.encode() in reply.raw_head + reply.body for key in ALL_KEYS)


@on_uvloop
async def test_no_repr_or_description_holds_a_key() -> None:
    """Settings, parts and what the admin port shows, down to every object a stream is made of."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving())
        settings = settings_for(
            keyed("alpha", server.address, "ALPHA"), auth=SecretSource(env="OWN"), cors=Cors(("https://a.test",))
        )
        app = await stack.enter_async_context(running(settings, ENVIRON))
        client = await stack.enter_async_context(client_of(app))
        await client.send(ask(headers=[("Authorization", f"Bearer {OWN_TOKEN}"), ("x-api-key", CLIENT_KEY)]))
        await (await server.peer()).request()
        told = [repr(settings), str(app.describe_streams()), repr(vars(app))]
        told += [repr(target) for target in app._gateway.plan.targets.values()]
        slots = [
            (each, name)
            for each in app.streams
            for kind in type(each).__mro__[:-1]
            for name in getattr(kind, "__slots__", ())
        ]
        told += [repr(getattr(each, name, None)) for each, name in slots]
        for key in ALL_KEYS:
            assert [text[:300] for text in told if key in text] == []
