"""The request head: exact bytes, and no part that could split it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import Failure
from sidecar.upstream import request_head


def test_bytes_are_exact_and_in_order() -> None:
    assert request_head(b"POST", b"/v1/x?y=z", [(b"Host", b"a"), (b"x-B", b""), (b"Host2", b"caf\xe9 \t")]) == (
        b"POST /v1/x?y=z HTTP/1.1\r\nHost: a\r\nx-B: \r\nHost2: caf\xe9 \t\r\n\r\n"
    )
    assert request_head(b"GET", b"/", []) == b"GET / HTTP/1.1\r\n\r\n"
    assert request_head(b"GET", b"/a", [], absolute_prefix=b"http://h:1") == b"GET http://h:1/a HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\0", b"\r\n", b"\r\nX: y", b"secret\r\n\r\nGET /"])
@pytest.mark.parametrize("part", ["method", "target", "name", "value"])
def test_line_ends_and_nul_are_refused_in_every_part(part: str, bad: bytes) -> None:
    parts = {"method": b"GET", "target": b"/", "name": b"X", "value": b"y"}
    for tainted in (bad, parts[part] + bad, bad + parts[part]):
        given_parts = parts | {part: tainted}
        with pytest.raises(Failure) as caught:
            request_head(given_parts["method"], given_parts["target"], [(given_parts["name"], given_parts["value"])])
        assert caught.value.code == "bad_request"
        assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        (b"", b"/", b"X"),
        (b"GET /x", b"/", b"X"),
        (b"GET", b"", b"X"),
        (b"GET", b"/ HTTP/1.1", b"X"),
        (b"GET", b"/\t", b"X"),
        (b"GET", b"/", b""),
        (b"GET", b"/", b"X: y"),
        (b"GET", b"/", b"X "),
        (b"GET", b"/", b"X\xe9"),
    ],
)
def test_what_is_no_token_is_refused(method: bytes, target: bytes, name: bytes) -> None:
    with pytest.raises(Failure) as caught:
        request_head(method, target, [(name, b"y")])
    assert caught.value.code == "bad_request"


@given(
    method=st.binary(max_size=4), target=st.binary(max_size=4), headers=st.lists(st.tuples(st.binary(), st.binary()))
)
def test_whatever_is_accepted_has_one_line_a_header(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    try:
        head = request_head(method, target, headers)
    except Failure:
        return
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert lines[0] == method + b" " + target + b" HTTP/1.1"
    assert [tuple(line.split(b": ", 1)) for line in lines[1:]] == headers
