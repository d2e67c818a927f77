"""The tables of names, and the page that is made of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.telemetry import names
from sidecar.telemetry.document import render

ROOT = Path(__file__).resolve().parent.parent
CONVENTIONS = ("gen_ai.", "http.", "url.", "network.", "server.", "error.", "cpu.", "process.", "service.", "otel.")


def constants() -> dict[str, str]:
    return {key: value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}


def test_the_page_is_what_the_code_says() -> None:
    """python -m sidecar.telemetry.document > docs/telemetry.md"""
    assert (ROOT / "docs/telemetry.md").read_text() == render()


def test_every_name_has_its_row_and_every_row_its_name() -> None:
    rows = {*names.METRICS, *names.ATTRIBUTES, *names.EVENTS}
    assert rows == set(constants().values()) - {names.SCOPE, names.SEMCONV, names.OTHER}
    assert names.METRICS.keys() & names.ATTRIBUTES.keys() == {names.STREAM_MAX_GAP}
    assert names.MAX_GAP == names.STREAM_MAX_GAP


@pytest.mark.parametrize("metric", names.METRICS.values(), ids=lambda metric: metric.name)
def test_a_metric_has_only_attributes_that_are_for_metrics(metric: names.Metric) -> None:
    assert [each for each in metric.attributes if "metric" not in names.ATTRIBUTES[each].places] == []
    assert bool(metric.bounds) == (metric.kind == "histogram")
    assert metric.name.startswith((f"{names.SCOPE}.", *CONVENTIONS))


def test_what_is_not_of_the_conventions_is_in_the_sidecars_own_namespace() -> None:
    plain = [each.name for each in names.ATTRIBUTES.values() if not each.compat]
    assert [name for name in plain if not name.startswith((f"{names.SCOPE}.", *CONVENTIONS))] == []


@pytest.mark.parametrize(
    ("name", "prometheus"),
    [
        (names.TIME_TO_FIRST_TOKEN, "llm_sidecar_time_to_first_token_seconds"),
        (names.OPERATION_DURATION, "gen_ai_client_operation_duration_seconds"),
        (names.STREAMS_ENDED, "llm_sidecar_streams_ended_total"),
        (names.BUFFERED, "llm_sidecar_buffered_bytes"),
        (names.TOKEN_USAGE, "gen_ai_client_token_usage"),
        (names.SERVER_ACTIVE_REQUESTS, "http_server_active_requests"),
    ],
)
def test_what_prometheus_calls_a_metric(name: str, prometheus: str) -> None:
    assert names.METRICS[name].prometheus_name == prometheus


def test_names_are_spelled_nowhere_else() -> None:
    spelled = re.compile(r"""["'](?:gen_ai|llm_sidecar|langfuse|openinference)\.[a-z_.]+["']""")
    found = {
        file.name: spelled.findall(file.read_text())
        for file in (ROOT / "sidecar/telemetry").glob("*.py")
        if file.name != "names.py"
    }
    assert {name: spellings for name, spellings in found.items() if spellings} == {}
