"""Errors before a stream: whose shape a path has, and each shape, field for field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import CODES, Failure
from sidecar.formats.problems import family_of, problem, problem_headers


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
        ("/responses", "openai"),
        ("/responses/resp_1?stream=true", "openai"),
        ("/openai/v1/responses/resp_1", "openai"),
        ("/openai/responses", "openai"),
        ("/openai/deployments/d/completions", "openai"),
        ("/v1/anything", "openai"),
        ("/openai/deployments/d/chat/completions", "openai"),
        ("/api/v1/chat/completions", "openai"),
        ("/v1/messages", "anthropic"),
        ("/anthropic/v1/messages/count_tokens", "anthropic"),
        ("/v1/messagesx", "openai"),
        ("/api/chat", "ollama"),
        ("/api/generate", "ollama"),
        ("/model/anthropic.claude-3%3A0/converse-stream", "bedrock"),
        ("/model/arn%3Aaws%3Abedrock%2Fx/invoke-with-response-stream?x=1", "bedrock"),
        ("/aws/model/m/converse/", "bedrock"),
        ("/v1/model/m/invoke", "bedrock"),
        ("/model/m/count-tokens", "bedrock"),
        ("/model/m/converse-streams", "problem"),
        ("/model/m", "problem"),
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
        ("/v1beta/models/gemini:streamGenerateContent", "gemini"),
        ("/v1/projects/p/locations/l/publishers/google/models/g:generateContent", "gemini"),
        ("/v1beta/models", "gemini"),
        ("/v1beta1/projects/p/locations/l/cachedContents", "gemini"),
        ("/v1/interactions", "gemini"),
        ("/v1alpha/interactions/v1_a?stream=true", "gemini"),
        ("/v1beta/openai/chat/completions", "openai"),
        ("/v1/models/ft:gpt-4o:org::7p4lURel", "openai"),
        ("/v1/projects/p/publishers/anthropic/models/c:streamRawPredict", "anthropic"),
        ("/v1/projects/p/publishers/anthropic/models/c:rawPredict", "anthropic"),
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


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        ("bad_request", 400, "INVALID_ARGUMENT"),
        ("unauthorized", 401, "UNAUTHENTICATED"),
        ("forbidden_origin", 403, "PERMISSION_DENIED"),
        ("route_not_found", 404, "NOT_FOUND"),
        ("body_too_large", 413, "INVALID_ARGUMENT"),
        ("caller_limit", 429, "RESOURCE_EXHAUSTED"),
        ("internal", 500, "INTERNAL"),
        ("websocket_unsupported", 501, "UNIMPLEMENTED"),
        ("upstream_refused", 502, "UNAVAILABLE"),
        ("overloaded", 503, "UNAVAILABLE"),
        ("first_token_timeout", 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_gemini_shape(code: str, status: int, word: str) -> None:
    assert body_of("gemini", Failure(code, "why")) == (
        "application/json",
        {"error": {"code": status, "message": "why", "status": word}},
    )


def test_ollama_shape() -> None:
    assert body_of("ollama", Failure("overloaded", "why", native={"a": 1})) == ("application/json", {"error": "why"})


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure("bad_request", "why"), "ValidationException"),
        (Failure("unauthorized", "why"), "AccessDeniedException"),
        (Failure("route_not_found", "why"), "ResourceNotFoundException"),
        (Failure("caller_limit", "why"), "ThrottlingException"),
        (Failure("overloaded", "why"), "ServiceUnavailableException"),
        (Failure("first_token_timeout", "why"), "ModelTimeoutException"),
        (Failure("upstream_refused", "why"), "InternalServerException"),
        (
            Failure("upstream_status", "why", upstream_status=429, provider_code="ModelNotReadyException"),
            "ModelNotReadyException",
        ),
        (Failure("upstream_status", "why", upstream_status=424, provider_code="a\r\nb: c"), "ModelErrorException"),
    ],
)
def test_bedrock_shape(failure: Failure, kind: str) -> None:
    assert body_of("bedrock", failure) == ("application/json", {"message": "why"})
    assert problem_headers("bedrock", failure) == [(b"x-amzn-ErrorType", kind.encode())]


def test_only_awss_clients_look_into_the_headers() -> None:
    for family in ("openai", "anthropic", "gemini", "ollama", "cohere", "triton", "tgi", "problem"):
        assert problem_headers(family, Failure("internal", "why")) == []


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
    [
        ("openai", "error"),
        ("anthropic", "error"),
        ("gemini", "error"),
        ("bedrock", None),
        ("cohere", None),
        ("tgi", None),
        ("problem", None),
    ],
)
def test_the_upstreams_own_words_are_told(family: str, member: str | None) -> None:
    failure = Failure("upstream_status", "why", upstream_status=529, native={"error": ["a\ud800"]})
    _, body = body_of(family, failure)
    assert (body[member] if member else body)["native"] == {"error": ["a\ufffd"]}


def test_a_status_without_a_name_has_a_title_too() -> None:
    _, body = body_of("problem", Failure("upstream_status", "why", upstream_status=529))
    assert (body["status"], body["title"]) == (529, "Error")


@pytest.mark.parametrize("code", sorted(CODES))
@pytest.mark.parametrize(
    "family", ["openai", "anthropic", "gemini", "bedrock", "ollama", "cohere", "triton", "tgi", "problem"]
)
def test_every_code_can_be_told_to_every_family(family: str, code: str) -> None:
    _, body = body_of(family, Failure(code, "why"))
    assert "why" in json.dumps(body)
