"""The budget: what a token, a stream and a departure may cost, and whether they do.

Owns goals, floors and verdicts. Must not know how anything was measured beyond the rounds it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from benchmarks.cancel import slowest
from benchmarks.proxies import OURS
from benchmarks.rounds import Rounds
from benchmarks.telemetry import OFF, ON

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.burst import Bursts
    from benchmarks.cancel import Row

Verdict = Literal["goal", "floor", "missed", "not measured"]


@dataclass(slots=True)
class Results:
    """Everything one run of the program measured; what was not is empty."""

    loads: dict[str, Rounds] = field(default_factory=dict)
    """By the load's name."""

    flatness: dict[str, Rounds] = field(default_factory=dict)
    """Two loads, "long" and "parts", by the load's name."""

    departures: dict[str, Row] = field(default_factory=dict)
    """By subject: a proxy's name, perhaps with ", TLS"."""

    bursts: Bursts | None = None
    """Requests at once, against a limit."""

    missing: dict[str, str] = field(default_factory=dict)
    """Why a proxy was left out, by its name."""

    reasons: dict[str, str] = field(default_factory=dict)
    """Why there is nothing about a subject of departures."""

    def load(self, name: str) -> Rounds:
        """The rounds of a load, empty if it was not run."""
        return self.loads.get(name, Rounds())


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the budget: a figure, its unit and its limits. ``measure`` takes results and one of our formats."""

    figure: str
    unit: str
    goal: float
    floor: float
    measure: Callable[[Results, str], float | None]
    more_is_better: bool = False

    def verdict(self, value: float | None) -> Verdict:
        """How a measured value stands to the limits; on a limit is within it."""
        if value is None:
            return "not measured"
        sign = -1 if self.more_is_better else 1
        if sign * value <= sign * self.goal:
            return "goal"
        return "floor" if sign * value <= sign * self.floor else "missed"


def _cpu_against(load: str, theirs: str) -> Callable[[Results, str], float | None]:
    return lambda results, ours: results.load(load).median_ratio(ours, theirs, "cpu_us_per_token")


def _p99_against_envoy(results: Results, ours: str) -> float | None:
    return results.load("paced").ratio_of_medians(ours, "envoy", "token_p99_us")


def _first_token_added_ms(results: Results, ours: str) -> float | None:
    added_us = results.load("paced").median(ours, "added_p50_us")
    return None if added_us is None else added_us / 1e3


def _memory_kb(results: Results, ours: str) -> float | None:
    return results.load("idle").median(ours, "rss_kb_per_stream")


def _short_streams_against_envoy(results: Results, ours: str) -> float | None:
    return results.load("short").median_ratio(ours, "envoy", "streams_per_s")


def _slowest_median_ms(results: Results, ours: str) -> float | None:
    found = slowest(_departures_of(results, ours))
    return found[0] if found else None


def _slowest_worst_ms(results: Results, ours: str) -> float | None:
    found = slowest(_departures_of(results, ours))
    return found[1] if found else None


def _departures_of(results: Results, ours: str) -> list[Row]:
    return [row for subject, row in results.departures.items() if row and subject.split(",")[0] == ours]


def _growth(results: Results, ours: str) -> float | None:
    """A token's cost in one long stream over its cost in short ones: pairs within a round, then their median."""
    long, parts = results.flatness.get("long", Rounds()), results.flatness.get("parts", Rounds())
    both = Rounds({"long": long.samples.get(ours, []), "parts": parts.samples.get(ours, [])})
    return both.median_ratio("long", "parts", "cpu_us_per_token")


def _telemetry_cost(results: Results, ours: str) -> float | None:
    """Measured with the native format alone: telemetry does the same for both, once a stream."""
    is_measured = ours == OURS[0]
    return results.load("telemetry").median_ratio(ON, OFF, "cpu_us_per_token") if is_measured else None


BUDGET: Final = (
    Line("CPU per token against Envoy, paced", "×", 1.0, 1.2, _cpu_against("paced", "envoy")),
    Line("CPU per token against nginx, paced", "×", 1.5, 1.8, _cpu_against("paced", "nginx")),
    Line("CPU per token against LiteLLM, paced", "×", 1 / 25, 1 / 18, _cpu_against("paced", "litellm")),
    Line("token latency, median of p99s, against Envoy, paced", "×", 1.0, 2.0, _p99_against_envoy),
    Line("time to first token added, p50, paced", "ms", 0.5, 1.5, _first_token_added_ms),
    Line("CPU per token against Envoy, 3,000 idle-ish streams", "×", 0.8, 1.0, _cpu_against("idle", "envoy")),
    Line("memory per stream, 3,000 idle-ish streams", "kB", 10.0, 18.0, _memory_kb),
    Line("short streams per second against Envoy", "×", 0.6, 0.4, _short_streams_against_envoy, more_is_better=True),
    Line("close to cancel, median of the slowest phase", "ms", 1.0, 5.0, _slowest_median_ms),
    Line("close to cancel, worst of all", "ms", 5.0, 20.0, _slowest_worst_ms),
    Line("CPU per token, 100,000-token stream against 1,000-token ones", "×", 1.05, 1.1, _growth),
    Line("telemetry on against off, CPU per token, paced", "×", 1.05, 1.1, _telemetry_cost),
)
