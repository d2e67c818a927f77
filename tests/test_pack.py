"""The pack speaks of what there is: its files are what their code writes, and its names are those of telemetry."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.pack.__main__ import COMPONENTS, FILES
from k8s.pack.objectives import BURNS, MIN_STREAMS
from sidecar.telemetry.names import ATTRIBUTES, EVENTS, LOG_FIELDS, METRICS, Metric, prometheus_label
from tests.promql import Spoken, attributes_of, spoken

ROOT = Path(__file__).resolve().parent.parent
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((COMPONENTS / "rules/llm-sidecar.rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((COMPONENTS / "dashboard/llm-sidecar.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

OF_TARGETS = {"namespace", "job", "instance"}
"""Labels that Prometheus sets, whatever the metric."""
OF_RULES = {"le", "slo", "pages"}
NOT_OURS = {"up", "vllm:time_to_first_token_seconds_bucket", "sglang:time_to_first_token_seconds_bucket"}
"""Prometheus' own, and engines' that a panel sets beside ours."""
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
LABELS = {prometheus_label(name) for name, attribute in ATTRIBUTES.items() if "metric" in attribute.places}

UNSEEN: dict[str, str] = {}
"""Metrics in neither dashboard nor rules, and why."""


def series_of(metric: Metric) -> set[str]:
    """The names of a metric's series in Prometheus."""
    name = metric.prometheus_name
    return {f"{name}_{part}" for part in ("bucket", "count", "sum")} if metric.kind == "histogram" else {name}


METRIC_OF = {series: metric for metric in METRICS.values() for series in series_of(metric)}


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and what it asks."""
    for rule in RULES:
        yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"] if "expr" in target)
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield f"${variable['name']}", variable["query"]


EXPRESSIONS = list(expressions())


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_what_its_code_writes(path: str) -> None:
    assert (COMPONENTS / path).read_text() == FILES[path](), "run `make pack`"


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_an_expression_speaks_of_what_there_is(where: str, expression: str) -> None:
    found = spoken(expression)
    assert found.metrics or where == "llm_sidecar:ttft_slo:budget"
    assert found.metrics - METRIC_OF.keys() - RECORDED - NOT_OURS == set()
    assert found.labels - LABELS - OF_TARGETS - OF_RULES == set()
    for series, label in found.matched:
        if series in METRIC_OF and label not in OF_TARGETS | {"le"}:
            own = {prometheus_label(name) for name in METRIC_OF[series].attributes}
            assert label in own, f"{series} has no label {label}"


def test_edges_that_are_asked_for_exist() -> None:
    asked = {
        (series, edge) for _, text in EXPRESSIONS for series, edge in re.findall(r'(\w+)_bucket\{le="([\d.]+)"', text)
    }
    assert asked
    bounds = {metric.prometheus_name: metric.bounds for metric in METRICS.values()}
    assert [(series, edge) for series, edge in sorted(asked) if float(edge) not in bounds[series]] == []
    assert 1.0 in bounds["llm_sidecar_time_to_first_token_seconds"]
    assert any('le=~"1|1\\\\.0"' in text for _, text in EXPRESSIONS)


def test_traces_are_searched_by_attributes_of_calls() -> None:
    queries = [target["query"] for panel in PANELS for target in panel["targets"] if "query" in target]
    assert queries
    named = {attribute for query in queries for attribute in attributes_of(query)}
    assert named
    assert [name for name in sorted(named) if "client span" not in ATTRIBUTES[name].places] == []


def test_every_metric_is_seen_somewhere() -> None:
    seen = {METRIC_OF[series].name for _, text in EXPRESSIONS for series in spoken(text).metrics if series in METRIC_OF}
    assert sorted(METRICS.keys() - seen) == sorted(UNSEEN)


def test_every_metric_and_attribute_is_on_the_page_and_nothing_else() -> None:
    told = set(re.findall(r"`([^`\n]+)`", (ROOT / "docs/telemetry.md").read_text()))
    names = {*METRICS, *ATTRIBUTES, *EVENTS, *LOG_FIELDS}
    assert sorted(names - told) == []
    assert sorted(metric.prometheus_name for metric in METRICS.values() if metric.prometheus_name not in told) == []
    dotted = {
        each for each in told if re.fullmatch(r"(gen_ai|llm_sidecar|http|llm|langfuse|openinference)\.[\w.]+", each)
    }
    assert sorted(dotted - names) == []


def test_labels_in_legends_and_texts_exist() -> None:
    texts = [target.get("legendFormat", "") for panel in PANELS for target in panel["targets"]]
    labels = {label for text in texts for label in re.findall(r"\{\{(\w+)\}\}", text)}
    for rule in RULES:
        for text in (*rule.get("annotations", {}).values(), *rule.get("labels", {}).values()):
            labels.update(re.findall(r"\$labels\.(\w+)", text))
    assert labels
    assert labels - LABELS - OF_TARGETS - OF_RULES == set()


def test_panels_sum_over_processes() -> None:
    for where, text in EXPRESSIONS:
        if "rate(" in text or "increase(" in text:
            assert re.search(r"\b(sum|max)\b", text), where


def test_the_dashboard_can_be_used_anywhere() -> None:
    sources = {panel["datasource"]["uid"] for panel in PANELS}
    assert sources == {"$datasource", "$tempo"}
    assert len(DASHBOARD["panels"]) - len(PANELS) >= 10
    assert any(target.get("exemplar") for panel in PANELS for target in panel["targets"])
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names >= {"model", "route", "upstream", "instance"}
    used = {name for panel in PANELS for name in re.findall(r"\$(\w+)", json.dumps(panel)) if not name.startswith("__")}
    assert used == names


def test_promtool_parses_what_panels_ask(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{place}", "expr": re.sub(r"\$__\w+", "5m", target["expr"])}
        for place, target in enumerate(target for panel in PANELS for target in panel["targets"] if "expr" in target)
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_the_page_of_alerts_tells_the_burn_rates() -> None:
    page = (ROOT / "docs/alerts.md").read_text()
    for burn in BURNS:
        row = f"| {burn.factor:g} | {burn.factor * 5:g} % | {burn.long} | {burn.short} | {burn.severity} |"
        assert row in page
    assert f"{MIN_STREAMS} streams or fewer" in page


@pytest.mark.optional_platform
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kubectl_builds_the_components(tmp_path: Path) -> None:
    shutil.copytree(COMPONENTS, tmp_path / "components")
    (tmp_path / "kustomization.yaml").write_text("components: [components/rules, components/dashboard]\n")
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True)
    built = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert built["ConfigMap"]["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(built["ConfigMap"]["data"]["llm-sidecar.json"]) == DASHBOARD
    assert built["PrometheusRule"]["metadata"]["name"] == "llm-sidecar"


def test_the_reading_of_expressions_notices() -> None:
    found = spoken('sum by (le, model) (rate(a_total{x=~"b|c", y!="d"}[5m])) / on (job) group_left () r:x > 2')
    assert found == Spoken({"a_total", "r:x"}, {"le", "model", "job", "x", "y"}, {("a_total", "x"), ("a_total", "y")})
    assert spoken('label_values(a{b="c"}, d)') == Spoken({"a"}, {"b", "d"}, {("a", "b"), ("a", "d")})
    assert list(attributes_of("{ span.llm_sidecar.ttft > 1 } | select(span.a.b)")) == ["llm_sidecar.ttft", "a.b"]
