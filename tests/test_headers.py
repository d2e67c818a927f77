"""Headers in both directions, and the rule that no upstream is shown a credential meant for another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from sidecar.errors import Failure
from sidecar.headers import (
    CREDENTIAL_HEADERS,
    CREDENTIAL_PARAMETERS,
    HOP_BY_HOP,
    HeaderPolicy,
    Headers,
    cors_headers,
    credential_headers,
    has_query_credentials,
    is_preflight,
    preflight_headers,
    response_headers,
    stream_headers,
    strip_query_credentials,
)
from sidecar.settings import Address, Cors, Credentials, CredentialsPolicy, SecretSource, Settings, Upstream
from sidecar.upstream.request import request_head

OURS = "our-secret"
THEIRS = b"their-secret"
SOURCE = SecretSource(env="KEY")
PLAIN: Headers = [
    (b"Host", b"sidecar:8080"),
    (b"User-Agent", b"OpenAI/Python 2.0"),
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, br"),
    (b"Connection", b"keep-alive"),
    (b"Content-Type", b"application/json"),
    (b"Content-Length", b"123"),
    (b"X-Stainless-Lang", b"python"),
]


def upstream(credentials: Credentials, *, forwarded: bool = False) -> Upstream:
    return Upstream(
        "up",
        "https",
        Address("api.example.com", 443),
        "api.example.com",
        credentials=credentials,
        set_headers=(("X-Team", "search"),),
        remove_headers=("X-Stainless-Lang",),
        forwarded=forwarded,
    )


def credentials_for(policy: CredentialsPolicy, header: str = "Authorization", prefix: str = "Bearer ") -> Credentials:
    return Credentials(policy, header, prefix, SOURCE if policy in {"replace", "if_missing"} else None)


def sent(
    policy: CredentialsPolicy, *extra: tuple[bytes, bytes], target: str = "/v1/chat", consumed: bool = False
) -> tuple[str, dict[bytes, bytes]]:
    credentials = credentials_for(policy)
    path, headers = HeaderPolicy(upstream(credentials)).request(
        [*PLAIN, *extra], target, credential=OURS if credentials.secret else None, own_bearer_consumed=consumed
    )
    lowered = {name.lower(): value for name, value in headers}
    assert len(lowered) == len(headers)
    return path, lowered


def test_a_typical_request_keeps_what_travels() -> None:
    _, headers = HeaderPolicy(upstream(credentials_for("none"))).request(
        PLAIN, "/v1/chat", credential=None, own_bearer_consumed=False
    )
    assert headers == [
        (b"Host", b"api.example.com"),
        (b"Accept-Encoding", b"identity"),
        (b"X-Team", b"search"),
        (b"User-Agent", b"OpenAI/Python 2.0"),
        (b"Accept", b"application/json"),
        (b"Content-Type", b"application/json"),
    ]


def test_hop_by_hop_headers_and_those_connection_names_stay_here() -> None:
    hop: Headers = [
        (b"Connection", b"close, X-Secret-Hop"),
        (b"connection", b"Authorization"),
        (b"X-Secret-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Authorization", THEIRS),
        (b"Proxy-Connection", b"close"),
        (b"TE", b"trailers"),
        (b"Trailer", b"X-T"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Expect", b"100-continue"),
        (b"X-Stream-Format", b"typed"),
        (b"Authorization", THEIRS),
    ]
    policy = HeaderPolicy(upstream(credentials_for("client")))
    _, headers = policy.request(hop, "/", credential=None, own_bearer_consumed=False)
    assert [name for name, _ in headers] == [b"Host", b"Accept-Encoding", b"X-Team"]


def test_replace_shows_ours_alone() -> None:
    path, headers = sent("replace", (b"authorization", THEIRS), (b"X-Api-Key", THEIRS), target="/v1?key=x&a=1")
    assert headers[b"authorization"] == b"Bearer our-secret"
    assert b"x-api-key" not in headers
    assert path == "/v1?a=1"


def test_if_missing_shows_theirs_or_ours_never_both() -> None:
    assert sent("if_missing")[1][b"authorization"] == b"Bearer our-secret"
    assert sent("if_missing", (b"authorization", THEIRS))[1][b"authorization"] == THEIRS
    path, headers = sent("if_missing", (b"x-goog-api-key", THEIRS), target="/v1?token=x")
    assert (path, headers[b"x-goog-api-key"], b"authorization" in headers) == ("/v1?token=x", THEIRS, False)
    path, headers = sent("if_missing", target="/v1?key=x")
    assert (path, b"authorization" in headers) == ("/v1?key=x", False)
    assert sent("if_missing", (b"X-Amz-Date", THEIRS))[1][b"authorization"] == b"Bearer our-secret"
    headers = sent("if_missing", (b"Cookie", THEIRS))[1]
    assert (headers[b"authorization"], b"cookie" in headers) == (b"Bearer our-secret", False)


def test_client_passes_theirs_and_none_strips_it() -> None:
    path, headers = sent("client", (b"authorization", THEIRS), target="/v1?key=x")
    assert (path, headers[b"authorization"]) == ("/v1?key=x", THEIRS)
    path, headers = sent("none", (b"authorization", THEIRS), target="/v1?key=x")
    assert (path, b"authorization" in headers) == ("/v1", False)


@pytest.mark.parametrize("policy", ["replace", "if_missing", "client", "none"])
def test_the_sidecars_own_bearer_goes_nowhere(policy: CredentialsPolicy) -> None:
    _, headers = sent(policy, (b"Authorization", b"Bearer of-the-sidecar"), consumed=True)
    expected = b"Bearer our-secret" if policy in {"replace", "if_missing"} else None
    assert headers.get(b"authorization") == expected


def test_a_header_that_is_a_credential_for_one_upstream_is_one_for_all() -> None:
    special = Upstream("a", "http", Address("a", 80), "a", credentials=credentials_for("replace", "X-Special", ""))
    other = Upstream("b", "http", Address("b", 80), "b", credentials=credentials_for("none"))
    names = credential_headers(Settings({"a": special, "b": other}, ()))
    assert names == CREDENTIAL_HEADERS | {b"x-special"}
    _, headers = HeaderPolicy(other, names).request(
        [(b"x-SPECIAL", THEIRS)], "/", credential=None, own_bearer_consumed=False
    )
    assert THEIRS not in [value for _, value in headers]


header_names = st.sampled_from([*sorted(CREDENTIAL_HEADERS), b"x-special", b"proxy-authorization"]).flatmap(
    lambda name: st.sampled_from([name, name.upper(), name.title()])
)
client_credentials = st.lists(st.tuples(header_names, st.just(THEIRS)), max_size=6)
connections = st.lists(
    st.tuples(st.just(b"Connection"), st.sampled_from([b"close", b"x-team, host", b"Authorization,x-a", b",,"])),
    max_size=2,
)
queries = st.lists(
    st.sampled_from(["a=1", "key=theirs", "%6Bey=theirs", "API-KEY=theirs", "+key=theirs", "b;key=theirs", "key", ""]),
    max_size=4,
).map("&".join)


@given(
    policy=st.sampled_from(["replace", "if_missing", "client", "none"]),
    header=st.sampled_from(["Authorization", "x-api-key", "X-Special"]),
    theirs=client_credentials,
    connection=connections,
    query=queries,
    consumed=st.booleans(),
)
def test_no_upstream_is_shown_a_credential_that_is_not_for_it(
    policy: CredentialsPolicy, header: str, theirs: Headers, connection: Headers, query: str, consumed: bool
) -> None:
    credentials = credentials_for(policy, header, "")
    names = CREDENTIAL_HEADERS | {b"x-special"}
    target, headers = HeaderPolicy(upstream(credentials), names).request(
        [*connection, *PLAIN, *theirs],
        f"/v1?{query}",
        credential=OURS if credentials.secret else None,
        own_bearer_consumed=consumed,
    )
    shows_ours = OURS.encode() in [value for _, value in headers]
    shows_theirs = THEIRS in [value for _, value in headers] or "theirs" in target
    assert not (shows_ours and shows_theirs)
    if policy in {"replace", "none"}:
        assert not shows_theirs
        assert shows_ours == (policy == "replace")
    elif policy == "client":
        assert not shows_ours
    if consumed:
        assert (b"authorization", THEIRS) not in [(name.lower(), value) for name, value in headers]
    assert b"proxy-authorization" not in [name.lower() for name, _ in headers]
    assert [value for name, value in headers if name.lower() == b"host"] == [b"api.example.com"]


@pytest.mark.parametrize("field", [(b"X-A", b"a\r\nX-B: b"), (b"X-A", b"a\nb"), (b"X-A", b"\0"), (b"X\r\nA", b"a")])
def test_a_header_that_would_split_is_refused_and_not_repeated(field: tuple[bytes, bytes]) -> None:
    target, headers = sent("client", field)
    with pytest.raises(Failure) as caught:
        request_head(b"POST", target.encode(), list(headers.items()))
    assert (caught.value.code, "X-B" in caught.value.message) == ("bad_request", False)


@pytest.mark.parametrize("credential", [None, "", "a\r\nX: y", "\u00fc"])
def test_an_unusable_credential_is_our_failure(credential: str | None) -> None:
    policy = HeaderPolicy(upstream(credentials_for("replace")))
    with pytest.raises(Failure) as caught:
        policy.request(PLAIN, "/", credential=credential, own_bearer_consumed=False)
    assert caught.value.code == "internal"


def test_forwarding_headers_stay_here_unless_asked_for() -> None:
    claims: Headers = [
        (b"Host", b"sidecar:8080"),
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"X-Forwarded-For", b"10.0.0.2"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Forwarded", b"for=10.0.0.1"),
    ]
    closed = HeaderPolicy(upstream(credentials_for("none")))
    _, headers = closed.request(claims, "/", credential=None, own_bearer_consumed=False, client_host="::1")
    assert [name for name, _ in headers] == [b"Host", b"Accept-Encoding", b"X-Team"]
    open_ = HeaderPolicy(upstream(credentials_for("none"), forwarded=True))
    _, headers = open_.request(claims, "/", credential=None, own_bearer_consumed=False, client_host="::1")
    assert headers[3:] == [
        (b"X-Forwarded-For", b"10.0.0.1, 10.0.0.2, ::1"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"sidecar:8080"),
        (b"Forwarded", b'for=10.0.0.1, for="[::1]";proto=http;host="sidecar:8080"'),
    ]


def test_forwarding_over_a_unix_socket_names_no_client() -> None:
    policy = HeaderPolicy(upstream(credentials_for("none"), forwarded=True))
    _, headers = policy.request([], "/", credential=None, own_bearer_consumed=False, scheme="https")
    assert headers[3:] == [(b"X-Forwarded-Proto", b"https"), (b"Forwarded", b"proto=https")]


@pytest.mark.parametrize(
    ("target", "stripped"),
    [
        ("/v1", "/v1"),
        ("/v1?", "/v1?"),
        ("/v1?a=1;b=2", "/v1?a=1;b=2"),
        ("/v1?key=x", "/v1"),
        ("/v1?a=%20&API_KEY=x&b=+", "/v1?a=%20&b=+"),
        ("/v1?monkey=1&keys=2", "/v1?monkey=1&keys=2"),
        ("/v1?a=1;access_token=x", "/v1?a=1"),
        ("/v1?%74oken=x&c", "/v1?c"),
    ],
)
def test_key_bearing_query_parameters_are_taken_out(target: str, stripped: str) -> None:
    assert strip_query_credentials(target) == stripped
    assert has_query_credentials(target) == (target != stripped)


@given(st.text(max_size=40))
def test_no_key_is_left_in_any_query(query: str) -> None:
    stripped = strip_query_credentials(f"/v1?{query}")
    assert not has_query_credentials(stripped)
    assert CREDENTIAL_PARAMETERS.isdisjoint(stripped.partition("?")[2].split("&"))


def test_an_answer_keeps_order_and_spelling_less_hop_by_hop_and_stream_headers() -> None:
    raw: Headers = [
        (b"DATE", b"today"),
        (b"Connection", b"X-Hop"),
        (b"Transfer-Encoding", b"chunked"),
        (b"x-hop", b"1"),
        (b"X-Stream-Id", b"another sidecar's"),
        (b"Set-Cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"Content-Length", b"5"),
    ]
    kept = [(b"DATE", b"today"), (b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"Content-Length", b"5")]
    assert response_headers(raw) == kept
    assert response_headers(raw, HOP_BY_HOP | {b"content-length"}) == kept[:-1]


def test_stream_headers_name_the_stream_and_keep_proxies_from_buffering() -> None:
    assert dict(stream_headers("id-1", "typed")) == {
        b"Cache-Control": b"no-cache, no-transform",
        b"X-Accel-Buffering": b"no",
        b"X-Stream-Id": b"id-1",
        b"X-Stream-Format": b"typed",
    }


def test_cors_is_off_by_default_and_names_the_origin() -> None:
    named = Cors(("https://app.example.com",))
    exposed = (
        b"Access-Control-Expose-Headers",
        b"X-Stream-Id, X-Stream-Format, Retry-After, RateLimit, RateLimit-Policy",
    )
    assert cors_headers(Cors(), "https://app.example.com") == []
    assert cors_headers(named, None) == [(b"Vary", b"Origin")]
    assert cors_headers(named, "https://evil.example") == [(b"Vary", b"Origin")]
    assert cors_headers(named, "https://app.example.com") == [
        (b"Vary", b"Origin"),
        (b"Access-Control-Allow-Origin", b"https://app.example.com"),
        exposed,
    ]
    assert cors_headers(Cors(("*",)), "https://any") == [(b"Access-Control-Allow-Origin", b"*"), exposed]
    assert cors_headers(Cors(("*",)), None) == []


def test_preflights_are_answered_for_allowed_origins_alone() -> None:
    cors = Cors(("https://app.example.com",))
    answer = dict(preflight_headers(cors, "https://app.example.com", "POST", "authorization, content-type"))
    assert answer[b"Access-Control-Allow-Origin"] == b"https://app.example.com"
    assert answer[b"Access-Control-Allow-Headers"] == b"authorization, content-type"
    assert b"POST" in answer[b"Access-Control-Allow-Methods"]
    assert answer[b"Vary"] == b"Origin"
    assert b"Access-Control-Allow-Headers" not in dict(preflight_headers(cors, cors.origins[0], "GET", "a\r\nb: c"))
    for origin, method in (("https://evil.example", "POST"), (cors.origins[0], "TRACE")):
        with pytest.raises(Failure) as caught:
            preflight_headers(cors, origin, method, None)
        assert (caught.value.code, caught.value.http_status) == ("forbidden_origin", 403)


def test_what_is_a_preflight() -> None:
    headers = CIMultiDict({"origin": "https://a", "access-control-request-method": "POST"})
    assert is_preflight("OPTIONS", headers)
    assert not is_preflight("POST", headers)
    assert not is_preflight("OPTIONS", CIMultiDict({"Origin": "https://a"}))


@pytest.mark.parametrize("removed", ["Cookie", "authorization", "X-API-Key"])
def test_what_is_removed_in_any_case_is_not_passed_on_as_the_clients_own_credential(removed: str) -> None:
    asked = replace(upstream(credentials_for("client")), remove_headers=(removed,))
    theirs = [(b"Cookie", b"c"), (b"Authorization", b"Bearer a"), (b"x-api-key", b"k")]
    _, headers = HeaderPolicy(asked).request(theirs, "/v1/chat", credential=None, own_bearer_consumed=False)
    names = {name.lower() for name, _ in headers}
    assert removed.lower().encode() not in names
    assert {b"cookie", b"authorization", b"x-api-key"} - names == {removed.lower().encode()}
