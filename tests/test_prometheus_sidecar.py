"""A real Prometheus scrapes a real sidecar: what its streams took is what the objective's queries say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from sidecar.app import App
from sidecar.settings import Settings
from tests.app_support import CHAT, Received, answering, ask, asked, before, on_uvloop, openai_frames, plain, stream
from tests.prometheus_server import Prometheus, running_prometheus
from tests.test_prometheus import RULES, TTFT

STREAMS = 20
FAILED = "fail"
"""The model whose requests the upstream refuses."""


def answer(received: Received) -> list[bytes]:
    """A short stream, or 503 for the model that fails."""
    if FAILED.encode() in received.body:
        return [plain(b"{}", "503 Service Unavailable")]
    return stream(openai_frames("a", "b"))


async def some_streams(app: App) -> None:
    for _ in range(STREAMS):
        assert (await asked(app, ask(CHAT))).status == 200
    assert (await asked(app, ask(CHAT, model=FAILED))).status == 503


def judged(prometheus: Prometheus) -> dict[str, Any]:
    """What the queries of rules and dashboard say of all that ended, once it has been scraped."""
    prometheus.wait(f"sum(increase({TTFT}_count[5m])) > 0 and sum({TTFT}_count) == {2 * STREAMS}")
    prometheus.wait('llm_sidecar:ttft_slow:ratio_rate5m{slo="ttft_1000ms", gen_ai_request_model="m"} >= 0')
    prometheus.wait("llm_sidecar:failed_early:ratio_rate5m > 0")
    bucket = f"sum by (le) (rate({TTFT}_bucket[5m]))"
    ended = "sum by (llm_sidecar_outcome, error_type, llm_sidecar_stage) (llm_sidecar_streams_ended_total)"
    return {
        "in time": prometheus.value(f'sum(rate({TTFT}_bucket{{le=~"1|1\\\\.0"}}[5m])) / sum(rate({TTFT}_count[5m]))'),
        "p95": prometheus.value(f"histogram_quantile(0.95, {bucket})"),
        "ended": {tuple(sorted(labels.values())): value for labels, value in prometheus.ask(ended)},
        "active": prometheus.value("sum(llm_sidecar_streams_active)"),
        "limit": prometheus.value("sum(llm_sidecar_buffered_limit_bytes)"),
        "faults": [rule["lastError"] for rule in prometheus.rules() if rule.get("lastError")],
    }


@on_uvloop
async def test_what_streams_took_is_what_prometheus_says(prometheus: str, tmp_path: Path) -> None:
    async with answering(answer) as upstream, before(upstream.address, tells_itself=True) as app:
        # Some before the first scrape, which sees them as they are, and as many after it, which it sees added.
        await some_streams(app)
        with running_prometheus(prometheus, tmp_path, [f"127.0.0.1:{app.admin_port}"], RULES) as watching:
            await asyncio.to_thread(watching.wait, f"sum({TTFT}_count) == {STREAMS}")
            await some_streams(app)
            found = await asyncio.to_thread(judged, watching)
    assert found["in time"] == 1.0
    assert 0 < found["p95"] <= 1.0
    assert found["ended"] == {("completed",): 2 * STREAMS, ("503", "before_first_token", "upstream_rejected"): 2}
    assert found["active"] == 0
    assert found["limit"] == Settings({}, ()).max_buffered_bytes
    assert found["faults"] == []
