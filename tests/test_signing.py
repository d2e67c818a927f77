"""Requests signed for AWS: right for the very bytes that arrive, with keys that nobody else is shown."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from botocore.exceptions import ClientError

from sidecar.app import App
from sidecar.configuration import load
from sidecar.errors import Failure
from sidecar.secrets import AwsKeys, SecretUnreadableError
from sidecar.settings import (
    Address,
    AwsKeySource,
    AwsSigning,
    Credentials,
    Match,
    Route,
    SecretSource,
    ServerTls,
    Upstream,
)
from sidecar.signing import MISSING, Signer
from tests import aws_messages as aws
from tests.app_support import (
    Headers,
    Received,
    Reply,
    answering,
    asked,
    on_uvloop,
    plain,
    request,
    running,
    settings_for,
    stream,
    upstream_at,
)
from tests.aws_verifier import signed_by
from tests.departures import make_certificates
from tests.official_bedrock import MODEL, bedrock_client, converse_stream, invoke_stream
from tests.upstream_support import serving, turns

KEY_ID, SECRET_KEY, TOKEN = "AKIDEXAMPLE1", "wJalr/XUtn+FEMI", "session-token-5f=="
OTHER_ID, OTHER_SECRET = "AKIDEXAMPLE2", "other-secret-key"
SECRETS = {KEY_ID: SECRET_KEY, OTHER_ID: OTHER_SECRET}
CLIENTS_OWN = "clients-own-9c1d"
ENVIRON = {"ID": KEY_ID, "KEY": SECRET_KEY, "TOKEN": TOKEN, "OTHER": "other-upstreams-key"}
FROM_ENVIRON = AwsKeySource(access_key_id="ID", secret_access_key="KEY")
WITH_TOKEN = AwsKeySource(access_key_id="ID", secret_access_key="KEY", session_token="TOKEN")
CONVERSE = "/model/anthropic.claude-3%3A0/converse-stream"
ANSWER = stream(
    [
        aws.event("messageStart", {"role": "assistant"}),
        aws.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hi"}}),
        aws.event("messageStop", {"stopReason": "end_turn"}),
        aws.event("metadata", {"usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}}),
    ],
    aws.EVENT_STREAM,
)


@pytest.fixture(autouse=True)
def no_secret_in_any_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, no logger of this process is told a secret; botocore's own would be."""
    caplog.set_level(logging.DEBUG)
    yield
    said = "\n".join(record.getMessage() for record in caplog.get_records("call"))
    assert not any(secret in said for secret in (SECRET_KEY, TOKEN, OTHER_SECRET, CLIENTS_OWN))


def bedrock(address: Address, keys: AwsKeySource, name: str = "bedrock", **options: Any) -> Upstream:
    signing = AwsSigning(options.pop("region", "eu-central-1"), keys, options.pop("service", "bedrock"))
    return upstream_at(address, name, credentials=Credentials("replace", aws=signing), **options)


def posted(target: str = CONVERSE, body: bytes = b'{"messages":[]}', headers: Headers = ()) -> bytes:
    return request("POST", target, body, [("Content-Type", "application/json"), *headers])


async def received_by_aws(
    data: bytes, keys: AwsKeySource = FROM_ENVIRON, environ: Mapping[str, str] = ENVIRON, **options: Any
) -> tuple[Reply, Received]:
    """The answer to one request, and the request as AWS gets it."""
    route = options.pop("route", {})
    async with answering(ANSWER) as upstream:
        settings = settings_for(bedrock(upstream.address, keys, **options), route=route)
        async with running(settings, environ) as app:
            reply = await asked(app, data)
    (received,) = upstream.received
    return reply, received


