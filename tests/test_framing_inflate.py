"""Undoing gzip and deflate: whole, in pieces, several members, padding, nonsense, and bombs."""

from __future__ import annotations

import gzip
import zlib

import pytest

from sidecar.errors import Failure
from sidecar.framing.inflate import Inflater

TEXT = b"data: {}\n\n" * 1000


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


BODIES = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "x-gzip": ("x-gzip", gzip.compress(TEXT)),
    "zlib": ("deflate", zlib.compress(TEXT)),
    "raw deflate": ("deflate", raw_deflate(TEXT)),
    "members": ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(b"") + gzip.compress(TEXT[100:])),
    "padding": ("gzip", gzip.compress(TEXT) + b"\0" * 512),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(("coding", "body"), BODIES.values(), ids=BODIES)
def test_a_body_is_inflated_however_it_is_split(coding: str, body: bytes, size: int) -> None:
    inflater = Inflater(coding)
    pieces = [piece for at in range(0, len(body), size) for piece in inflater.feed(body[at : at + size])]
    assert b"".join(pieces) == TEXT


def test_nothing_piles_up_behind_the_end() -> None:
    inflater = Inflater("gzip")
    assert list(inflater.feed(gzip.compress(b"a"))) == [b"a"]
    for _ in range(3):
        assert list(inflater.feed(b"\0" * 1000)) == []
    assert inflater._zlib.unused_data == b""


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_is_not_of_the_coding_is_malformed(coding: str) -> None:
    with pytest.raises(Failure, match="is not the") as raised:
        list(Inflater(coding).feed(b"\xff plain text\n\n"))
    assert raised.value.code == "malformed_upstream"


def test_a_bomb_is_not_inflated() -> None:
    pieces = Inflater("gzip").feed(gzip.compress(b"\0" * (17 << 20)))
    assert len(next(pieces)) <= 64 * 1024
    with pytest.raises(Failure, match="beyond all measure"):
        list(pieces)
