"""A client of a sidecar that listens on a Unix socket or over TLS is told what one of a plain port is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sidecar.app import App
from sidecar.settings import Address, ServerTls
from tests.app_support import ANY_PORT, Reply, answering, before, on_uvloop
from tests.app_support import stream as answer_of
from tests.departures import make_certificates

GEMINI = "/v1beta/models/g:streamGenerateContent?alt=sse"
FIXTURES = Path(__file__).parent / "fixtures" / "gemini"
STREAMS = ("text_and_usage", "thoughts_and_calls", "two_candidates", "error_event")
OF_THE_MOMENT = {"stream", "created", "ttft_ms", "duration_ms"}


def told(app: App, transport: httpx2.BaseTransport, scheme: str = "http") -> list[tuple[str, Any]]:
    """The typed events of one stream, less what no two streams share."""
    address = app.address
    base = f"{scheme}://localhost" if address.path else f"{scheme}://{address}"
    headers = {"X-Stream-Format": "typed"}
    with httpx2.Client(transport=transport, base_url=base, trust_env=False) as client:
        answer = client.post(GEMINI, json={"contents": [{"parts": [{"text": "hi"}]}]}, headers=headers)
    assert (answer.status_code, answer.headers["X-Stream-Format"]) == (200, "typed")
    events = Reply(200, "", [], b"", [answer.content]).events()
    return [(name, {key: data[key] for key in data if key not in OF_THE_MOMENT}) for name, data in events]


@pytest.mark.parametrize("name", STREAMS)
@on_uvloop
async def test_typed_is_the_same_wherever_the_sidecar_listens(name: str, tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    body = (FIXTURES / f"{name}.sse").read_bytes()
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    path = str(tmp_path / "sidecar.sock")
    tls = ServerTls(made.certificate, made.key)
    async with (
        answering(answer_of(pieces)) as upstream,
        before(upstream.address) as plain,
        before(upstream.address, listen=Address(path=path)) as local,
        before(upstream.address, listen=ANY_PORT, tls=tls) as secure,
    ):
        expected = await asyncio.to_thread(told, plain, httpx2.HTTPTransport())
        over_unix = await asyncio.to_thread(told, local, httpx2.HTTPTransport(uds=path))
        over_tls = await asyncio.to_thread(told, secure, httpx2.HTTPTransport(verify=made.client()), "https")
    assert [event for event, _ in expected][:: len(expected) - 1] == ["start", "done"]
    assert over_unix == expected
    assert over_tls == expected
