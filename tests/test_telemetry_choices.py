"""What the configuration and the environment together ask of telemetry: the file before the environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.settings import Telemetry
from sidecar.telemetry.choices import Choices, Collector, Queue, Sampling, choose

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
URL = "http://collector:4318"


def chosen(environ: dict[str, str] | None = None, **said: Any) -> Choices:
    return choose(Telemetry(**said), environ or {})


def test_nothing_asked_for_is_metrics_alone() -> None:
    assert chosen() == Choices()


@pytest.mark.parametrize("text", ["true", "TRUE", " True "])
def test_the_sdk_can_be_switched_off(text: str) -> None:
    choices = chosen({"OTEL_SDK_DISABLED": text, ENDPOINT: URL}, otlp=URL, metrics=True)
    assert not choices.is_on
    assert (choices.traces, choices.metrics, choices.keeps_metrics) == (None, None, False)


def test_anything_but_true_leaves_it_on() -> None:
    assert chosen({"OTEL_SDK_DISABLED": "1"}).is_on


@pytest.mark.parametrize(
    ("environ", "said", "traces", "metrics"),
    [
        ({ENDPOINT: URL}, {}, Collector(), Collector()),
        ({ENDPOINT: ""}, {}, None, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": URL}, {}, Collector(), None),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": URL}, {}, None, Collector()),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, {}, Collector(), None),
        ({ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "none"}, {}, None, Collector()),
        ({ENDPOINT: URL, "OTEL_METRICS_EXPORTER": "prometheus"}, {}, Collector(), None),
        ({ENDPOINT: URL, "OTEL_METRICS_EXPORTER": "prometheus, otlp"}, {}, Collector(), Collector()),
        ({ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "none"}, {"traces": True}, Collector(), Collector()),
        ({ENDPOINT: URL}, {"traces": False}, None, Collector()),
        ({ENDPOINT: URL}, {"metrics": False}, Collector(), None),
        ({}, {"otlp": URL}, Collector(url=URL), Collector(url=URL)),
        ({ENDPOINT: "http://else"}, {"otlp": URL}, Collector(url=URL), Collector(url=URL)),
        ({"OTEL_TRACES_EXPORTER": "none"}, {"otlp": URL}, None, Collector(url=URL)),
    ],
)
def test_where_signals_go(
    environ: dict[str, str], said: dict[str, Any], traces: Collector | None, metrics: Collector | None
) -> None:
    choices = chosen(environ, **said)
    assert (choices.traces, choices.metrics) == (traces, metrics)
    assert choices.warnings == ()


def test_an_exporter_that_is_not_supported_exports_nothing() -> None:
    choices = chosen({ENDPOINT: URL, "OTEL_TRACES_EXPORTER": "zipkin"})
    assert choices.traces is None
    assert [warning.partition(":")[0] for warning in choices.warnings] == ["OTEL_TRACES_EXPORTER"]
    assert "zipkin" not in choices.warnings[0]


@pytest.mark.parametrize(
    ("environ", "said", "protocols"),
    [
        ({}, {}, ("http/protobuf", "http/protobuf")),
        ({}, {"protocol": "grpc"}, ("grpc", "grpc")),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {}, ("grpc", "grpc")),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, {}, ("grpc", "http/protobuf")),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"},
            {},
            ("grpc", "http/protobuf"),
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"protocol": "http/protobuf"}, ("http/protobuf", "http/protobuf")),
    ],
)
def test_how_signals_go(environ: dict[str, str], said: dict[str, Any], protocols: tuple[str, str]) -> None:
    choices = chosen(environ, otlp=URL, **said)
    assert choices.traces is not None
    assert choices.metrics is not None
    assert (choices.traces.protocol, choices.metrics.protocol) == protocols


def test_what_exporters_are_told() -> None:
    assert Collector(url=f"{URL}/").endpoint("traces") == f"{URL}/v1/traces"
    assert Collector(url=f"{URL}/otel").endpoint("metrics") == f"{URL}/otel/v1/metrics"
    assert Collector("grpc", URL).endpoint("traces") == URL
    assert Collector().endpoint("traces") is None


@pytest.mark.parametrize(
    ("environ", "said", "sampling"),
    [
        ({}, {}, Sampling(1.0, follows_caller=True)),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, {}, Sampling(1.0, follows_caller=False)),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, {}, Sampling(0.0, follows_caller=False)),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            {},
            Sampling(0.25, follows_caller=False),
        ),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, {}, Sampling(0.0, follows_caller=True)),
        (
            {"OTEL_TRACES_SAMPLER": "ParentBased_TraceIdRatio", "OTEL_TRACES_SAMPLER_ARG": "0.5"},
            {},
            Sampling(0.5, follows_caller=True),
        ),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, {}, Sampling(1.0, follows_caller=False)),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, {"sample": 0.1}, Sampling(0.1, follows_caller=True)),
    ],
)
def test_what_is_sampled(environ: dict[str, str], said: dict[str, Any], sampling: Sampling) -> None:
    choices = chosen(environ, **said)
    assert choices.sampling == sampling
    assert choices.warnings == ()


@pytest.mark.parametrize(
    ("text", "joins", "warnings"),
    [
        ("", True, 0),
        ("tracecontext,baggage", True, 0),
        (" TraceContext ", True, 0),
        ("baggage", False, 0),
        ("none", False, 0),
        ("none,tracecontext", False, 0),
        ("b3", True, 1),
        ("b3,tracecontext", True, 1),
    ],
)
def test_what_is_propagated(text: str, joins: bool, warnings: int) -> None:
    choices = chosen({"OTEL_PROPAGATORS": text})
    assert (choices.joins_traces, len(choices.warnings)) == (joins, warnings)


def test_the_queue() -> None:
    environ = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1000",
        "OTEL_BSP_SCHEDULE_DELAY": "2500",
    }
    assert chosen(environ).queue == Queue(100, 100, 2.5)


@pytest.mark.parametrize(
    ("environ", "said", "captures"),
    [
        ("", None, False),
        ("SPAN_ONLY", None, True),
        ("span_and_event", None, True),
        ("true", None, True),
        ("NO_CONTENT", None, False),
        ("SPAN_ONLY", False, False),
        ("", True, True),
    ],
)
def test_whether_content_is_captured(environ: str, said: bool | None, captures: bool) -> None:
    choices = chosen({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": environ}, capture_content=said)
    assert (choices.captures_content, choices.warnings) == (captures, ())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1s"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9" * 30),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "EVENT_ONLY"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "sk-astray"),
    ],
)
def test_what_is_no_use_is_warned_of_once_and_not_repeated(name: str, text: str) -> None:
    choices = chosen({name: text}, otlp=URL)
    assert replace(choices, warnings=()) == chosen(otlp=URL)
    assert [warning.partition(":")[0] for warning in choices.warnings] == [name]
    assert "sk-astray" not in choices.warnings[0]


@pytest.mark.parametrize("text", ["2", "-0.1", "a half", "nan"])
def test_a_share_that_is_none_is_everything(text: str) -> None:
    choices = chosen({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": text})
    assert choices.sampling == Sampling(1.0, follows_caller=False)
    assert len(choices.warnings) == 1