@pytest.mark.parametrize(
    "target",
    [
        CONVERSE,
        "/model/anthropic.claude-3:0/converse-stream",
        "/model/arn%3Aaws%3Abedrock%3Aeu%3A1%3Aprofile%2Fx/converse-stream",
        "/model/m/converse-stream?b=2&a=1&a=0&empty",
        "/",
        "/model/caf%C3%A9%20au%20lait/converse-stream/",
        "/a~b/c(d)!",
    ],
)
@on_uvloop
async def test_the_signature_is_of_the_path_that_is_sent(target: str) -> None:
    reply, received = await received_by_aws(posted(target))
    assert (reply.status, received.target) == (200, target)
    assert signed_by(received, SECRETS) == (KEY_ID, "eu-central-1", "bedrock")
    assert received.header("X-Amz-Security-Token") is None


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\x00", b"x" * 300_000])
@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream", ""])
@on_uvloop
async def test_every_body_is_read_whole_and_signed(body: bytes, kind: str) -> None:
    headers = [("Content-Type", kind)] if kind else []
    reply, received = await received_by_aws(request("POST", CONVERSE, body, headers))
    assert (reply.status, received.body) == (200, body)
    assert received.header("Transfer-Encoding") is None
    signed_by(received, SECRETS)


@on_uvloop
async def test_a_body_in_chunks_is_sent_with_its_length() -> None:
    head = request("POST", CONVERSE, None, [("Content-Type", "image/png"), ("Transfer-Encoding", "chunked")])
    reply, received = await received_by_aws(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (reply.status, received.body, received.header("Content-Length")) == (200, b"abcde", "5")
    signed_by(received, SECRETS)


@on_uvloop
async def test_a_get_is_signed_too() -> None:
    _, received = await received_by_aws(request("GET", "/foundation-models?byProvider=x"))
    assert (received.method, received.body) == ("GET", b"")
    signed_by(received, SECRETS)


@on_uvloop
async def test_what_the_sidecar_changes_is_signed_as_changed() -> None:
    reply, received = await received_by_aws(
        posted("/aws/model/gpt-4o/converse-stream", b'{"model":"gpt-4o","messages":[]}'),
        model_map=(("gpt-*", "us.anthropic.claude-3:0"),),
        base_path="/proxy",
        set_headers=(("X-Amzn-Bedrock-Trace", "ENABLED"), ("X-Team", "search")),
        service="bedrock-x",
        region="us-gov-west-1",
        route={"strip_prefix": "/aws"},
    )
    assert reply.status == 200
    assert received.target == "/proxy/model/us.anthropic.claude-3%3A0/converse-stream"
    assert b"us.anthropic" in received.body
    assert signed_by(received, SECRETS) == (KEY_ID, "us-gov-west-1", "bedrock-x")
    assert "x-amzn-bedrock-trace" in (received.header("Authorization") or "")
    assert "x-team" not in (received.header("Authorization") or "")


@on_uvloop
async def test_headers_aws_wants_signed_are_signed_as_they_are() -> None:
    spaced = [("X-Amz-Meta", "a   b"), ("x-amz-meta", "c"), ("X-Amzn-Trace-Id", "Root=1"), ("User-Agent", "x")]
    _, received = await received_by_aws(posted(headers=spaced))
    signed_by(received, SECRETS)
    assert "x-amz-meta" in (received.header("Authorization") or "")


@on_uvloop
async def test_a_header_that_cannot_be_signed_is_refused() -> None:
    async with (
        answering(ANSWER) as upstream,
        running(settings_for(bedrock(upstream.address, FROM_ENVIRON)), ENVIRON) as app,
    ):
        reply = await asked(app, posted(headers=[("X-Amz-Meta", "caf\xe9")]))
    assert (reply.status, reply.header("x-amzn-ErrorType"), upstream.received) == (400, "ValidationException", [])


@on_uvloop
async def test_a_session_token_goes_with_its_keys() -> None:
    _, received = await received_by_aws(posted(), WITH_TOKEN)
    assert received.header("X-Amz-Security-Token") == TOKEN
    signed_by(received, SECRETS)


CLIENTS = [
    ("Authorization", f"AWS4-HMAC-SHA256 Credential={CLIENTS_OWN}/x, SignedHeaders=host, Signature=0"),
    ("X-Amz-Security-Token", CLIENTS_OWN),
    ("X-Amz-Date", f"20200101T000000Z{CLIENTS_OWN}"),
    ("X-Amz-Content-SHA256", CLIENTS_OWN),
    ("x-api-key", CLIENTS_OWN),
]
PRESIGNED = "&".join(
    f"X-Amz-{name}={CLIENTS_OWN}"
    for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Security-Token", "Signature")
)


@on_uvloop
async def test_nothing_a_client_signed_reaches_any_upstream() -> None:
    async with answering(ANSWER) as upstream, answering(plain(b"{}")) as other:
        key = Credentials("replace", secret=SecretSource(env="OTHER"))
        upstreams = (
            bedrock(upstream.address, WITH_TOKEN),
            upstream_at(other.address, "other", credentials=key),
            upstream_at(other.address, "open", credentials=Credentials("none")),
        )
        routes = [
            Route("bedrock", ("bedrock",), Match("/model/**")),
            Route("open", ("open",), Match("/open/**")),
            Route("other", ("other",)),
        ]
        async with running(settings_for(*upstreams, routes=routes), ENVIRON) as app:
            for path in (CONVERSE, "/v1/chat/completions", "/open/x"):
                for target in (path, f"{path}?{PRESIGNED}&kept=1"):
                    assert (await asked(app, posted(target, headers=CLIENTS))).status == 200
    assert (len(upstream.received), len(other.received)) == (2, 4)
    for received in (*upstream.received, *other.received):
        assert CLIENTS_OWN.encode() not in received.raw
    for received in upstream.received:
        signed_by(received, SECRETS)
    for received in other.received:
        assert not any(secret.encode() in received.raw for secret in (KEY_ID, SECRET_KEY, TOKEN))


@on_uvloop
async def test_a_client_may_keep_its_own_signature_where_it_is_wanted() -> None:
    async with answering(ANSWER) as upstream:
        own = upstream_at(upstream.address, credentials=Credentials("client"))
        async with running(settings_for(own), {}) as app:
            await asked(app, posted(headers=CLIENTS))
    assert {name: upstream.received[0].header(name) for name, _ in CLIENTS} == dict(CLIENTS)


@on_uvloop
async def test_each_upstream_of_a_route_is_signed_for_anew() -> None:
    async with serving() as closed:
        nobody = closed.address
    await turns(3)
    others = AwsKeySource(access_key_id="ID2", secret_access_key="KEY2")
    async with answering(ANSWER) as upstream:
        upstreams = (
            bedrock(nobody, WITH_TOKEN, "near"),
            bedrock(upstream.address, others, "far", region="us-east-1"),
        )
        environ = {**ENVIRON, "ID2": OTHER_ID, "KEY2": OTHER_SECRET}
        async with running(settings_for(*upstreams), environ) as app:
            assert (await asked(app, posted())).status == 200
    assert signed_by(upstream.received[0], SECRETS) == (OTHER_ID, "us-east-1", "bedrock")
    assert TOKEN.encode() not in upstream.received[0].raw


# Real clients.


@pytest.mark.parametrize("ask", [converse_stream, invoke_stream])
@pytest.mark.parametrize("keys", [FROM_ENVIRON, WITH_TOKEN])
@on_uvloop
async def test_boto3_through_the_sidecar_is_signed_for_by_the_sidecar(
    ask: Callable[[Any], Iterator[Any]], keys: AwsKeySource
) -> None:
    piece = b'{"outputText":"Hi","completionReason":"FINISHED"}'
    answer = ANSWER if ask is converse_stream else stream([aws.chunk(piece)], aws.EVENT_STREAM)
    async with answering(answer) as upstream, running(settings_for(bedrock(upstream.address, keys)), ENVIRON) as app:
        events = await asyncio.to_thread(events_of, app, ask)
    assert events[0] in ({"messageStart": {"role": "assistant"}}, {"chunk": {"bytes": piece}})
    (received,) = upstream.received
    assert signed_by(received, SECRETS) == (KEY_ID, "eu-central-1", "bedrock")
    assert MODEL.replace(":", "%3A") in received.target
    assert CLIENTS_OWN.encode() not in received.raw


def events_of(app: App, ask: Callable[[Any], Iterator[Any]], ca_file: str | None = None) -> list[Any]:
    keys = {"aws_access_key_id": CLIENTS_OWN, "aws_secret_access_key": "x", "aws_session_token": "y"}
    # Its own signature would be in the log of this process.
    logging.getLogger("botocore").setLevel(logging.INFO)
    try:
        scheme = "https" if ca_file else "http"
        with bedrock_client(f"{scheme}://{app.address}", ca_file=ca_file, **keys) as client:
            return list(ask(client))
    finally:
        logging.getLogger("botocore").setLevel(logging.NOTSET)


@on_uvloop
async def test_boto3_may_bear_the_sidecars_own_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", CLIENTS_OWN)
    made = make_certificates(tmp_path)
    tls, own = ServerTls(made.certificate, made.key), SecretSource(env="OWN")
    async with answering(ANSWER) as upstream:
        settings = settings_for(bedrock(upstream.address, FROM_ENVIRON), auth=own, tls=tls)
        async with running(settings, {**ENVIRON, "OWN": CLIENTS_OWN}) as app:
            events = await asyncio.to_thread(events_of, app, converse_stream, made.ca_file)
    assert events[-1]["metadata"]["usage"]["totalTokens"] == 2
    assert CLIENTS_OWN.encode() not in upstream.received[0].raw
    signed_by(upstream.received[0], SECRETS)


@on_uvloop
async def test_anthropics_own_client_of_bedrock_through_the_sidecar() -> None:
    body = (Path(__file__).parent / "fixtures/bedrock-invoke/anthropic.bin").read_bytes()
    async with (
        answering(stream([body], aws.EVENT_STREAM)) as upstream,
        running(settings_for(bedrock(upstream.address, FROM_ENVIRON)), ENVIRON) as app,
    ):
        told = await asyncio.to_thread(anthropic_events, app)
    assert told[0] == "message_start"
    assert told[-1] == "message_stop"
    signed_by(upstream.received[0], SECRETS)
    assert CLIENTS_OWN.encode() not in upstream.received[0].raw


def anthropic_events(app: App) -> list[str]:
    messages: Any = [{"role": "user", "content": "hi"}]
    with anthropic.AnthropicBedrock(
        base_url=f"http://{app.address}",
        max_retries=0,
        aws_access_key=CLIENTS_OWN,
        aws_secret_key="x",
        aws_region="us-east-1",
        http_client=httpx2.Client(trust_env=False),
    ) as client:
        asked_for = client.messages.create(model=MODEL, max_tokens=9, messages=messages, stream=True)
        return [event.type for event in asked_for]


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        ("429 Too Many Requests", [("x-amzn-ErrorType", "ThrottlingException:http://x/")], "ThrottlingException"),
        ("403 Forbidden", [("x-amzn-ErrorType", "AccessDeniedException")], "AccessDeniedException"),
        ("404 Not Found", [], "404"),
    ],
)
@pytest.mark.parametrize("format_name", ["native", "typed"])
@on_uvloop
async def test_boto3_raises_what_bedrock_answered(status: str, headers: Headers, code: str, format_name: str) -> None:
    answer = plain(b'{"message":"no"}', status, [("Content-Type", "application/json"), *headers])
    async with answering(answer) as upstream:
        settings = settings_for(bedrock(upstream.address, FROM_ENVIRON), route={"format": format_name})
        async with running(settings, ENVIRON) as app:
            with pytest.raises(ClientError) as caught:
                await asyncio.to_thread(events_of, app, converse_stream)
    said = caught.value.response["Error"]
    expected = "ResourceNotFoundException" if format_name == "typed" and not headers else code
    assert (said["Code"], said["Message"]) == (expected, "no")


