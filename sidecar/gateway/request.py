"""A client's request as the door reads it: what the parser told, and nothing looked up that nobody asks for.

Owns the reading of aiohttp's parsed message. Must not know connections, routes or what a body means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp.helpers import set_exception
from aiohttp.streams import EmptyStreamReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.streams import StreamReader


class ClientRequest:
    """One request. ``target`` is its origin form, ``content`` its body, ``headers`` and ``raw_headers`` its fields.

    aiohttp's own request class asks the transport three things and makes several objects for each; this is a record.
    """

    __slots__ = (
        "body_exists",
        "content",
        "content_length",
        "headers",
        "keep_alive",
        "method",
        "raw_headers",
        "target",
        "version",
    )

    def __init__(self, message: RawRequestMessage, content: StreamReader) -> None:
        self.method: str = message.method
        self.version: tuple[int, int] = message.version
        self.headers: Mapping[str, str] = message.headers
        self.raw_headers: tuple[tuple[bytes, bytes], ...] = message.raw_headers
        self.keep_alive: bool = not message.should_close
        self.content = content
        self.body_exists = content.__class__ is not EmptyStreamReader
        length = message.headers.get("Content-Length")
        self.content_length = None if length is None else int(length)
        target: str = message.path
        self.target = target if target.startswith("/") else message.url.raw_path_qs

    def _cancel(self, exc: BaseException) -> None:
        """aiohttp's protocol calls this on the request it is answering: whoever waits for the body is told."""
        set_exception(self.content, exc)
