"""Arize Phoenix as the tests run it, and what it says of the spans it was sent.

Owns where Phoenix is installed, how it is started, and its query API. Must not know who sends the spans.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import free_port, get_json, server, until

COMMAND = Path(__file__).resolve().parent.parent / ".venv-phoenix/bin/phoenix"
PAGE = 1000


def is_installed() -> bool:
    """`make test` installs it, on Linux and where a package index can be reached."""
    return COMMAND.is_file()


@dataclass(frozen=True)
class Phoenix:
    """A running Phoenix; ``url`` takes OTLP over HTTP at ``/v1/traces``, ``grpc_url`` over gRPC."""

    url: str
    grpc_url: str

    def spans(self, trace_id: str, count: int = 1) -> list[dict[str, Any]]:
        """The spans of a trace as Phoenix tells them, parents first, when there are ``count`` of them.

        Each has ``name``, ``span_kind``, ``parent_id``, ``status_code``, ``attributes`` and ``events``.
        """

        def told() -> list[dict[str, Any]] | None:
            found = self._stored(trace_id)
            return found if len(found) >= count else None

        return until(told, f"{count} spans of trace {trace_id}") or []

    def _stored(self, trace_id: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"limit": PAGE, "trace_id": trace_id})
        spans = get_json(f"{self.url}/v1/projects/default/spans?{query}")["data"]
        return sorted(spans, key=lambda span: (span["parent_id"] is not None, span["start_time"]))


@contextmanager
def running_phoenix(folder: Path) -> Iterator[Phoenix]:
    """Phoenix with its database in ``folder``, gone when the block ends."""
    port, grpc_port = free_port(), free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PHOENIX_"))}
    environ |= {
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
        "NO_PROXY": "127.0.0.1",
    }
    phoenix = Phoenix(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{grpc_port}")
    with server([str(COMMAND), "serve"], f"{phoenix.url}/healthz", folder / "phoenix.log", environ):
        yield phoenix