@on_uvloop
async def test_boto3_raises_its_own_error_for_our_refusals() -> None:
    async with serving() as closed:
        nobody = closed.address
    await turns(3)
    async with running(settings_for(bedrock(nobody, FROM_ENVIRON)), ENVIRON) as app:
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(events_of, app, converse_stream)
    assert type(caught.value).__name__ == "InternalServerException"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 502


# Keys.


def keys_file(folder: Path, text: str) -> AwsKeySource:
    (folder / "credentials").write_text(text)
    return AwsKeySource(str(folder / "credentials"))


def profile(key_id: str, secret: str, token: str = "", name: str = "default") -> str:
    line = f"aws_session_token = {token}\n" if token else ""
    return f"[{name}]\naws_access_key_id = {key_id}\naws_secret_access_key={secret}\n{line}\n"


def test_a_profile_of_a_shared_credentials_file(tmp_path: Path) -> None:
    text = "# comment\n" + profile(KEY_ID, SECRET_KEY) + profile(OTHER_ID, OTHER_SECRET, TOKEN, "other one")
    source = keys_file(tmp_path, text)
    assert AwsKeys(source, {}).read() == (KEY_ID, SECRET_KEY, "")
    assert AwsKeys(AwsKeySource(source.file, "other one"), {}).read() == (OTHER_ID, OTHER_SECRET, TOKEN)


