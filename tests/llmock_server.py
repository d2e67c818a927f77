"""llmock as the tests run it: an upstream that nobody here wrote, with faults of its own.

Owns where llmock is installed, how it is started, and how it is told what to do next. Must not know who asks it.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.settings import Address
from tests.processes import ANSWER_TIMEOUT_S, free_port, server

COMMAND = Path(__file__).resolve().parent.parent / ".venv-llmock/bin/llmock"
STALL_S = 3
"""How long its stalled streams stand still: longer than the deadlines of those who try it."""


def is_installed() -> bool:
    """`make test` installs it, where a package index can be reached."""
    return COMMAND.is_file()


def echo_of(content: str) -> str:
    """What it answers to a message, in its style "echo"."""
    return f"Hello! You said: {' '.join(content.split())[:120]}"


@dataclass(frozen=True)
class Llmock:
    """A running llmock."""

    address: Address

    def do_next(self, behaviour: dict[str, Any]) -> None:
        """What it does at the next request that fits."""
        body = json.dumps({"behaviors": [behaviour]}).encode()
        told = urllib.request.Request(
            f"http://{self.address}/_llmock/scenario", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(told, timeout=ANSWER_TIMEOUT_S):
            pass


@contextmanager
def running_llmock(folder: Path, options: Sequence[str] = ()) -> Iterator[Llmock]:
    """llmock with these options of its command line, gone when the block ends."""
    address = Address("127.0.0.1", free_port())
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LLMOCK_")}
    environ |= {"LLMOCK_STREAM_STALL_SECONDS": str(STALL_S), "NO_PROXY": "127.0.0.1"}
    place = ["--host", address.host, "--port", str(address.port), "--response-style", "echo"]
    with server([str(COMMAND), "serve", *place, *options], f"http://{address}/health", folder / "llmock.log", environ):
        yield Llmock(address)
