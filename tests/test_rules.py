"""The rules as Prometheus itself judges them: promtool checks them and plays every scenario through them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rule_scenarios import SCENARIOS, Scenario

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "k8s/components/rules/llm-sidecar.rules.yaml"
MANIFEST = ROOT / "k8s/components/rules/prometheusrule.yaml"
PAGE = "docs/alerts.md"

WRITTEN = yaml.safe_load(RULES.read_text())["groups"]
GROUPS: list[str] = [group["name"] for group in WRITTEN]
"""Told to promtool, which would take them in any order and let alerts see ratios that are one evaluation old."""
ALERTS: list[str] = sorted({rule["alert"] for group in WRITTEN for rule in group["rules"] if "alert" in rule})


def run(promtool: str, *arguments: str | Path) -> str:
    done = subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def play(promtool: str, scenario: Scenario, folder: Path, rules: Path = RULES) -> str:
    """What promtool says of a scenario, in which no alert may be raised beside those it names."""
    expected = [
        {
            "eval_time": f"{scenario.minutes}m",
            "alertname": alert,
            "exp_alerts": [
                {
                    "exp_labels": dict(each.labels),
                    "exp_annotations": {"summary": each.summary, "runbook": f"{PAGE}#{alert.lower()}"},
                }
                for each in scenario.raised.get(alert, [])
            ],
        }
        for alert in ALERTS
    ]
    series = [{"series": name, "values": values} for name, values in scenario.series.items()]
    test: dict[str, Any] = {
        "rule_files": [str(rules)],
        "evaluation_interval": f"{scenario.evaluated_every}m",
        "group_eval_order": GROUPS,
        "tests": [{"interval": f"{scenario.sampled_every}m", "input_series": series, "alert_rule_test": expected}],
    }
    file = folder / "scenario.yaml"
    file.write_text(yaml.safe_dump(test))
    return run(promtool, "test", "rules", file)


def test_promtool_takes_the_rules(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "check", "rules", RULES)


def test_promtool_takes_the_rules_of_the_manifest(promtool: str, tmp_path: Path) -> None:
    manifest = yaml.safe_load(MANIFEST.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert manifest["spec"] == yaml.safe_load(RULES.read_text())
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(manifest["spec"]))
    assert "SUCCESS" in run(promtool, "check", "rules", spec)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_raises_what_it_should_and_nothing_else(promtool: str, scenario: Scenario, tmp_path: Path) -> None:
    assert set(scenario.raised) <= set(ALERTS)
    assert "SUCCESS" in play(promtool, scenario, tmp_path)


def test_every_alert_is_raised_in_some_scenario() -> None:
    raised = {alert for scenario in SCENARIOS for alert, found in scenario.raised.items() if found}
    assert sorted(raised) == ALERTS


def test_a_scenario_that_expects_too_little_or_too_much_fails(promtool: str, tmp_path: Path) -> None:
    slow = next(each for each in SCENARIOS if each.name == "buffers nearly full")
    for expected in ({}, {**slow.raised, "LlmSidecarDown": slow.raised["LlmSidecarBuffersFull"]}):
        with pytest.raises(AssertionError, match="FAILED"):
            play(promtool, replace(slow, raised=expected), tmp_path)


def test_the_objective_that_pages_is_chosen_by_a_label(promtool: str, tmp_path: Path) -> None:
    rules = yaml.safe_load(RULES.read_text())
    for budget in rules["groups"][0]["rules"]:
        budget["labels"]["pages"] = "true" if budget["labels"]["slo"] == "ttft_1000ms" else "false"
    moved = tmp_path / "rules.yaml"
    moved.write_text(yaml.safe_dump(rules))
    before = next(each for each in SCENARIOS if each.name == "slower than a second, spelled 1")
    (name, raised), severities = next(iter(before.raised.items())), {"ttft_1000ms": "page"}
    after = [
        replace(
            each,
            labels={
                **each.labels,
                "pages": "true" if each.labels["slo"] in severities else "false",
                "severity": severities.get(each.labels["slo"], "info"),
            },
        )
        for each in raised
    ]
    changed = replace(before, raised={name: after})
    assert "SUCCESS" in play(promtool, changed, tmp_path, moved)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_explained(alert: str) -> None:
    assert f"\n### {alert}\n" in (ROOT / PAGE).read_text()
