"""Servers of other projects that tests start: each gets a free port, a log of its own, and an end.

Owns starting, waiting until it answers and stopping. Must not know what the server is.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")

START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 30.0
LAST_WORDS = 4000


class NeverError(AssertionError):
    """What was waited for did not come before the deadline."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def get_json(url: str) -> Any:
    """The JSON at a URL of the loopback interface."""
    with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_S) as answer:
        return json.load(answer)


def until(ask: Callable[[], Found], what: str, timeout_s: float = ANSWER_TIMEOUT_S) -> Found:
    """Ask again until the answer is true of something. Raises NeverError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (found := ask()):
        if time.monotonic() > deadline:
            raise NeverError(f"{what} did not come in {timeout_s:.0f} s")
        time.sleep(0.05)
    return found


@contextmanager
def server(command: Sequence[str], healthy_url: str, log: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Run a server until the block ends; the block begins when ``healthy_url`` answers 200."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(environ), cwd=log.parent)
    try:
        until(lambda: process.poll() is not None or _answers(healthy_url), command[0], START_TIMEOUT_S)
        assert process.poll() is None, f"{command[0]} ended by itself: {log.read_text()[-LAST_WORDS:]}"
        yield
    except NeverError as error:
        raise NeverError(f"{error}; its last words: {log.read_text()[-LAST_WORDS:]}") from error
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
