"""Who calls: the same name for the same key, however it is sent, and nothing of the key in it."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from sidecar.gateway.caller import ANONYMOUS, KEY_BYTES, CallerNames

NAMES = CallerNames(bytes(KEY_BYTES))


def name(header: str = "", **headers: str) -> str:
    return NAMES.name_of(CIMultiDict({key.replace("_", "-"): value for key, value in headers.items()}), header)


@pytest.mark.parametrize("header", ["x_api_key", "api_key", "x_goog_api_key"])
def test_a_key_is_one_caller_in_whichever_header(header: str) -> None:
    assert name(**{header: "sk-1"}) == name(authorization="Bearer sk-1") == name(authorization="bearer  sk-1 ")
    assert name(**{header: "sk-1"}) == name(authorization="sk-1")
    assert name(**{header: "sk-1"}) != name(**{header: "sk-2"})


def test_a_configured_header_goes_before_the_key() -> None:
    assert name("X-User", x_user="ann", x_api_key="1") == name("X-User", x_user="ann", x_api_key="2")
    assert name("X-User", x_user="ann") != name("X-User", x_user="bob")
    assert name("X-User", x_api_key="1") == name(x_api_key="1")
    assert name("X-User", x_user="1") != name(x_api_key="1")


def test_whoever_shows_nothing_is_one_caller() -> None:
    assert name() == name("X-User") == name("X-User", x_user="") == ANONYMOUS


def test_a_name_tells_nothing() -> None:
    found = name(x_api_key="sk-secret")
    assert "secret" not in found
    assert CallerNames(b"\1" * KEY_BYTES).name_of(CIMultiDict({"x-api-key": "sk-secret"}), "") != found
    assert "secret" not in repr(NAMES)


def test_bytes_that_are_no_text_name_a_caller_too() -> None:
    assert name(x_api_key=b"\xff\xfe".decode("utf-8", "surrogateescape")) != ANONYMOUS
