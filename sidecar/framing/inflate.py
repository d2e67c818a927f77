"""Undoes a content coding the upstream was asked not to use.

Owns the decompression of gzip and deflate in bounded pieces. Must not know what the bytes mean.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from sidecar.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES: Final = 64 * 1024
_MAX_BYTES_PER_FEED: Final = 16 * 1024 * 1024
_WINDOW_BITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 47}

INFLATABLE: Final = frozenset(_WINDOW_BITS)
"""The content codings that can be undone here."""


class Inflater:
    """Inflates one body, read by read. ``coding`` is one of `INFLATABLE`."""

    __slots__ = ("_coding", "_zlib")

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._zlib = zlib.decompressobj(_WINDOW_BITS[coding])

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the inflated bytes in pieces of at most 64 KiB.

        Raises Failure ``malformed_upstream`` for bytes that are not of this coding, or when one read inflates beyond
        16 MiB (a bomb).
        """
        total = 0
        while data:
            piece = self._inflate(data)
            total += len(piece)
            if total > _MAX_BYTES_PER_FEED:
                raise Failure("malformed_upstream", f"the upstream's {self._coding} body inflates beyond all measure")
            if piece:
                yield piece
            data = self._zlib.unconsumed_tail
            if self._zlib.eof:
                return

    def _inflate(self, data: bytes) -> bytes:
        try:
            return self._zlib.decompress(data, _PIECE_BYTES)
        except zlib.error:
            if self._coding == "deflate" and self._zlib.unused_data == b"":
                # Half the world sends raw deflate under this name; try it before giving up.
                self._zlib = zlib.decompressobj(-15)
                self._coding = "raw deflate"
                return self._inflate(data)
            raise Failure("malformed_upstream", f"the upstream's body is not the {self._coding} it says") from None