def test_keys_of_the_environment() -> None:
    assert AwsKeys(FROM_ENVIRON, ENVIRON).read() == (KEY_ID, SECRET_KEY, "")
    assert AwsKeys(WITH_TOKEN, ENVIRON).read() == (KEY_ID, SECRET_KEY, TOKEN)
    for missing in ENVIRON.keys() - {"OTHER"}:
        with pytest.raises(SecretUnreadableError, match=missing):
            AwsKeys(WITH_TOKEN, {**ENVIRON, missing: ""})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no profile default"),
        (profile(KEY_ID, SECRET_KEY, name="other"), "has no profile default"),
        (f"[default]\naws_access_key_id = {KEY_ID}\n", "has no aws_access_key_id and aws_secret_access_key"),
        ("[default]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = y\n", "has no aws_access_key_id"),
        (f"[default]\ncredential_process = /bin/echo {SECRET_KEY}\n", "has no aws_access_key_id"),
        (f"aws_secret_access_key = {SECRET_KEY}\n", "no shared-credentials file"),
        (profile(KEY_ID, SECRET_KEY) + f"aws_secret_access_key = {SECRET_KEY}\n", "no shared-credentials file"),
        (profile(KEY_ID, SECRET_KEY) * 2, "no shared-credentials file"),
        (profile(KEY_ID, f"{SECRET_KEY} {SECRET_KEY}"), "cannot be sent"),
        (profile(KEY_ID, f"{SECRET_KEY}\n  continued"), "cannot be sent"),
        (profile(KEY_ID, f"{SECRET_KEY}é"), "cannot be sent"),
        (f"[default]\n{SECRET_KEY}\n" + "x" * 70_000, "more than 64 KiB"),
    ],
)
def test_an_unusable_file_is_told_by_its_name_alone(tmp_path: Path, text: str, complaint: str) -> None:
    source = keys_file(tmp_path, text)
    keys = AwsKeys(source, {})
    with pytest.raises(SecretUnreadableError, match=complaint) as caught:
        keys.read()
    assert source.file in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (KEY_ID, SECRET_KEY))


