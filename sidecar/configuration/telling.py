"""The ``telemetry`` and ``logs`` sections.

Owns their meaning as far as the file decides it. Must not know the environment's share of it (`telemetry.choices`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from sidecar.configuration.addresses import parse_collector
from sidecar.configuration.yaml_tree import Sequence
from sidecar.settings import LogFormat, LogLevel, Logs, OtlpProtocol, Reader, Telemetry
from sidecar.telemetry.names import FIRST_TOKEN_SECONDS
from sidecar.units import format_duration, parse_duration

if TYPE_CHECKING:
    from sidecar.configuration.fields import Section

_MAX_MODELS: Final = 10_000
_MAX_NAME: Final = 256


def read_telemetry(section: Section) -> Telemetry:
    """What the file says of metrics and traces."""
    default = Telemetry()
    protocols, readers = get_args(OtlpProtocol), get_args(Reader)
    slo = section.section("slo")
    if isinstance(node := slo.node("ttft"), Sequence) and not node.items:
        slo.complain("ttft", "needs at least one threshold")
    return Telemetry(
        otlp=section.checked("otlp", parse_collector, default.otlp),
        protocol=section.choice("protocol", protocols, default.protocol),
        traces=_switch(section, "traces"),
        metrics=_switch(section, "metrics"),
        sample=section.checked("sample", _share, default.sample),
        service_name=section.text("service_name", default.service_name),
        models=section.texts("models", _model),
        model_limit=section.count("model_limit", default.model_limit, 1, _MAX_MODELS),
        slo_ttft_s=slo.texts("ttft", _threshold) if "ttft" in slo else default.slo_ttft_s,
        compat=section.texts("compat", lambda text: _one_of(readers, text)),
        capture_content=_switch(section, "capture_content"),
    )


def read_logs(section: Section) -> Logs:
    """What the file says of log lines."""
    default = Logs()
    return Logs(
        format=section.choice("format", get_args(LogFormat), default.format),
        level=section.choice("level", get_args(LogLevel), default.level),
        streams=section.boolean("streams", default.streams),
    )


def _switch(section: Section, key: str) -> bool | None:
    return section.boolean(key, default=False) if key in section else None


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ValueError("must be a share of all traces, from 0.0 to 1.0")
    return share


def _model(text: str) -> str:
    if not text or len(text) > _MAX_NAME:
        raise ValueError("must be a model's name")
    return text


def _threshold(text: str) -> float:
    """An objective between two edges could not be counted exactly, so it has to be one of them."""
    threshold_s = round(parse_duration(text), 6)  # 700 × 0.001 is not quite 0.7
    if threshold_s not in FIRST_TOKEN_SECONDS:
        edges = ", ".join(format_duration(edge_s) for edge_s in FIRST_TOKEN_SECONDS)
        raise ValueError(f"must be an edge of the TTFT buckets: {edges}")
    return threshold_s


def _one_of(allowed: tuple[Reader, ...], text: str) -> Reader:
    for name in allowed:
        if name == text:
            return name
    raise ValueError(f"must be one of {', '.join(allowed)}")
