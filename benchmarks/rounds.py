"""Rounds: every proxy takes its turn under the same load, again and again, and what pairs of one round say.

Owns the order of turns, medians and ratios. Must not know how a sample is taken.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.machine import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.loads import Sample

Figure = str
"""The name of a field of `Sample`."""


@dataclass(slots=True)
class Rounds:
    """The samples of one load: by proxy, one place a round, None where a run failed. ``reasons`` says why."""

    samples: dict[str, list[Sample | None]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def values(self, proxy: str, figure: Figure) -> list[float]:
        """A figure in every round that gave one."""
        return [float(getattr(sample, figure)) for sample in self.samples.get(proxy, ()) if sample is not None]

    def median(self, proxy: str, figure: Figure) -> float | None:
        """The median over the rounds; None without one sample."""
        values = self.values(proxy, figure)
        return statistics.median(values) if values else None

    def ratios(self, ours: str, theirs: str, figure: Figure) -> list[float]:
        """Ours over theirs for each round in which both were measured."""
        pairs = zip(self.samples.get(ours, ()), self.samples.get(theirs, ()), strict=False)
        return [
            getattr(one, figure) / getattr(other, figure)
            for one, other in pairs
            if one is not None and other is not None and getattr(other, figure)
        ]

    def median_ratio(self, ours: str, theirs: str, figure: Figure) -> float | None:
        """The median of the pairs' ratios; None without one pair."""
        ratios = self.ratios(ours, theirs, figure)
        return statistics.median(ratios) if ratios else None

    def ratio_of_medians(self, ours: str, theirs: str, figure: Figure) -> float | None:
        """For figures that vary several-fold from run to run, a p99 say: medians first, then their ratio."""
        one, other = self.median(ours, figure), self.median(theirs, figure)
        return one / other if one is not None and other else None

    def failed(self, proxy: str) -> int:
        """Requests that failed, over all rounds."""
        return int(sum(self.values(proxy, "failed")))


def take_turns(
    names: Sequence[str], rounds: int, measure: Callable[[str], Sample], told: Callable[[str], None]
) -> Rounds:
    """``rounds`` rounds, in each of which every name is measured once; every second one backwards, so that nobody
    always comes first. A run that fails costs its own place and nothing else."""
    taken = Rounds({name: [] for name in names})
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            try:
                sample = measure(name)
            except (BenchmarkError, OSError) as error:
                taken.samples[name].append(None)
                taken.reasons[name] = str(error)
                told(f"round {number + 1}, {name}: {error}")
            else:
                taken.samples[name].append(sample)
                told(f"round {number + 1}, {name}: {sample.cpu_us_per_token:.1f} µs CPU/token")
    return taken