@pytest.mark.parametrize("content", [b"\xff\xfe[default]", b"[default\n"])
def test_bytes_that_are_no_such_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "credentials").write_bytes(content)
    with pytest.raises(SecretUnreadableError, match="no shared-credentials file"):
        AwsKeys(AwsKeySource(str(tmp_path / "credentials")), {}).read()


@on_uvloop
async def test_rotated_keys_sign_the_next_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.secrets.CHECK_INTERVAL_S", 0)
    source = keys_file(tmp_path, profile(KEY_ID, SECRET_KEY, TOKEN))
    async with answering(ANSWER) as upstream, running(settings_for(bedrock(upstream.address, source)), {}) as app:
        await asked(app, posted())
        (tmp_path / "next").write_text(profile(OTHER_ID, OTHER_SECRET))
        os.replace(tmp_path / "next", source.file)
        await asked(app, posted())
        Path(source.file).write_text("half a rotation")
        await asked(app, posted())
    assert [signed_by(received, SECRETS)[0] for received in upstream.received] == [KEY_ID, OTHER_ID, OTHER_ID]
    assert upstream.received[1].header("X-Amz-Security-Token") is None


@on_uvloop
async def test_without_keys_nothing_is_sent(tmp_path: Path) -> None:
    source = AwsKeySource(str(tmp_path / "none"))
    async with answering(ANSWER) as upstream, running(settings_for(bedrock(upstream.address, source)), {}) as app:
        reply = await asked(app, posted())
    assert (reply.status, reply.header("x-amzn-ErrorType"), upstream.received) == (500, "InternalServerException", [])
    assert str(tmp_path / "none") in reply.json()["message"]


