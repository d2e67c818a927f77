"""An upstream's error answers, read for their own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import Outcome
from sidecar.rejection import rejection
from tests.core_support import Rig

SHAPES: list[tuple[Any, str, str]] = [
    ({"error": {"message": "m", "type": "t", "code": "c"}}, "m", "c"),
    ({"error": {"message": "m", "type": "t", "code": None}}, "m", "t"),
    ({"error": {"message": "m", "code": 429}}, "m", "429"),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, "m", "overloaded_error"),
    ([{"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}}], "m", "400"),
    ({"error": "m"}, "m", ""),
    ({"error": "m", "error_type": "validation"}, "m", "validation"),
    ({"message": "m"}, "m", ""),
    ({"Message": "m"}, "m", ""),
    ({"object": "error", "message": "m", "type": "t", "code": 40}, "m", "40"),
    ({"detail": [{"msg": "x"}]}, "the upstream answered with status 422", ""),
    ("just a string", "the upstream answered with status 422", ""),
    (None, "the upstream answered with status 422", ""),
]


@pytest.mark.parametrize(("native", "message", "code"), SHAPES)
def test_each_vendors_shape(native: Any, message: str, code: str) -> None:
    failure = rejection(422, json.dumps(native).encode())
    assert (failure.message, failure.provider_code, failure.native) == (message, code, native)
    assert (failure.outcome, failure.http_status, failure.retryable) == (Outcome.UPSTREAM_REJECTED, 422, False)


@pytest.mark.parametrize(
    ("body", "native"), [(b"<html>502</html>", "<html>502</html>"), (b"\xff", "\ufffd"), (b"", None)]
)
def test_what_is_no_json_is_its_text(body: bytes, native: str | None) -> None:
    failure = rejection(502, body, "7")
    assert (failure.native, failure.retryable, failure.retry_after) == (native, True, "7")
    assert failure.message == "the upstream answered with status 502"


def test_json_that_only_a_forgiving_reader_takes_is_still_its_words() -> None:
    failure = rejection(400, b'{"error":{"message":"caf\xe9","type":"t","left":NaN}}')
    assert (failure.message, failure.provider_code, failure.upstream_status) == ("caf\ufffd", "t", 400)


def test_json_nested_too_deep_to_be_told_again_is_its_text() -> None:
    body = b"[" * 200 + b"]" * 200
    assert rejection(400, body).native == body.decode()


def test_broken_utf8_in_an_error_answer_stays_the_upstreams_own_status() -> None:
    rig = Rig(format="typed").open(400, content_type="application/json").feed(b'{"error":{"message":"\xff"}}').end()
    assert rig.code == "upstream_status"


def test_aws_names_its_exceptions_in_a_header() -> None:
    link = "ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/"
    failure = rejection(429, b'{"message":"slow down"}', error_type=link)
    assert (failure.message, failure.provider_code, failure.retryable) == ("slow down", "ThrottlingException", True)
    assert rejection(429, b'{"error":{"message":"m","code":"c"}}', error_type=link).provider_code == "c"


def test_recorded_answers(streams_dir: Path) -> None:
    found = sorted((streams_dir / "errors-before-stream").glob("*.json"))
    assert len(found) >= 8
    for path in found:
        status = int(path.stem.split("_")[-1]) if path.stem.split("_")[-1].isdigit() else 400
        failure = rejection(status, path.read_bytes())
        assert failure.message, path.name
        assert not failure.message.startswith("the upstream answered"), path.name
        assert failure.native == json.loads(path.read_bytes()), path.name
