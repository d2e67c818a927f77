"""The telemetry and logs sections of the file: values, problems with their lines, and warnings."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.configuration import Loaded, load
from sidecar.settings import Logs, Telemetry

BEFORE = "upstreams: {a: {url: 'http://127.0.0.1:9'}}\n"


def loaded(text: str, environ: dict[str, str] | None = None) -> Loaded:
    return load(BEFORE + text, source="c.yaml", environ=environ or {})


def telemetry_of(text: str) -> Telemetry:
    found = loaded(text)
    assert found.settings is not None, found.render_problems()
    return found.settings.telemetry


def test_everything_that_can_be_said() -> None:
    assert telemetry_of(
        """\
telemetry:
  otlp: https://collector.example.com/otel/
  protocol: grpc
  traces: true
  metrics: false
  sample: 0.25
  service_name: edge
  models: [gpt-5, claude]
  model_limit: 7
  slo: {ttft: [300ms, 700ms, 1s]}
  compat: [langfuse, openlit, openinference, legacy]
  capture_content: true
"""
    ) == Telemetry(
        otlp="https://collector.example.com/otel",
        protocol="grpc",
        traces=True,
        metrics=False,
        sample=0.25,
        service_name="edge",
        models=("gpt-5", "claude"),
        model_limit=7,
        slo_ttft_s=(0.3, 0.7, 1.0),
        compat=("langfuse", "openlit", "openinference", "legacy"),
        capture_content=True,
    )


def test_nothing_said_leaves_it_to_the_environment() -> None:
    assert telemetry_of("") == Telemetry()
    assert Telemetry().traces is Telemetry().metrics is Telemetry().sample is Telemetry().capture_content is None


def test_logs() -> None:
    found = loaded("logs: {format: json, level: warning, streams: false}\n").settings
    assert found is not None
    assert found.logs == Logs("json", "warning", streams=False)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("otlp: collector:4318", "must be http://HOST:PORT or https://HOST:PORT"),
        ("otlp: 'http://user:sk-astray@host'", "must not hold a user name or password"),
        ("otlp: 'http://host/?key=sk-astray'", "without a query"),
        ("otlp: 'http://host/v1/traces'", "must be the base URL"),
        ("otlp: 'http://host/../x'", "dot segments"),
        ("protocol: http/json", "must be one of http/protobuf, grpc"),
        ("traces: maybe", "must be true or false"),
        ("sample: 1.5", "from 0.0 to 1.0"),
        ("sample: nan", "from 0.0 to 1.0"),
        ("sample: often", "from 0.0 to 1.0"),
        ("model_limit: 0", "must be a whole number from 1 to"),
        ("model_limit: 99999999999999999999", "must be a whole number from 1 to"),
        ("models: ['']", "must be a model's name"),
        ("slo: {ttft: [301ms]}", "must be an edge of the TTFT buckets: 10ms, "),
        ("slo: {ttft: [0.3]}", "put it in quotes"),
        ("slo: {ttft: []}", "needs at least one threshold"),
        ("slo: {latency: [1s]}", "unknown key"),
        ("compat: [datadog]", "must be one of langfuse, legacy, openinference, openlit"),
        ("headers: {api-key: sk-astray}", "unknown key"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(said: str, message: str) -> None:
    found = loaded(f"telemetry:\n  {said}\n")
    assert found.settings is None
    (problem,) = found.problems
    assert problem.line == 3
    assert problem.path.startswith("telemetry.")
    assert message in problem.message
    assert "sk-astray" not in found.render_problems()


@pytest.mark.parametrize("said", ["format: xml", "level: loud", "streams: 3", "colour: true"])
def test_wrong_logs(said: str) -> None:
    found = loaded(f"logs:\n  {said}\n")
    assert [(problem.line, problem.path.split(".")[0]) for problem in found.problems] == [(3, "logs")]


@pytest.mark.parametrize(
    ("said", "environ", "start"),
    [
        ("", {"OTEL_TRACES_SAMPLER": "xray"}, "OTEL_TRACES_SAMPLER: "),
        ("", {"OTEL_PROPAGATORS": "b3"}, "OTEL_PROPAGATORS: "),
        ("", {"OTEL_METRIC_EXPORT_INTERVAL": "15s"}, "OTEL_METRIC_EXPORT_INTERVAL: "),
        ("telemetry: {capture_content: true}", {}, "telemetry.capture_content: "),
        ("telemetry: {otlp: 'http://127.0.0.1:4318'}", {"OTEL_SDK_DISABLED": "true"}, "telemetry.otlp: "),
        (
            "telemetry: {otlp: 'http://127.0.0.1:4318'}",
            {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/file"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE: ",
        ),
    ],
)
def test_what_is_warned_of(said: str, environ: dict[str, str], start: str) -> None:
    found: Any = loaded(said, environ).settings
    (warning,) = found.warnings
    assert warning.startswith(start)
