"""Routing: which route wins, which paths are refused, what becomes of path and model."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from sidecar.errors import Failure
from sidecar.routing import (
    BodyPeek,
    Router,
    covers,
    mapped_model,
    model_from_path,
    path_pattern,
    peek_body,
    rewrite_model,
    safe_path,
    split_target,
    target_path,
)
from sidecar.settings import Address, Match, Route, Settings, Upstream

UPSTREAM = Upstream("up", "http", Address("127.0.0.1", 8000), "127.0.0.1:8000")
NO_HEADERS: Mapping[str, str] = CIMultiDict()


def router(*matches: Match) -> Router:
    routes = tuple(Route(str(position), ("up",), match) for position, match in enumerate(matches))
    return Router(Settings({"up": UPSTREAM}, routes))


def winner(
    *matches: Match, path: str = "/", host: str = "", headers: Mapping[str, str] = NO_HEADERS, model: str | None = None
) -> str:
    return router(*matches).match(path, host, headers, model).name


def test_the_first_route_that_fits_wins() -> None:
    matches = (Match(path="/v1/chat/completions"), Match(path="/v1/**"), Match())
    assert winner(*matches, path="/v1/chat/completions") == "0"
    assert winner(*matches, path="/v1/models") == "1"
    assert winner(*matches, path="/api/chat") == "2"


def test_no_route_is_a_404() -> None:
    with pytest.raises(Failure, match="no route") as caught:
        winner(Match(path="/v1/**"), path="/api/chat")
    assert (caught.value.code, caught.value.http_status) == ("route_not_found", 404)


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("/v1/chat", ["/v1/chat"], ["/v1/chat/", "/v1/chatx", "/v1", "/x/v1/chat"]),
        ("/v1/*", ["/v1/chat", "/v1/a.b"], ["/v1/", "/v1", "/v1/a/b"]),
        ("/v1/*/events", ["/v1/x/events"], ["/v1/events", "/v1/x/y/events"]),
        ("/v1/**", ["/v1", "/v1/", "/v1/a", "/v1/a/b/"], ["/v1x", "/v2/a"]),
        ("/**/events", ["/events", "/a/events", "/a/b/events"], ["/aevents", "/events/a"]),
        ("/**", ["/", "/a", "/a/b"], []),
        ("/a.c", ["/a.c"], ["/abc"]),
        ("/models/*:generate", ["/models/g-1:generate"], ["/models/:generate", "/models/a/b:generate"]),
    ],
)
def test_path_patterns(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    compiled = path_pattern(pattern)
    assert [path for path in fits if not compiled.fullmatch(path)] == []
    assert [path for path in fits_not if compiled.fullmatch(path)] == []


def test_host_and_headers_are_exact_or_globs() -> None:
    by_host = (Match(host="*.example.com"), Match())
    assert winner(*by_host, host="LLM.Example.com:8080") == "0"
    assert winner(*by_host, host="example.org") == "1"
    by_header = (Match(headers=(("X-Team", "search-*"), ("X-Env", "live"))), Match())
    assert winner(*by_header, headers=CIMultiDict({"x-team": "search-ml", "x-env": "live"})) == "0"
    assert winner(*by_header, headers=CIMultiDict({"x-team": "search-ml"})) == "1"
    assert winner(*by_header, headers=CIMultiDict({"x-team": "ads", "x-env": "live"})) == "1"
    assert winner(Match(host="::1"), host="[::1]:8080") == "0"


def test_models_are_case_sensitive_globs() -> None:
    matches = (Match(model="gpt-4o"), Match(model="gpt-*"), Match(model="*"))
    assert [winner(*matches, model=model) for model in ("gpt-4o", "gpt-5", "GPT-4o")] == ["0", "1", "2"]


def test_a_route_by_model_refuses_a_request_that_names_none() -> None:
    matches = (Match(path="/v1/models"), Match(path="/v1/**", model="gpt-*"), Match())
    with pytest.raises(Failure, match="by model") as caught:
        winner(*matches, path="/v1/chat/completions")
    assert (caught.value.code, caught.value.http_status) == ("model_missing", 400)
    assert winner(*matches, path="/v1/models") == "0"
    assert winner(*matches, path="/api/chat") == "2"
    assert winner(*matches, path="/v1/chat/completions", model="qwen") == "2"


def test_needs_model_says_when_the_body_has_to_be_read() -> None:
    built = router(Match(path="/v1/models"), Match(path="/v1/**", model="gpt-*"), Match())
    needs = {path: built.needs_model(path, "", NO_HEADERS) for path in ("/v1/models", "/v1/chat", "/api/chat")}
    assert needs == {"/v1/models": False, "/v1/chat": True, "/api/chat": False}
    assert not router(Match(path="/v1/x")).needs_model("/", "", NO_HEADERS)


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        ("/", "/"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/", "/v1/chat/"),
        ("/v1/%63hat", "/v1/chat"),
        ("/.well-known/x", "/.well-known/x"),
        ("/v1/a..b/...", "/v1/a..b/..."),
        ("/v1beta/models/gemini-2:streamGenerateContent", "/v1beta/models/gemini-2:streamGenerateContent"),
        ("/v1/models/meta%2Fllama", "/v1/models/meta%2Fllama"),
        ("/model/arn%3Aaws%3Ax%2fy/invoke", "/model/arn:aws:x%2Fy/invoke"),
        ("/caf%C3%A9", "/café"),
    ],
)
def test_safe_paths_are_decoded(raw: str, decoded: str) -> None:
    assert safe_path(raw) == decoded


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "*",
        "v1/chat",
        "http://evil/v1",
        "//v1/chat",
        "/v1//chat",
        "/v1/../admin",
        "/v1/..",
        "/./v1",
        "/v1/%2e%2e/admin",
        "/v1/.%2E/admin",
        "/v1/..;/admin",
        "/v1/..%3B/admin",
        "/v1%2fadmin",
        "/v1/x%2F..%2Fadmin",
        "/v1/models/..%2F..%2Fadmin",
        "/v1/models/a%2F.%2Fb",
        "/v1%5cadmin",
        "/v1\\admin",
        "/v1/a%00b",
        "/v1/a%0d%0ab",
        "/v1/a%7f",
        "/v1/\x00",
        "/v1/%252e%252e/admin",
        "/v1/%252fadmin",
        "/v1/%zz",
        "/v1/%",
        "/v1/%ff",
        "/v1/é",
        "/v1/#fragment",
    ],
)
def test_paths_that_could_be_read_as_others_are_refused(raw: str) -> None:
    with pytest.raises(Failure) as caught:
        safe_path(raw)
    assert caught.value.code == "bad_request"
    assert not raw or raw == "*" or raw not in caught.value.message


@given(st.text(alphabet="/.%2eEfF5cC;ab\\", max_size=24).map(lambda text: "/" + text))
def test_no_accepted_path_holds_a_segment_that_climbs(raw: str) -> None:
    try:
        decoded = safe_path(raw)
    except Failure:
        return
    segments = [segment.partition(";")[0] for segment in decoded.replace("%2F", "/").split("/")]
    assert not {".", ".."} & set(segments)
    assert "//" not in decoded
    assert "\\" not in decoded


@pytest.mark.parametrize(
    ("base", "strip", "rewrite", "target", "sent"),
    [
        ("", "", "", "/v1/chat?x=1", "/v1/chat?x=1"),
        ("/openai", "", "", "/v1/chat", "/openai/v1/chat"),
        ("", "/llm", "", "/llm/v1/chat?x=%20", "/v1/chat?x=%20"),
        ("", "/llm", "", "/llm", "/"),
        ("", "/llm", "", "/llmx/v1", "/llmx/v1"),
        ("", "/llm", "", "/%6clm/v1/%61", "/v1/%61"),
        ("/base", "/a/b", "", "/a/b/c/", "/base/c/"),
        ("/base", "", "/v1/messages", "/anything?beta=true", "/base/v1/messages?beta=true"),
        ("", "", "", "/v1/a%20b?", "/v1/a%20b?"),
    ],
)
def test_target_path(base: str, strip: str, rewrite: str, target: str, sent: str) -> None:
    upstream = Upstream("up", "http", Address("h", 80), "h", base_path=base)
    assert target_path(Route("r", ("up",), strip_prefix=strip, rewrite=rewrite), upstream, target) == sent


@pytest.mark.parametrize("query", ["?a b", "?é", "?\udcff", "?a\r\nX: y", "?\x00"])
def test_a_query_that_would_break_the_request_line_is_refused(query: str) -> None:
    with pytest.raises(Failure) as caught:
        target_path(Route("r", ("up",)), UPSTREAM, "/v1" + query)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent", "gemini-2.5-pro"),
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", "gemini-2.5-pro"),
        ("/model/anthropic.claude-3%3A0/invoke-with-response-stream", "anthropic.claude-3:0"),
        ("/openai/deployments/gpt-4o/chat/completions", "gpt-4o"),
        ("/v1/chat/completions", None),
        ("/v1/models/gpt-4o", None),
    ],
)
def test_models_named_in_paths(path: str, model: str | None) -> None:
    assert model_from_path(path) == model


def test_a_model_in_the_path_is_replaced_there() -> None:
    route = Route("r", ("up",))
    gemini = "/v1beta/models/gemini-pro:streamGenerateContent?alt=sse"
    assert target_path(route, UPSTREAM, gemini, "g/2") == "/v1beta/models/g%2F2:streamGenerateContent?alt=sse"
    assert target_path(route, UPSTREAM, "/v1/chat/completions", "other") == "/v1/chat/completions"


def test_model_map_prefers_exact_then_globs_then_the_default() -> None:
    pairs = (("*", "fallback"), ("gpt-*", "first"), ("gpt-4*", "second"), ("gpt-4o", "exact"))
    upstream = Upstream("up", "http", Address("h", 80), "h", model_map=pairs)
    asked = ("gpt-4o", "gpt-4", "claude", None)
    assert [mapped_model(upstream, model) for model in asked] == ["exact", "first", "fallback", None]
    assert mapped_model(UPSTREAM, "gpt-4o") is None


@pytest.mark.parametrize(
    ("body", "peek"),
    [
        (b'{"model":"m","stream":true,"messages":[1,{"model":"inner"}]}', BodyPeek("m", True)),
        (b'{"stream":false}', BodyPeek(None, False)),
        (b'{"model":7,"stream":true}', BodyPeek(None, True)),
        (b'{"model":"m","stream":"yes"}', BodyPeek("m", None)),
        (b'{"model":"m"', BodyPeek()),
        (b'["model"]', BodyPeek()),
        (b"", BodyPeek()),
        (b"\xff\xfe", BodyPeek()),
        (b"[" * 100_000, BodyPeek()),
        (b'{"a":' * 100_000, BodyPeek()),
    ],
)
def test_peek_body_never_raises(body: bytes, peek: BodyPeek) -> None:
    assert peek_body(body) == peek


@given(st.binary(max_size=64))
def test_peek_body_takes_any_bytes(body: bytes) -> None:
    assert isinstance(peek_body(body), BodyPeek)


def test_rewrite_model_keeps_every_other_value_byte_for_byte() -> None:
    body = b'{ "a" : 1.00e+2 , "model":"old","m":{"model" : "inner" , "n":12345678901234567890123},"s":"\\u00e9\\/"}'
    rewritten = rewrite_model(body, 'new"é')
    assert (
        rewritten
        == (
            '{"a":1.00e+2,"model":"new\\"é","m":{"model" : "inner" , "n":12345678901234567890123},"s":"\\u00e9\\/"}'
        ).encode()
    )


@given(st.dictionaries(st.text(max_size=8), st.recursive(st.integers() | st.text(), st.lists, max_leaves=5)), st.text())
def test_rewrite_model_changes_the_model_alone(document: dict[str, object], model: str) -> None:
    rewritten = json.loads(rewrite_model(json.dumps(document).encode(), model))
    assert rewritten == {**document, "model": model}


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b"\xff", b'{"a":1}x', b'{"a":' * 5000])
def test_rewrite_model_refuses_what_is_no_object(body: bytes) -> None:
    with pytest.raises(Failure) as caught:
        rewrite_model(body, "m")
    assert caught.value.code == "bad_request"


def test_covers_knows_routes_that_take_all_of_another() -> None:
    chat = Match(path="/v1/chat", model="gpt-*", headers=(("X-A", "1"),))
    assert all(
        covers(earlier, chat) for earlier in (Match(), chat, Match(path="/v1/**"), Match(path="/v1/*", model="*"))
    )
    assert not any(
        covers(earlier, chat)
        for earlier in (Match(path="/v2/**"), Match(host="h"), Match(model="gpt-4"), Match(headers=(("X-B", "1"),)))
    )
    assert not covers(Match(path="/v1/*"), Match(path="/v1/**"))


def test_split_target_keeps_the_query_whole() -> None:
    assert split_target("/a?b?c=d") == ("/a", "?b?c=d")
    assert split_target("/a") == ("/a", "")
