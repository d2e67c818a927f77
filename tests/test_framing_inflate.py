"""Undoing every content coding: whole, in pieces, several members, padding, nonsense, and bombs."""

from __future__ import annotations

import gzip
import sys
import zlib

import brotli
import pytest

from sidecar.errors import Failure
from sidecar.framing import inflate, late_codings
from sidecar.framing.inflate import INFLATABLE, Inflater, Zlib

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

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
    "brotli": ("br", brotli.compress(TEXT)),
    "zstd": ("zstd", zstd.compress(TEXT)),
    "zstd frames": ("zstd", zstd.compress(TEXT[:100]) + zstd.compress(b"") + zstd.compress(TEXT[100:])),
    "padding": ("gzip", gzip.compress(TEXT) + b"\0" * 512),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(("coding", "body"), BODIES.values(), ids=BODIES)
def test_a_body_is_inflated_however_it_is_split(coding: str, body: bytes, size: int) -> None:
    inflater = Inflater(coding)
    pieces = [piece for at in range(0, len(body), size) for piece in inflater.feed(body[at : at + size])]
    assert b"".join(pieces) == TEXT


def test_nothing_piles_up_behind_the_end() -> None:
    gzipped = Zlib(is_deflate=False)
    assert list(gzipped.pieces(gzip.compress(b"a"))) == [b"a"]
    for _ in range(3):
        assert list(gzipped.pieces(b"\0" * 1000)) == []
    assert gzipped._zlib.unused_data == b""


def test_what_follows_a_brotli_body_is_malformed() -> None:
    with pytest.raises(Failure, match="is not the br"):
        list(Inflater("br").feed(brotli.compress(TEXT) + b"\0"))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_what_is_not_of_the_coding_is_malformed(coding: str) -> None:
    with pytest.raises(Failure, match="is not the") as raised:
        list(Inflater(coding).feed(b"\xff plain text\n\n"))
    assert raised.value.code == "malformed_upstream"


BOMBS = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstd.compress}


@pytest.mark.parametrize("coding", BOMBS)
def test_a_bomb_is_not_inflated(coding: str) -> None:
    pieces = Inflater(coding).feed(BOMBS[coding](b"\0" * (17 << 20)))
    assert len(next(pieces)) <= 64 * 1024
    with pytest.raises(Failure, match="beyond all measure"):
        list(pieces)


def test_what_is_not_installed_cannot_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(late_codings.CODINGS) == {"br", "zstd"}
    assert set(late_codings.CODINGS) < INFLATABLE
    monkeypatch.setattr(late_codings, "brotli", None)
    monkeypatch.setattr(late_codings, "zstd", None)
    assert late_codings._found() == {}
    assert {"gzip", "x-gzip", "deflate"} <= inflate.INFLATABLE
