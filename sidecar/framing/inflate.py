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
_GZIP_MAGIC: Final = b"\x1f"
_GZIP_BITS: Final = 31
_ZLIB_BITS: Final = 15
_RAW_BITS: Final = -15
_ZLIB_HEADER_BYTES: Final = 2

INFLATABLE: Final = frozenset({"gzip", "x-gzip", "deflate"})
"""The content codings that can be undone here."""


class Inflater:
    """Inflates one body, read by read. ``coding`` is one of `INFLATABLE`."""

    __slots__ = ("_coding", "_head", "_zlib")

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._zlib = zlib.decompressobj(_GZIP_BITS)
        # Half the world sends raw deflate under this name, so the body's first bytes have to say which it is.
        self._head: bytes | None = b"" if coding == "deflate" else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the inflated bytes in pieces of at most 64 KiB.

        Raises Failure ``malformed_upstream`` for bytes that are not of this coding, or when one read inflates beyond
        16 MiB (a bomb).
        """
        if self._head is not None:
            data = self._head + data
            if len(data) < _ZLIB_HEADER_BYTES:
                self._head = data
                return
            self._head = None
            self._zlib = zlib.decompressobj(_ZLIB_BITS if _is_zlib(data) else _RAW_BITS)
        total = 0
        while data:
            if self._zlib.eof:
                # A gzip body may have several members (RFC 1952 section 2.2); whatever else follows the end is padding.
                if self._coding == "deflate" or not data.startswith(_GZIP_MAGIC):
                    return
                self._zlib = zlib.decompressobj(_GZIP_BITS)
            piece = self._inflate(data)
            total += len(piece)
            if total > _MAX_BYTES_PER_FEED:
                raise Failure("malformed_upstream", f"the upstream's {self._coding} body inflates beyond all measure")
            if piece:
                yield piece
            data = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail

    def _inflate(self, data: bytes) -> bytes:
        try:
            return self._zlib.decompress(data, _PIECE_BYTES)
        except zlib.error:
            raise Failure("malformed_upstream", f"the upstream's body is not the {self._coding} it says") from None


def _is_zlib(data: bytes) -> bool:
    """Whether a body begins with a zlib header (RFC 1950 section 2.2)."""
    return data[0] & 0x0F == 8 and int.from_bytes(data[:_ZLIB_HEADER_BYTES]) % 31 == 0
