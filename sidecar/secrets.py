"""Secrets, read from files and the environment and shown to no one by accident.

Owns reading, re-reading and hiding a secret's text. Must not know what the secret is for.
"""

from __future__ import annotations

import hmac
import os
import stat
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from sidecar.settings import SecretSource

MAX_SECRET_BYTES: Final = 64 * 1024
CHECK_INTERVAL_S: Final = 1.0
"""A file is looked at no more often than this, however many requests ask for its secret."""

_Signature = tuple[int, int, int]


class SecretUnreadableError(Exception):
    """The secret is not there or cannot be used. The message names its source, never its content."""


class Secret:
    """One secret, current whenever it is asked for.

    A file is read again when it changes; while it is missing or unusable after a first good read (a rotation half
    done), the last good value stays in use and ``problem`` says why. The environment is read once, at construction.

    Raises SecretUnreadableError at construction for an environment variable that is unset or unusable.
    """

    __slots__ = ("_clock", "_next_check_s", "_signature", "_source", "_value", "problem")

    def __init__(
        self,
        source: SecretSource,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._clock = clock
        self._next_check_s = float("-inf")
        self._signature: _Signature | None = None
        self._value: _Hidden | None = None
        self.problem: str | None = None
        if not source.file:
            self._value = _Hidden(self._checked(environ.get(source.env, "").encode("utf-8", "surrogateescape")))

    def read(self) -> str:
        """The secret's text as of now, without its trailing newline.

        Raises SecretUnreadableError while there has never been a good value.
        """
        if self._source.file:
            now_s = self._clock()
            if now_s >= self._next_check_s:
                self._next_check_s = now_s + CHECK_INTERVAL_S
                self._refresh()
        if self._value is None:
            raise SecretUnreadableError(self.problem)
        return self._value.reveal()

    def matches(self, candidate: str) -> bool:
        """Whether ``candidate`` is the secret, taking the same time wherever they differ. Raises as `read` does."""
        return hmac.compare_digest(self.read().encode(), candidate.encode("utf-8", "surrogateescape"))

    def __repr__(self) -> str:
        return f"<Secret from {self._source}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not copied or pickled")

    def _refresh(self) -> None:
        """Reads the file if it is not the one last read; any trouble is left in ``problem``."""
        try:
            if self._value is None or self.problem is not None or _signature(self._source.file) != self._signature:
                self._load()
            self.problem = None
        except OSError as error:
            self.problem = f"{self._source} cannot be read: {error.strerror}"
        except SecretUnreadableError as error:
            self.problem = str(error)

    def _load(self) -> None:
        # Without O_NONBLOCK, opening a FIFO would hang the event loop until someone writes to it.
        descriptor = os.open(self._source.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SecretUnreadableError(f"{self._source} is not a regular file")
            content = file.read(MAX_SECRET_BYTES + 1)
        self._value = _Hidden(self._checked(content))
        self._signature = (status.st_mtime_ns, status.st_ino, status.st_size)

    def _checked(self, content: bytes) -> str:
        if len(content) > MAX_SECRET_BYTES:
            raise SecretUnreadableError(f"{self._source} holds more than {MAX_SECRET_BYTES // 1024} KiB")
        content = content.removesuffix(b"\n").removesuffix(b"\r")
        if not content.strip():
            raise SecretUnreadableError(f"{self._source} is empty or not set")
        if not content.isascii() or not content.decode("ascii").isprintable():
            raise SecretUnreadableError(f"{self._source} holds bytes that cannot be sent in a header")
        return content.decode("ascii")


class _Hidden:
    """Keeps a text out of every repr, vars() and traceback that prints its owner."""

    __slots__ = ("reveal",)

    def __init__(self, text: str) -> None:
        # A closure, because debuggers and error reporters print slots and attributes but not cells.
        self.reveal: Callable[[], str] = lambda: text

    def __repr__(self) -> str:
        return "<hidden>"


def _signature(path: str) -> _Signature:
    status = os.stat(path)
    return (status.st_mtime_ns, status.st_ino, status.st_size)
