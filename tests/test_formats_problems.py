"""Errors before a stream: whose shape a path has, and each shape, field for field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import CODES, Failure
from sidecar.formats.problems import family_of, problem


def body_of(family: str, failure: Failure) -> tuple[str, Any]:
    content_type, body = problem(family, failure, "s1")
    return content_type, json.loads(body)


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/v1/chat/completions", "openai"),
        ("/chat/completions", "openai"),
        ("/proxy/chat/completions/", "openai"),
        ("/v1/completions", "openai"),
        ("/v1/embeddings?x=/api/chat", "openai"),
        ("/v1/models", "openai"),
        ("/models", "openai"),
        ("/v1/responses", "openai"),
        ("/v1/anything", "openai"),
        ("/openai/deployments/d/chat/completions", "openai"),
        ("/api/v1/chat/completions", "openai"),
        ("/v1/messages", "anthropic"),
        ("/anthropic/v1/messages/count_tokens", "anthropic"),
        ("/v1/messagesx", "openai"),
        ("/api/chat", "ollama"),
        ("/api/generate", "ollama"),
        ("/v2/chat", "cohere"),
        ("/cohere/v2/embed", "cohere"),
        ("/v2/models/m/generate_stream", "triton"),
        ("/v2/models/m/versions/1/generate", "triton"),
        ("/generate_stream", "tgi"),
        ("/completion", "openai"),
        ("/infill", "openai"),
        ("/generate", "openai"),
        ("/v1/streams/abc", "problem"),
        ("/", "problem"),
        ("", "problem"),
        ("/v1beta/models/gemini:streamGenerateContent", "problem"),
        ("/x?path=/v1/messages", "problem"),
    ],
)
def test_family_of_a_path(path: str, family: str) -> None:
    assert family_of(path) == family


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("bad_request", "invalid_request_error"),
        ("unauthorized", "authentication_error"),
        ("forbidden_origin", "permission_error"),
        ("route_not_found", "invalid_request_error"),
        ("caller_limit", "rate_limit_error"),
        ("overloaded", "server_error"),
        ("upstream_refused", "server_error"),
    ],
)
def test_openai_shape(code: str, kind: str) -> None:
    assert body_of("openai", Failure(code, "why")) == (
        "application/json",
        {"error": {"message": "why", "type": kind, "param": None, "code": code}},
    )


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("bad_request", "invalid_request_error"),
        ("unauthorized", "authentication_error"),
        ("forbidden_origin", "permission_error"),
        ("route_not_found", "not_found_error"),
        ("body_too_large", "request_too_large"),
        ("headers_too_large", "invalid_request_error"),
        ("caller_limit", "rate_limit_error"),
        ("overloaded", "overloaded_error"),
        ("internal", "api_error"),
        ("upstream_refused", "api_error"),
        ("first_token_timeout", "timeout_error"),
    ],
)
def test_anthropic_shape(code: str, kind: str) -> None:
    assert body_of("anthropic", Failure(code, "why")) == (
        "application/json",
        {"type": "error", "error": {"type": kind, "message": "why"}, "request_id": "s1"},
    )


def test_ollama_shape() -> None:
    assert body_of("ollama", Failure("overloaded", "why", native={"a": 1})) == ("application/json", {"error": "why"})


def test_triton_shape() -> None:
    assert body_of("triton", Failure("overloaded", "why")) == ("application/json", {"error": "why"})


def test_cohere_shape() -> None:
    assert body_of("cohere", Failure("overloaded", "why")) == ("application/json", {"message": "why", "id": "s1"})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("bad_request", "validation"),
        ("caller_limit", "overloaded"),
        ("overloaded", "overloaded"),
        ("upstream_refused", "generation"),
    ],
)
def test_tgi_shape(code: str, kind: str) -> None:
    assert body_of("tgi", Failure(code, "why")) == ("application/json", {"error": "why", "error_type": kind})


def test_problem_shape() -> None:
    assert body_of("problem", Failure("overloaded", "why")) == (
        "application/problem+json",
        {
            "type": "about:blank",
            "title": "Service Unavailable",
            "status": 503,
            "detail": "why",
            "code": "overloaded",
            "instance": "urn:llm-sidecar:stream:s1",
        },
    )


@pytest.mark.parametrize(
    ("family", "member"),
    [("openai", "error"), ("anthropic", "error"), ("problem", None), ("cohere", None), ("tgi", None)],
)
def test_the_upstreams_own_words_are_told(family: str, member: str | None) -> None:
    failure = Failure("upstream_status", "why", upstream_status=529, native={"error": ["a\ud800"]})
    _, body = body_of(family, failure)
    assert (body[member] if member else body)["native"] == {"error": ["a\ufffd"]}


def test_a_status_without_a_name_has_a_title_too() -> None:
    _, body = body_of("problem", Failure("upstream_status", "why", upstream_status=529))
    assert (body["status"], body["title"]) == (529, "Error")


@pytest.mark.parametrize("code", sorted(CODES))
@pytest.mark.parametrize("family", ["openai", "anthropic", "ollama", "cohere", "triton", "tgi", "problem"])
def test_every_code_can_be_told_to_every_family(family: str, code: str) -> None:
    _, body = body_of(family, Failure(code, "why"))
    assert "why" in json.dumps(body)
