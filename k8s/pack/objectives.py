"""The objective "95 % of streams have their first token within X": its ratios, its budget, and how fast that burns.

Owns the thresholds, the windows and the pairs of them that alert. A quantile cannot be summed nor averaged; the share
of streams that were too slow can, and p95 <= X is the same statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

Rule = dict[str, Any]
Group = dict[str, Any]

BUDGET: Final = 0.05
"""The share of streams that may be too slow: 95 % within the threshold."""
PAGING: Final = "ttft_700ms"
"""The objective that wakes people. It is a label of one recorded series, so that an overlay may move it."""
MIN_STREAMS: Final = 100
"""Fewer streams in the long window than this, and nobody is alerted: one slow stream of three is no trend."""
BY: Final = "namespace, job, gen_ai_request_model"
"""What an objective holds for. ``job`` is there both for what is scraped and for what came by OTLP."""

TTFT: Final = "llm_sidecar_time_to_first_token_seconds"


@dataclass(frozen=True)
class Objective:
    """One threshold. ``edge`` matches its bucket: scraping writes 1.0 and the OTLP receiver 1 for the same edge."""

    name: str
    edge: str


OBJECTIVES: Final = (
    Objective("ttft_300ms", 'le="0.3"'),
    Objective("ttft_700ms", 'le="0.7"'),
    Objective("ttft_1000ms", 'le=~"1|1\\\\.0"'),
)


@dataclass(frozen=True)
class Burn:
    """One pair of windows: the long one says that it matters, the short one that it still goes on."""

    factor: float
    long: str
    short: str
    severity: str


BURNS: Final = (
    Burn(14.4, "1h", "5m", "page"),
    Burn(6, "6h", "30m", "page"),
    Burn(3, "1d", "2h", "ticket"),
    Burn(1, "3d", "6h", "ticket"),
)
WINDOWS: Final = {"30s": ("5m", "30m", "1h"), "2m": ("2h", "6h", "1d", "3d")}
"""Windows by how often they are evaluated: long ones move slowly and cost the most."""


def groups() -> list[Group]:
    """The budget first, where patches find it by its place; then the ratios, then the alerts."""
    return [
        {"name": "llm-sidecar-ttft-budget", "rules": [_budget(objective) for objective in OBJECTIVES]},
        *(
            {
                "name": f"llm-sidecar-ttft-ratios-every-{interval}",
                "interval": interval,
                "rules": [rule for window in windows for rule in _window(window)],
            }
            for interval, windows in WINDOWS.items()
        ),
        {"name": "llm-sidecar-ttft-alerts", "rules": [_alert(burn) for burn in BURNS]},
    ]


def _budget(objective: Objective) -> Rule:
    return {
        "record": "llm_sidecar:ttft_slo:budget",
        "expr": f"vector({BUDGET})",
        "labels": {"slo": objective.name, "pages": "true" if objective.name == PAGING else "false"},
    }


def _window(window: str) -> list[Rule]:
    streams = {
        "record": f"llm_sidecar:ttft_streams:increase{window}",
        "expr": f"sum by ({BY}) (increase({TTFT}_count[{window}]))",
    }
    return [streams, *(_ratio(objective, window) for objective in OBJECTIVES)]


def _ratio(objective: Objective, window: str) -> Rule:
    return {
        "record": f"llm_sidecar:ttft_slow:ratio_rate{window}",
        "expr": f"1 -\n"
        f"  sum by ({BY}) (rate({TTFT}_bucket{{{objective.edge}}}[{window}]))\n"
        f"/\n"
        f"  sum by ({BY}) (rate({TTFT}_count[{window}]))\n",
        "labels": {"slo": objective.name},
    }


def _alert(burn: Burn) -> Rule:
    def too_fast(window: str) -> str:
        return (
            f"llm_sidecar:ttft_slow:ratio_rate{window}\n"
            f"    > on (slo) group_left (pages) {burn.factor:g} * llm_sidecar:ttft_slo:budget"
        )

    return {
        "alert": "LlmSidecarTtftBudgetBurn",
        "expr": f"(\n  {too_fast(burn.long)}\n)\n"
        f"and on ({BY}, slo)\n(\n  {too_fast(burn.short)}\n)\n"
        f"and on ({BY})\n  llm_sidecar:ttft_streams:increase{burn.long} > {MIN_STREAMS}\n",
        "labels": {
            "severity": f'{{{{ if eq $labels.pages "true" }}}}{burn.severity}{{{{ else }}}}info{{{{ end }}}}',
            "long": burn.long,
            "short": burn.short,
        },
        "annotations": {
            "summary": f"{{{{ $labels.gen_ai_request_model }}}}: {{{{ $value | humanizePercentage }}}} of streams in "
            f"{burn.long} missed {{{{ $labels.slo }}}} (burn rate ≥ {burn.factor:g})",
            "runbook": "docs/alerts.md#llmsidecarttftbudgetburn",
        },
    }
