"""What telemetry costs: the sidecar with all of it on, and with none of it.

Owns both settings, and the check that telemetry really arrived. Must not know the loads, nor how anything is measured.
"""

from __future__ import annotations

import re
import sys
import urllib.request
from typing import TYPE_CHECKING, Final

import yaml

from benchmarks.machine import BenchmarkError
from benchmarks.proxies import Launch, Proxy, sidecar_settings

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.proxies import Ports

ON: Final = "telemetry on"
OFF: Final = "telemetry off"

BY_DEFAULT: Final = "metrics are kept, nothing is exported; nobody writes a line for each request"
"""What RESULTS.md says of all other rows."""

METRICS_EVERY_MS: Final = 5000
"""Every minute is the default: a measurement of ten seconds would miss it."""

_EXPORTED: Final = re.compile(r'^llm_sidecar_telemetry_exported_total\{.*signal="(\w+)".*\} (\S+)$', re.MULTILINE)
_DROPPED: Final = re.compile(r"^llm_sidecar_telemetry_dropped_total\{.*\} (\S+)$", re.MULTILINE)


def on_settings(ports: Ports) -> dict[str, object]:
    """Every trace kept and exported, metrics too, and JSON lines."""
    telemetry = {"otlp": f"http://127.0.0.1:{ports.collector}", "sample": 1.0}
    return {**sidecar_settings(ports, None), "telemetry": telemetry, "logs": {"format": "json"}}


def off_settings(ports: Ports) -> dict[str, object]:
    """No OpenTelemetry, which is the environment's to say, and no lines."""
    return sidecar_settings(ports, None)


def _on_launch(_program: str, ports: Ports, folder: Path) -> Launch:
    return _launch(on_settings(ports), folder, {"OTEL_METRIC_EXPORT_INTERVAL": str(METRICS_EVERY_MS)})


def _off_launch(_program: str, ports: Ports, folder: Path) -> Launch:
    return _launch(off_settings(ports), folder, {"OTEL_SDK_DISABLED": "true"})


def _launch(settings: dict[str, object], folder: Path, environ: dict[str, str]) -> Launch:
    config = folder / "sidecar.yaml"
    config.write_text(yaml.safe_dump(settings))
    return Launch((sys.executable, "-m", "sidecar", "run", "--config", str(config)), environ)


VARIANTS: Final[dict[str, Proxy]] = {
    proxy.name: proxy
    for proxy in (
        Proxy(ON, "spans, metrics and lines, native", sys.executable, _on_launch, exports=True),
        Proxy(OFF, "nothing of it, native", sys.executable, _off_launch),
    )
}


def check_delivered(admin_port: int) -> None:
    """Raises BenchmarkError unless spans, metrics and lines have been delivered and none was dropped."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics", timeout=5) as answer:
            page = answer.read().decode()
    except OSError as error:
        raise BenchmarkError(f"nobody can tell what was delivered: {error}") from error
    check_page(page)


def check_page(page: str) -> None:
    """As `check_delivered`, of what the admin port shows."""
    delivered = {signal for signal, count in _EXPORTED.findall(page) if float(count)}
    if missing := {"traces", "metrics", "logs"} - delivered:
        raise BenchmarkError(f"not delivered: {', '.join(sorted(missing))}")
    if lost := sum(map(float, _DROPPED.findall(page))):
        raise BenchmarkError(f"{lost:.0f} spans, points or lines were dropped")
