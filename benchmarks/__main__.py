"""``python -m benchmarks``: what is measured, in which order, and where the tables go.

Owns arguments, progress and exit codes. Must not know how anything is measured.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import burst
from benchmarks.budget import Results
from benchmarks.cancel import STREAMS, measure_or_reason, subjects
from benchmarks.certificates import make_certificate
from benchmarks.line import measure_line
from benchmarks.loads import CONNECTIONS, LOADS, LONG, LONG_PARTS, TELEMETRY_LOADS, Load, measure, quick
from benchmarks.machine import ROOT, BenchmarkError, build_native, raise_open_files
from benchmarks.proxies import OURS, PROXIES, Certificate
from benchmarks.report import line_table, report
from benchmarks.rounds import Rounds, take_turns
from benchmarks.telemetry import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.loads import Sample

RESULTS: Final = ROOT / "benchmarks" / "RESULTS.md"
PARTS: Final = (*(load.name for load in LOADS), "flat", "telemetry", "connections", "burst", "cancel")
_ROUNDS: Final = 5
_QUICK_CANCEL_STREAMS: Final = 20
_EXIT_CANNOT_RUN: Final = 2


class Bench:
    """One run of the program: which parts, which proxies, how often, and the results as they come."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._folder = folder
        self._is_quick: bool = args.quick
        self.rounds: int = args.rounds or (1 if args.quick else _ROUNDS)
        self.results = Results()
        self.proxies: list[str] = []
        for name in args.proxies:
            missing = PROXIES[name].missing()
            if missing:
                self.results.missing[name] = missing
            else:
                self.proxies.append(name)

    def run(self, parts: Sequence[str]) -> None:
        """Measure ``parts`` in their order."""
        loads = {load.name: load for load in LOADS}
        for part in (part for part in PARTS if part in parts):
            if part == "cancel":
                self._departures()
            elif part == "flat":
                self._flatness()
            elif part == "telemetry":
                self._telemetry()
            elif part == "connections":
                self._connections()
            elif part == "burst":
                self._bursts()
            else:
                self.results.loads[part] = self._rounds(loads[part], self.proxies)

    def _rounds(self, load: Load, names: Sequence[str]) -> Rounds:
        chosen = quick(load) if self._is_quick else load
        _tell(f"{load.title}: {self.rounds} rounds of {', '.join(names)}")
        return take_turns(names, self.rounds, lambda name: self._sample(name, chosen), _tell)

    def _sample(self, name: str, load: Load) -> Sample:
        with tempfile.TemporaryDirectory(dir=self._folder) as own:
            return measure({**PROXIES, **VARIANTS}[name], load, self._folder, Path(own))

    def _flatness(self) -> None:
        """Long and short streams take turns too, or a drift of the machine would look like growth."""
        ours = [name for name in self.proxies if name in OURS]
        turns = {f"{load.name} {name}": (name, load) for name in ours for load in (LONG, LONG_PARTS)}
        _tell(f"{LONG.title} against {LONG_PARTS.title}: {self.rounds} rounds")

        def sample(turn: str) -> Sample:
            name, load = turns[turn]
            return self._sample(name, quick(load) if self._is_quick else load)

        taken = take_turns(list(turns), self.rounds, sample, _tell)
        for turn, (name, load) in turns.items():
            rounds = self.results.flatness.setdefault(load.name, Rounds())
            rounds.samples[name] = taken.samples[turn]
            if turn in taken.reasons:
                rounds.reasons[name] = taken.reasons[turn]

    def _telemetry(self) -> None:
        """On and off take turns, whatever proxies were asked for: they are ours both."""
        for load in TELEMETRY_LOADS:
            self.results.loads[load.name] = self._rounds(load, list(VARIANTS))

    def _connections(self) -> None:
        """Once for each of ours: it takes a minute, and is compared with nobody."""
        names = [name for name in self.proxies if name in OURS]
        load = quick(CONNECTIONS) if self._is_quick else CONNECTIONS
        _tell(f"{load.title}: {', '.join(names)}")
        self.results.loads[load.name] = take_turns(names, 1, lambda name: self._sample(name, load), _tell)

    def _bursts(self) -> None:
        size = burst.QUICK if self._is_quick else burst.FULL
        _tell(f"{size.requests} requests at once against a limit of {size.limit}: {self.rounds} rounds")
        with tempfile.TemporaryDirectory(dir=self._folder) as own:
            self.results.bursts = burst.measure_bursts(size, self.rounds, self._folder, Path(own), _tell)

    def _departures(self) -> None:
        streams = _QUICK_CANCEL_STREAMS if self._is_quick else STREAMS
        _tell(f"departures: {streams} streams at once in each phase")
        for subject in subjects([PROXIES[name] for name in self.proxies if name != "litellm"], self._certificate()):
            with tempfile.TemporaryDirectory(dir=self._folder) as own:
                row, reason = measure_or_reason(subject, streams, Path(own), _tell)
            self.results.departures[subject.name] = row
            if reason:
                self.results.reasons[f"departures from {subject.name}"] = reason

    def _certificate(self) -> Certificate | None:
        try:
            return make_certificate(self._folder)
        except BenchmarkError as error:
            self.results.reasons["departures over TLS"] = str(error)
            return None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 where nothing could be measured at all."""
    args = _arguments(argv)
    if args.what == "line":
        print(line_table(measure_line()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves every block, and so ends children
    raise_open_files()
    with tempfile.TemporaryDirectory(prefix="llm-sidecar-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx's workers give up root and still have to reach their files
        try:
            build_native(folder)
        except BenchmarkError as error:
            sys.stderr.write(f"benchmarks: {error}\n")
            return _EXIT_CANNOT_RUN
        bench = Bench(args, folder)
        bench.run(args.only)
    text = report(bench.results, bench.proxies, bench.rounds, is_quick=args.quick)
    print(text)
    target = args.results or (RESULTS if _is_whole(args) else None)
    if target is None:
        _tell("not the whole comparison: RESULTS.md is left as it is")
    else:
        target.write_text(text)
        _tell(f"written to {target}")
    return 0


def _is_whole(args: argparse.Namespace) -> bool:
    """Only a whole, full-size run may replace what RESULTS.md says."""
    is_small = args.quick or (args.rounds is not None and args.rounds < _ROUNDS)
    return not is_small and set(args.only) == set(PARTS) and set(args.proxies) == set(PROXIES)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The sidecar beside other proxies.")
    parser.add_argument(
        "what", nargs="?", choices=("all", "line"), default="all", help="line: our own Python alone, in one process"
    )
    parser.add_argument("--only", type=_list_of(PARTS), default=PARTS, metavar="PART,...", help=", ".join(PARTS))
    parser.add_argument(
        "--proxies", type=_list_of(tuple(PROXIES)), default=tuple(PROXIES), metavar="NAME,...", help=", ".join(PROXIES)
    )
    parser.add_argument("--rounds", type=_at_least_one, help=f"how often each takes its turn (default {_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="one small round: does everything work?")
    parser.add_argument("--results", type=Path, metavar="FILE", help="where to write; a whole run goes to RESULTS.md")
    return parser.parse_args(argv)


def _at_least_one(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


def _list_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        named = text.split(",")
        unknown = [name for name in named if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return tuple(name for name in known if name in named)

    return read


def _tell(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
