"""The expressions of the dashboard: each sums over processes, and keeps to what the variables at its top choose.

Owns PromQL. Must not know panels.
"""

from __future__ import annotations

from typing import Final

CALLS: Final = ", ".join(
    f'{label}=~"${variable}"'
    for label, variable in {
        "job": "job",
        "instance": "instance",
        "gen_ai_request_model": "model",
        "llm_sidecar_route": "route",
        "llm_sidecar_upstream": "upstream",
    }.items()
)
"""What is measured of calls."""
ENDINGS: Final = 'job=~"$job", instance=~"$instance", llm_sidecar_route=~"$route", llm_sidecar_upstream=~"$upstream"'
"""What is counted of requests; it knows no model."""
PROCESSES: Final = 'job=~"$job", instance=~"$instance"'
"""What is measured of processes."""

ENDED: Final = "llm_sidecar_streams_ended_total"
TTFT: Final = "llm_sidecar_time_to_first_token_seconds"
RANGE: Final = "[$__rate_interval]"


def quantile(q: float, histogram: str, by: str = "", selector: str = CALLS) -> str:
    """A quantile over all processes, of each group of ``by``."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, sum by ({groups}) (rate({histogram}_bucket{{{selector}}}{RANGE})))"


def per_second(counter: str, by: str = "", selector: str = CALLS) -> str:
    """How often, over all processes."""
    return f"{_sum(by)} (rate({counter}{{{selector}}}{RANGE}))"


def total(gauge: str, by: str = "", selector: str = PROCESSES) -> str:
    """A gauge's sum over all processes."""
    return f"{_sum(by)} ({gauge}{{{selector}}})"


def within(edge: str) -> str:
    """The share of streams whose first token came by a bucket's edge, over the dashboard's time range."""
    in_time = f"increase({TTFT}_bucket{{{edge}, {CALLS}}}[$__range])"
    return f"sum ({in_time}) / sum (increase({TTFT}_count{{{CALLS}}}[$__range]))"


def mean(histogram: str, by: str = "", selector: str = CALLS) -> str:
    """The mean over all processes."""
    return f"{per_second(f'{histogram}_sum', by, selector)} / {per_second(f'{histogram}_count', by, selector)}"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"
