"""Secrets, read from files and the environment and shown to no one by accident.

Owns reading, re-reading and hiding a secret's text. Must not know what the secret is for.
"""

from __future__ import annotations

import configparser
import hmac
import os
import stat
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from sidecar.settings import AwsKeySource, SecretSource

MAX_SECRET_BYTES: Final = 64 * 1024
CHECK_INTERVAL_S: Final = 1.0
"""A file is looked at no more often than this, however many requests ask for its secret."""

_PROFILE_KEYS: Final = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")

_Signature = tuple[int, int, int]


class SecretUnreadableError(Exception):
    """The secret is not there or cannot be used. The message names its source, never its content."""


class Secret:
    """One secret, current whenever it is asked for.

    A file is read again when it changes; while it is missing or unusable after a first good read (a rotation half
    done), the last good value stays in use and ``problem`` says why. The environment is read once, at construction.
    ``understand`` makes the secret of what its source holds; without it, that is one line.

    Raises SecretUnreadableError at construction for an environment variable that is unset or unusable.
    """

    __slots__ = ("_clock", "_next_check_s", "_signature", "_source", "_understand", "_value", "problem")

    def __init__(
        self,
        source: SecretSource,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        understand: Callable[[SecretSource, bytes], str] | None = None,
    ) -> None:
        self._source = source
        self._understand = understand or _one_line
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
        return self._understand(self._source, content)


class AwsKeys:
    """A pair of AWS keys and the session token that may go with them, current whenever they are asked for.

    Nothing but the file or the variables is ever asked for them: no role is assumed, no metadata service called.
    Raises SecretUnreadableError at construction as `Secret` does.
    """

    __slots__ = ("_parts", "_source")

    def __init__(
        self, source: AwsKeySource, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        if source.file:
            self._parts = [Secret(SecretSource(file=source.file), environ, clock, _profile_reader(source.profile))]
        else:
            names = [source.access_key_id, source.secret_access_key, source.session_token]
            self._parts = [Secret(SecretSource(env=name), environ, clock) for name in names if name]

    def read(self) -> tuple[str, str, str]:
        """Key id, secret key and session token ("" for none) as of now. Raises as `Secret.read` does."""
        key_id, secret_key, token = [*"\n".join(part.read() for part in self._parts).split("\n"), ""][:3]
        return key_id, secret_key, token

    def __repr__(self) -> str:
        return f"<AwsKeys from {self._source}>"


def _one_line(source: SecretSource, content: bytes) -> str:
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    if not content.strip():
        raise SecretUnreadableError(f"{source} is empty or not set")
    if not content.isascii() or not content.decode("ascii").isprintable():
        raise SecretUnreadableError(f"{source} holds bytes that cannot be sent in a header")
    return content.decode("ascii")


def _profile_reader(profile: str) -> Callable[[SecretSource, bytes], str]:
    """What reads one profile of a shared-credentials file: its keys, a line each."""

    def understand(source: SecretSource, content: bytes) -> str:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(content.decode())
            fields = dict(parser.items(profile))
        except configparser.NoSectionError:
            raise SecretUnreadableError(f"{source} has no profile {profile}") from None
        except (configparser.Error, UnicodeDecodeError):
            # What these errors say quotes the file.
            raise SecretUnreadableError(f"{source} is no shared-credentials file") from None
        keys = [fields.get(name, "") for name in _PROFILE_KEYS]
        if not keys[0] or not keys[1]:
            raise SecretUnreadableError(f"{source} has no {_PROFILE_KEYS[0]} and {_PROFILE_KEYS[1]} for {profile}")
        if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise SecretUnreadableError(f"{source} holds keys for {profile} that cannot be sent in a header")
        return "\n".join(keys)

    return understand


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
