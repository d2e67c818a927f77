"""The alerts beside the objective: streams that fail, clients that are let go of, and a sidecar that is full or gone.

Owns their thresholds. Every one is explained in docs/alerts.md, under its own name.
"""

from __future__ import annotations

from typing import Final

from k8s.pack.objectives import Group, Rule

ENDED: Final = "llm_sidecar_streams_ended_total"
WHERE: Final = "namespace, job, llm_sidecar_upstream"
PROCESS: Final = "namespace, job, instance"
WORKER: Final = f"{PROCESS}, llm_sidecar_worker"
"""One process where an instance has several; where it has one, no series has the last label."""
SIDECAR: Final = "llm_sidecar_streams_active"
"""Every sidecar has it from its first breath, and nobody else: what joins use to leave other programs out."""

FAILURES: Final = 'llm_sidecar_outcome=~"upstream_.+|timed_out|internal"'
NOT_THE_CALLERS: Final = 'error_type!~"400|404|413|422"'
"""Requests that the upstream found wrong are the caller's; everything else, 401 and 429 too, is for who runs this."""


def groups() -> list[Group]:
    """One group of recorded shares, one of alerts."""
    return [
        {"name": "llm-sidecar-endings", "interval": "30s", "rules": _shares()},
        {
            "name": "llm-sidecar-alerts",
            "rules": [*_endings(), *_upstreams(), *_saturation(), *_telemetry(), *_absence()],
        },
    ]


def _shares() -> list[Rule]:
    """The share of all requests that ended so, by upstream; refused ones are not among those of an upstream."""
    endings = {
        "failed_early": f'llm_sidecar_stage="before_first_token", {FAILURES}, {NOT_THE_CALLERS}',
        "truncated": 'llm_sidecar_stage="after_first_token", llm_sidecar_outcome="upstream_broken"',
        "evicted": 'llm_sidecar_outcome="client_too_slow"',
    }
    return [
        {
            "record": f"llm_sidecar:{name}:ratio_rate5m",
            "expr": f"sum by ({WHERE}) (rate({ENDED}{{{selector}}}[5m]))\n/\nsum by ({WHERE}) (rate({ENDED}[5m]))\n",
        }
        for name, selector in endings.items()
    ]


def _alert(name: str, wait: str, severity: str, expression: str, summary: str) -> Rule:
    rule = {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "runbook": f"docs/alerts.md#{name.lower()}"},
    }
    return {key: value for key, value in rule.items() if value}


def _endings() -> list[Rule]:
    enough = f"and on ({WHERE})\n  sum by ({WHERE}) (increase({ENDED}[5m])) > 20\n"
    share = "{{ $value | humanizePercentage }} of requests to {{ $labels.llm_sidecar_upstream }}"
    return [
        _alert(
            "LlmSidecarFailsBeforeFirstToken",
            "5m",
            "page",
            f"llm_sidecar:failed_early:ratio_rate5m > 0.05\n{enough}",
            f"{share} fail before their first token",
        ),
        _alert(
            "LlmSidecarTruncations",
            "10m",
            "ticket",
            f"llm_sidecar:truncated:ratio_rate5m > 0.01\n{enough}",
            f"{share} break off after their first token",
        ),
        _alert(
            "LlmSidecarEvictions",
            "10m",
            "ticket",
            f"llm_sidecar:evicted:ratio_rate5m > 0.01\n{enough}",
            f"{share} end because their client reads too slowly",
        ),
        _alert(
            "LlmSidecarOverloaded",
            "2m",
            "page",
            f"sum by (namespace, job) (\n"
            f'  rate({ENDED}{{llm_sidecar_outcome="refused", error_type="503"}}[5m])\n'
            f") > 0.1\n",
            '{{ $labels.job }} refuses {{ $value | printf "%.1f" }} requests a second, being full',
        ),
    ]


def _upstreams() -> list[Rule]:
    return [
        _alert(
            "LlmSidecarUpstreamDown",
            "10m",
            "page",
            f"avg by ({WHERE}) (llm_sidecar_upstream_up) < 0.5\n",
            "{{ $labels.llm_sidecar_upstream }} is left alone by most sidecars of {{ $labels.job }}",
        )
    ]


def _saturation() -> list[Rule]:
    where = "{{ $labels.job }} at {{ $labels.instance }}"
    return [
        _alert(
            "LlmSidecarBuffersFull",
            "5m",
            "ticket",
            "llm_sidecar_buffered_bytes / (llm_sidecar_buffered_limit_bytes > 0) > 0.8\n",
            f"{where} holds {{{{ $value | humanizePercentage }}}} of the bytes it may hold for slow clients",
        ),
        _alert(
            "LlmSidecarConnectionsFull",
            "5m",
            "ticket",
            "llm_sidecar_connections / (llm_sidecar_connections_limit > 0) > 0.9\n",
            f"{where} has {{{{ $value | humanizePercentage }}}} of the client connections open that it may have",
        ),
        _alert(
            "LlmSidecarEventLoopLag",
            "10m",
            "ticket",
            f"histogram_quantile(0.99,\n"
            f"  sum by ({WORKER}, le) (rate(llm_sidecar_event_loop_lag_seconds_bucket[5m]))\n"
            f") > 0.05\n",
            f"{where}: one turn of the data loop in a hundred is {{{{ $value | humanizeDuration }}}} late",
        ),
        _alert(
            "LlmSidecarCpuSaturated",
            "10m",
            "ticket",
            f"sum by ({WORKER}) (rate(process_cpu_time_seconds_total[5m])) > 0.9\nand on ({PROCESS})\n  {SIDECAR}\n",
            f"{where} uses {{{{ $value | humanizePercentage }}}} of the one core that it can use",
        ),
    ]


def _telemetry() -> list[Rule]:
    return [
        _alert(
            "LlmSidecarTelemetryDropped",
            "5m",
            "ticket",
            "sum by (namespace, job, llm_sidecar_signal, llm_sidecar_reason) (\n"
            "  increase(llm_sidecar_telemetry_dropped_total[5m])\n"
            ") > 0\n",
            "{{ $labels.job }} gives up {{ $labels.llm_sidecar_signal }}: {{ $labels.llm_sidecar_reason }}",
        )
    ]


def _absence() -> list[Rule]:
    known = f"count by (namespace, job) (present_over_time({SIDECAR}[1d]))"
    return [
        _alert(
            "LlmSidecarDown",
            "5m",
            "page",
            f"up == 0\nand on (namespace, job)\n  {known}\n",
            "{{ $labels.job }} at {{ $labels.instance }} has not answered on its admin port for five minutes",
        ),
        _alert(
            "LlmSidecarGone",
            "10m",
            "ticket",
            f"{known}\nunless on (namespace, job)\n  count by (namespace, job) ({SIDECAR})\n",
            "{{ $labels.job }} had sidecars within a day and has none now",
        ),
        _alert(
            "LlmSidecarAbsent",
            "10m",
            "page",
            f"absent({SIDECAR})\n",
            "Prometheus knows of no sidecar at all: none runs, or none is scraped",
        ),
    ]
