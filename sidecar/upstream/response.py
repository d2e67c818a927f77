"""Bytes of one connection to response heads and decoded bodies.

Owns the HTTP/1.x parser, the bound on header bytes and the rules of RFC 9112 for where a body ends. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httptools

from sidecar.errors import Failure
from sidecar.ports import ResponseHead

HEAD_END: Final = b"\r\n\r\n"
MAX_INFORMATIONAL: Final = 32
"""How many 1xx answers may come before the final one."""

SWITCHING_PROTOCOLS: Final = 101
UNASKED_SWITCH: Final = "the upstream switched protocols without being asked"
BODILESS: Final = frozenset({204, 304})


class _ExtraBytesError(Exception):
    """Something follows the response. Stops the parser, so that no byte of it is taken for the body."""


class _Message:
    """What the parser has said so far of one response.

    Apart from `ResponseReader` so that parser and reader form no cycle: neither is referred to from here.
    """

    __slots__ = ("has_head", "headers", "is_between_chunks", "is_complete", "is_over", "on_body", "pieces", "reason")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        # The parser calls a C function per piece instead of a Python frame.
        self.on_body: Callable[[bytes], None] = self.pieces.append
        self.clear()

    def clear(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.reason = b""
        self.has_head = False
        self.is_complete = False
        self.is_over = False
        self.is_between_chunks = False
        self.pieces.clear()

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise _ExtraBytesError

    def on_status(self, piece: bytes) -> None:
        self.reason += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come this way too, after the body: nobody is told of them.
        if not self.has_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_chunk_header(self) -> None:
        self.is_between_chunks = False

    def on_chunk_complete(self) -> None:
        self.is_between_chunks = True

    def on_message_complete(self) -> None:
        self.is_between_chunks = False
        self.is_complete = True
        self.is_over = True


class ResponseReader:
    """Reads the responses of one connection, one after the other.

    ``start``, then ``read_head`` until it gives a head, then ``feed`` (first with ``rest``) until ``message.is_over``.
    ``failure`` says what was wrong; it is never raised, for a stored exception keeps its frames alive.
    """

    __slots__ = (
        "_head_bytes",
        "_informational",
        "_is_head_request",
        "_is_parser_spent",
        "_max_header_bytes",
        "_parse",
        "_parser",
        "_silent_bytes",
        "_tail",
        "failure",
        "is_between_chunks",
        "is_eof_delimited",
        "is_kept_alive",
        "message",
        "rest",
    )

    def __init__(self, max_header_bytes: int) -> None:
        self.message = _Message()
        self._max_header_bytes = max_header_bytes
        self._renew_parser()
        self.failure: Failure | None = None
        self.rest = b""

    def _renew_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self.message)
        self._parse = self._parser.feed_data
        self._is_parser_spent = False

    def start(self, *, is_head_request: bool) -> None:
        """Expect a response, to a HEAD or to anything else."""
        if self._is_parser_spent:
            self._renew_parser()
        self.message.clear()
        self._is_head_request = is_head_request
        self._head_bytes = 0
        self._informational = 0
        self._silent_bytes = 0
        self._tail = b""
        self.rest = b""
        self.failure = None
        self.is_between_chunks = False
        """The next byte is the first of a chunk's size: a read that is one whole chunk need not be parsed."""
        self.is_eof_delimited = False
        self.is_kept_alive = False

    def read_head(self, data: bytes) -> ResponseHead | None:
        """The final head once it is whole, with ``rest`` the bytes after it; None: more is needed, or ``failure``.

        The bytes are cut at the head's end before they are fed, so the bound counts nothing of the body and the
        parser never sees the body of an answer to HEAD.
        """
        rest = data
        while rest:
            piece, rest = self._cut_head(rest)
            self._head_bytes += len(piece)
            if self._head_bytes > self._max_header_bytes:
                self._refuse(f"header block over {self._max_header_bytes} bytes")
                return None
            try:
                self._parse(piece)
            except httptools.HttpParserUpgrade:
                self._refuse(UNASKED_SWITCH)
                return None
            except httptools.HttpParserError as error:
                self._refuse(f"not an HTTP/1.x response: {_reason(error)}")
                return None
            if self.message.has_head:
                head = self._take_head()
                if head is not None or self.failure is not None:
                    self.rest = rest
                    self._check_rest()
                    return head
        return None

    def _check_rest(self) -> None:
        """Bytes after a response that is whole with its head belong to nobody."""
        if self.message.is_complete and self.rest:
            self.is_kept_alive = False

    def _cut_head(self, data: bytes) -> tuple[bytes, bytes]:
        """``data`` up to the end of a head, and the rest; an end may lie across two reads."""
        seen = self._tail + data
        found = seen.find(HEAD_END)
        if found < 0:
            self._tail = seen[-3:]
            return data, b""
        end = found + len(HEAD_END) - len(self._tail)
        self._tail = b""
        return data[:end], data[end:]

    def _take_head(self) -> ResponseHead | None:
        """The head just parsed, or None where it is a 1xx (or ``failure``)."""
        message = self.message
        status = self._status()
        if status == SWITCHING_PROTOCOLS:
            self._refuse(UNASKED_SWITCH)
            return None
        if status < 200:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                self._refuse(f"more than {MAX_INFORMATIONAL} informational responses")
                return None
            message.clear()
            return None
        version = self._parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            self._refuse(f"HTTP version {version} was not asked for")
            return None
        if not self._settle_framing(status, version):
            return None
        if self._is_head_request and not message.is_complete:
            self._is_parser_spent = True
            message.on_message_complete()
        # The stream may let go of its head long before the connection does.
        headers, message.headers = message.headers, []
        return ResponseHead(status, message.reason.decode("latin-1"), headers, version, self.is_eof_delimited)

    def _settle_framing(self, status: int, version: str) -> bool:
        """Find where the body ends and whether the connection outlives it (RFC 9112 sections 6.3 and 9.3).

        The parser's own ``should_keep_alive`` is right only inside a callback, and never for HEAD.
        """
        is_delimited = self._is_head_request or status in BODILESS
        is_kept_alive = version == "1.1"
        for name, value in self.message.headers:
            lower = name.lower()
            if lower == b"content-length":
                is_delimited = True
            elif lower == b"transfer-encoding":
                coding = value.strip().lower()
                if coding == b"chunked":
                    is_delimited = True
                elif coding != b"identity":
                    self._refuse("a transfer coding other than chunked was not asked for")
                    return False
            elif lower == b"connection":
                options = [option.strip() for option in value.lower().split(b",")]
                is_kept_alive = b"close" not in options and (is_kept_alive or b"keep-alive" in options)
        self.is_eof_delimited = not is_delimited
        self.is_kept_alive = is_delimited and is_kept_alive
        return True

    def feed(self, data: bytes) -> bytes:
        """The body bytes of one read, decoded; b"" for none. Sets ``message.is_over`` at the end or at a failure."""
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._stop(error)
        # A size line's end would have begun a chunk, so nothing of one can lie behind a chunk's own last CR LF.
        self.is_between_chunks = self.message.is_between_chunks and data.endswith(b"\r\n")
        pieces = self.message.pieces
        if len(pieces) == 1:
            self._silent_bytes = 0
            return pieces.pop()
        return self._gather(pieces, len(data))

    def _gather(self, pieces: list[bytes], fed_bytes: int) -> bytes:
        if pieces:
            self._silent_bytes = 0
            body = b"".join(pieces)
            pieces.clear()
            return body
        # Endless chunk extensions or trailers: the parser has no bound of its own and would keep a trailer whole.
        self._silent_bytes += fed_bytes
        if self._silent_bytes > self._max_header_bytes and self.failure is None:
            self._break(f"over {self._max_header_bytes} bytes of chunk framing without a byte of body")
        return b""

    def _stop(self, error: httptools.HttpParserError) -> None:
        if self.message.is_complete:
            self.is_kept_alive = False
        else:
            self._break(f"malformed response body: {_reason(error)}")

    def _break(self, message: str) -> None:
        self.failure = Failure("malformed_upstream", message)
        self.message.is_over = True

    def _refuse(self, message: str) -> None:
        self.failure = Failure("upstream_not_http", message)

    def _status(self) -> int:
        return self._parser.get_status_code()


def _reason(error: httptools.HttpParserError) -> str:
    """The parser's own words, which are constants and quote nothing of the input."""
    return str(error) or type(error).__name__
