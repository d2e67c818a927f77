"""A real Prometheus scrapes sidecars, and answers what the rules and the dashboard ask of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.made_exposition import made_sidecar
from tests.processes import until
from tests.prometheus_server import JOB, Prometheus, running_prometheus

COMPONENTS = Path(__file__).resolve().parent.parent / "k8s/components"
RULES = COMPONENTS / "rules/llm-sidecar.rules.yaml"
TTFT = "llm_sidecar_time_to_first_token_seconds"
SLOW_SHARES = (0.0, 0.5)
"""Of two sidecars: of one all streams are quick, of the other half; of both a quarter is slow."""


@pytest.fixture(scope="module")
def scraped(prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen both sidecars ten times."""
    with ExitStack() as stack:
        targets = [stack.enter_context(made_sidecar(share)) for share in SLOW_SHARES]
        running = running_prometheus(prometheus, tmp_path_factory.mktemp("prometheus"), targets, RULES)
        watching = stack.enter_context(running)
        watching.wait(f'min(count_over_time(up{{job="{JOB}"}}[1m])) >= 10 and sum(up) == {len(targets)}')
        yield watching


def near(prometheus: Prometheus, expression: str, expected: float) -> None:
    """Wait until an expression is what it should be, which two scrapes that began apart are soon."""
    found: list[float | None] = [None]

    def is_near() -> bool:
        found[0] = prometheus.value(expression)
        return found[0] == pytest.approx(expected, rel=0.05)

    until(is_near, f"{expected} for {expression}")


def test_the_share_in_time_is_that_of_all_processes(scraped: Prometheus) -> None:
    for edge, share in {'le="0.3"': 0.75, 'le="0.7"': 0.75, 'le=~"1|1\\\\.0"': 1.0}.items():
        near(scraped, f"sum(rate({TTFT}_bucket{{{edge}}}[1m])) / sum(rate({TTFT}_count[1m]))", share)


def test_a_quantile_is_that_of_all_processes(scraped: Prometheus) -> None:
    quantile = f"histogram_quantile({{}}, sum by (le) (rate({TTFT}_bucket[1m])))"
    # Three quarters lie between 160 and 250 ms, the rest between 0.7 and 1 s: Prometheus goes straight between edges.
    near(scraped, quantile.format(0.5), 0.16 + 0.09 * 0.5 / 0.75)
    near(scraped, quantile.format(0.95), 0.7 + 0.3 * (0.95 - 0.75) / 0.25)


def test_every_rule_is_evaluated_without_an_error(scraped: Prometheus) -> None:
    until(lambda: all(rule["health"] != "unknown" for rule in scraped.rules()), "the evaluation of all rules")
    rules = scraped.rules()
    assert len(rules) > 40
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_every_recorded_name_has_a_value(scraped: Prometheus) -> None:
    recorded = {rule["name"] for rule in scraped.rules() if rule["type"] == "recording"}
    for name in sorted(recorded):
        scraped.wait(f"{name} >= 0")
    near(scraped, 'llm_sidecar:ttft_slow:ratio_rate1h{slo="ttft_700ms"}', 0.25)
    near(scraped, 'llm_sidecar:ttft_slow:ratio_rate3d{slo="ttft_300ms"}', 0.25)
    assert scraped.value('llm_sidecar:ttft_slo:budget{slo="ttft_700ms", pages="true"}') == 0.05


def test_every_panel_has_an_answer(scraped: Prometheus) -> None:
    dashboard = json.loads((COMPONENTS / "dashboard/llm-sidecar.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", []) if "expr" in target
    ]
    ours = [each for each in expressions if not re.search(r"(vllm|sglang):", each)]
    assert len(ours) > 40
    for each in ours:
        asked = re.sub(r"\$(\w+)", ".*", each.replace("[$__rate_interval]", "[1m]").replace("[$__range]", "[1h]"))
        scraped.wait(asked)