def test_no_repr_holds_a_secret(tmp_path: Path) -> None:
    keys = AwsKeys(keys_file(tmp_path, profile(KEY_ID, SECRET_KEY, TOKEN)), {})
    keys.read()
    signing = AwsSigning("eu-central-1", WITH_TOKEN)
    signer = Signer(signing, keys.read)
    signer.sign("POST", "/", [(b"Host", b"h")], b"")
    told = [repr(keys), repr(keys._parts), repr(signing), repr(signer), str(WITH_TOKEN)]
    told += [repr(getattr(signer, name)) for name in vars(signer)]
    assert not any(secret in text for text in told for secret in (KEY_ID, SECRET_KEY, TOKEN))


# Without the extra.


@pytest.fixture
def no_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "botocore":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


CONFIGURED = """
upstreams:
  bedrock:
    url: https://bedrock-runtime.eu-central-1.amazonaws.com
    credentials: {aws: {env: {access_key_id: ID, secret_access_key: KEY}}}
"""


@pytest.mark.usefixtures("no_botocore")
@on_uvloop
async def test_the_start_names_the_extra_that_is_missing() -> None:
    loaded = load(CONFIGURED, source="c", environ=ENVIRON)
    assert loaded.settings is not None
    assert [warning for warning in loaded.settings.warnings if MISSING in warning] == [
        f"upstreams.bedrock.credentials.aws: {MISSING}"
    ]
    with pytest.raises(ValueError, match=r"install llm-sidecar\[bedrock\]"):
        App(loaded.settings, ENVIRON)


@pytest.mark.usefixtures("no_botocore")
@on_uvloop
async def test_everything_else_works_without_the_extra() -> None:
    async with answering(ANSWER) as upstream:
        key = Credentials("replace", secret=SecretSource(env="OTHER"))
        async with running(settings_for(upstream_at(upstream.address, credentials=key)), ENVIRON) as app:
            reply = await asked(app, posted(headers=[("X-Stream-Format", "typed")]))
    assert [name for name, _ in reply.events()][-1] == "done"
    assert upstream.received[0].header("Authorization") == "Bearer other-upstreams-key"


def test_a_configuration_whose_keys_cannot_be_read_is_warned_of() -> None:
    loaded = load(CONFIGURED, source="c", environ={"ID": KEY_ID})
    assert loaded.settings is not None
    assert loaded.settings.warnings == (
        "upstreams.bedrock.credentials.aws: environment variable KEY is empty or not set",
    )


def test_what_cannot_be_signed_is_a_bad_request() -> None:
    signer = Signer(AwsSigning("eu-central-1", FROM_ENVIRON), AwsKeys(FROM_ENVIRON, ENVIRON).read)
    for field in ((b"X-Amz-A", b"\xe9"), (b"X-Amz-\xe9", b"a")):
        with pytest.raises(Failure, match="cannot be signed") as caught:
            signer.sign("POST", "/", [(b"Host", b"h"), field], b"")
        assert caught.value.code == "bad_request"
