"""The content codings that the standard library came to late or not at all: br and zstd.

Owns the one place that imports what undoes them, where the extra ``llm-sidecar[compression]`` brought it. Must not know
bounds beyond a piece's.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PIECE_BYTES: Final = 64 * 1024

try:
    import brotli
except ImportError:
    brotli = None
try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError:
    zstd = None  # type: ignore[assignment]  # it is there or it is not


class Brotli:
    """br (RFC 7932)."""

    __slots__ = ("_brotli",)

    def __init__(self) -> None:
        self._brotli = brotli.Decompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yields what ``data`` inflates to, piece by piece. Raises ValueError."""
        while data or not self._brotli.can_accept_more_data():
            try:
                piece = self._brotli.process(data, output_buffer_limit=_PIECE_BYTES)
            except brotli.error as error:
                raise ValueError from error
            data = b""
            # The package may give a little more than it was asked for.
            for at in range(0, len(piece), _PIECE_BYTES):
                yield piece[at : at + _PIECE_BYTES]


class Zstd:
    """zstd (RFC 8878), of any number of frames."""

    __slots__ = ("_zstd",)

    def __init__(self) -> None:
        self._zstd = zstd.ZstdDecompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yields what ``data`` inflates to, piece by piece. Raises ValueError."""
        while data or not (self._zstd.needs_input or self._zstd.eof):
            if self._zstd.eof:
                self._zstd = zstd.ZstdDecompressor()
            try:
                piece = self._zstd.decompress(data, _PIECE_BYTES)
            except zstd.ZstdError as error:
                raise ValueError from error
            data = self._zstd.unused_data if self._zstd.eof else b""
            if piece:
                yield piece


def _found() -> dict[str, Callable[[], Brotli | Zstd]]:
    found: dict[str, Callable[[], Brotli | Zstd]] = {}
    if brotli is not None:
        found["br"] = Brotli
    if zstd is not None:
        found["zstd"] = Zstd
    return found


CODINGS: Final = _found()
"""Those that can be undone here, by their names (RFC 9110 section 8.4.1)."""
