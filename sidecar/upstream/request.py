"""The bytes of a request head. A pure function of its parts; knows nothing of connections."""

from __future__ import annotations

import operator
import string
from collections.abc import Sequence
from typing import Final

from sidecar.errors import Failure

_line: Final = b"%b: %b".__mod__
_name: Final = operator.itemgetter(0)

TOKEN_CHARS: Final = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode()


def request_head(
    method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], *, absolute_prefix: bytes = b""
) -> bytes:
    """The whole HTTP/1.1 head, up to and with its empty line (RFC 9112 sections 3 and 5).

    ``target`` begins with "/" (or is "*"); ``absolute_prefix`` ("http://host:port") is put before it for a proxy.
    Raises Failure ``bad_request`` where a part could split the head or is no token; its message quotes nothing.
    """
    # map and operators instead of comprehensions: no Python frame a header.
    head = b"\r\n".join((b"%b %b%b HTTP/1.1" % (method, absolute_prefix, target), *map(_line, headers), b"", b""))
    # Counting what the joins put there finds any CR or LF that came in with a part, in two passes of memchr.
    line_ends = len(headers) + 2
    if head.count(b"\r") != line_ends or head.count(b"\n") != line_ends or b"\0" in head:
        raise Failure("bad_request", "a header or the request target holds a line end or a NUL")
    names = (method, *map(_name, headers))
    if not all(names) or b"".join(names).translate(None, TOKEN_CHARS):
        raise Failure("bad_request", "the method or a header name is not a token")
    if target.split() != [target]:
        raise Failure("bad_request", "the request target is empty or holds white space")
    return head
