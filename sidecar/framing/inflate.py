"""Undoes a content coding the upstream was asked not to use.

Owns the bound on what one read may inflate to, and gzip and deflate. Must not know what the bytes mean; codings that
need a package are `late_codings`' own.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.errors import Failure
from sidecar.framing import late_codings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECE_BYTES: Final = 64 * 1024
_MAX_BYTES_PER_FEED: Final = 16 * 1024 * 1024
_GZIP_MAGIC: Final = b"\x1f"
_GZIP_BITS: Final = 31
_ZLIB_BITS: Final = 15
_RAW_BITS: Final = -15
_ZLIB_HEADER_BYTES: Final = 2


class Coding(Protocol):
    """One body's coding being undone."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yields what ``data`` inflates to, at most `PIECE_BYTES` at a time. Raises ValueError for bytes that are not
        of this coding."""


class Inflater:
    """Inflates one body, read by read. ``coding`` is one of `INFLATABLE`."""

    __slots__ = ("_coding", "_name")

    def __init__(self, coding: str) -> None:
        self._name = coding
        self._coding: Coding = _CODINGS[coding]()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the inflated bytes in pieces of at most 64 KiB.

        Raises Failure ``malformed_upstream`` for bytes that are not of this coding, or when one read inflates beyond
        16 MiB (a bomb).
        """
        total = 0
        try:
            for piece in self._coding.pieces(data):
                total += len(piece)
                if total > _MAX_BYTES_PER_FEED:
                    raise Failure("malformed_upstream", f"the upstream's {self._name} body inflates beyond all measure")
                yield piece
        except ValueError:
            raise Failure("malformed_upstream", f"the upstream's body is not the {self._name} it says") from None


class Zlib:
    """gzip, of any number of members (RFC 1952 section 2.2), or with ``is_deflate`` zlib or raw deflate."""

    __slots__ = ("_head", "_is_deflate", "_zlib")

    def __init__(self, *, is_deflate: bool) -> None:
        self._is_deflate = is_deflate
        self._zlib = zlib.decompressobj(_GZIP_BITS)
        # Half the world sends raw deflate under this name, so the body's first bytes have to say which it is.
        self._head: bytes | None = b"" if is_deflate else None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yields what ``data`` inflates to, piece by piece. Raises ValueError."""
        if self._head is not None:
            data = self._head + data
            if len(data) < _ZLIB_HEADER_BYTES:
                self._head = data
                return
            self._head = None
            self._zlib = zlib.decompressobj(_ZLIB_BITS if _is_zlib(data) else _RAW_BITS)
        while data:
            if self._zlib.eof:
                # Whatever follows the end and is no other member is padding.
                if self._is_deflate or not data.startswith(_GZIP_MAGIC):
                    return
                self._zlib = zlib.decompressobj(_GZIP_BITS)
            piece = self._inflate(data)
            if piece:
                yield piece
            data = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail

    def _inflate(self, data: bytes) -> bytes:
        try:
            return self._zlib.decompress(data, PIECE_BYTES)
        except zlib.error as error:
            raise ValueError from error


def _is_zlib(data: bytes) -> bool:
    """Whether a body begins with a zlib header (RFC 1950 section 2.2)."""
    return data[0] & 0x0F == 8 and int.from_bytes(data[:_ZLIB_HEADER_BYTES]) % 31 == 0


_CODINGS: Final[dict[str, Callable[[], Coding]]] = {
    "gzip": lambda: Zlib(is_deflate=False),
    "x-gzip": lambda: Zlib(is_deflate=False),
    "deflate": lambda: Zlib(is_deflate=True),
    **late_codings.CODINGS,
}

INFLATABLE: Final = frozenset(_CODINGS)
"""The content codings that can be undone here."""
