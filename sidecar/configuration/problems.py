"""What is wrong with a configuration, gathered so that all of it is said at once.

Owns the problem list and how it is printed. Must not know YAML. No problem ever repeats a value from the file: a value
in the wrong place may be a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.settings import Settings


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing to put right. ``line`` counts from 1; 0 where there is no line (a command line option)."""

    line: int
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What reading gave: ``settings``, or None and at least one problem, sorted by line."""

    source: str
    settings: Settings | None
    problems: tuple[Problem, ...] = ()

    def render_problems(self) -> str:
        """One line for each problem: "config.yaml:12: upstreams.vllm.timeouts.idle: needs a unit ..."."""
        return "\n".join(self._render(problem) for problem in self.problems)

    def _render(self, problem: Problem) -> str:
        where = f"{self.source}:{problem.line}" if problem.line else self.source
        return ": ".join(part for part in (where, problem.path, problem.message) if part)


@dataclass(slots=True)
class Problems:
    """The list being gathered."""

    found: list[Problem] = field(default_factory=list)

    def add(self, line: int, path: str, message: str) -> None:
        """Notes one problem and goes on."""
        self.found.append(Problem(line, path, message))

    def loaded(self, source: str, settings: Settings | None) -> Loaded:
        """The end of reading: ``settings`` only if nothing was wrong."""
        if self.found:
            return Loaded(source, None, tuple(sorted(set(self.found))))
        return Loaded(source, settings)
