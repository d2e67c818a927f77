"""Who calls, as a name that tells nothing: callers are told apart by it, and that is all.

Owns how a caller is named. Must not know what is limited; a key, or a person's name, goes no further than this.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_BYTES: Final = 32
ANONYMOUS: Final = "-"
"""Everybody who shows neither a name nor a key."""

_KEY_HEADERS: Final = ("x-api-key", "api-key", "x-goog-api-key")
_NAME_BYTES: Final = 16
_BEARS_KEY: Final = b"sidecar-key"
_BEARS_NAME: Final = b"sidecar-name"


class CallerNames:
    """Names callers by a hash under ``key``, which whoever counts the same callers has to share."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def name_of(self, headers: Mapping[str, str], header: str) -> str:
        """Of whom a request with these ``headers`` is: what ``header`` says, where one is configured and sent; else the
        key it bears, in whichever header; else nobody in particular."""
        if header and (value := headers.get(header)):
            return self._hash(value, _BEARS_NAME)
        authorization = headers.get("Authorization")
        if authorization:
            _, _, token = authorization.strip().partition(" ")
            return self._hash(token.strip() or authorization, _BEARS_KEY)
        for name in _KEY_HEADERS:
            if value := headers.get(name):
                return self._hash(value.strip(), _BEARS_KEY)
        return ANONYMOUS

    def _hash(self, text: str, kind: bytes) -> str:
        # Header values come with surrogates where they are no UTF-8.
        data = text.encode("utf-8", "surrogateescape")
        return blake2b(data, key=self._key, digest_size=_NAME_BYTES, person=kind).hexdigest()
