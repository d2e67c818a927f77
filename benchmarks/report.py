"""Tables, in Markdown, for the terminal and for RESULTS.md alike.

Owns how results are written down. Must not know how they were measured.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from benchmarks.budget import BUDGET
from benchmarks.burst import MOST_MS_FROM_HEAD, MOST_TIMES_BARE
from benchmarks.burst import OURS as BURST_OURS
from benchmarks.cancel import PHASES, WAYS, render_cell
from benchmarks.loads import CONNECTIONS, LOADS, TELEMETRY_LOADS
from benchmarks.machine import describe
from benchmarks.proxies import OURS, PROXIES, version
from benchmarks.telemetry import BY_DEFAULT, OFF, ON, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.budget import Line, Results
    from benchmarks.burst import Bursts
    from benchmarks.loads import Load
    from benchmarks.rounds import Rounds

_ABSENT: Final = "–"
_KNOWN: Final = {**PROXIES, **VARIANTS}
_WAY_NAMES: Final = {"fin": "FIN", "rst": "RST", "half": "half-close"}

LOAD_COLUMNS: Final = (
    ("CPU µs/token", "cpu_us_per_token", 1.0),
    ("tokens/s", "tokens_per_s", 1.0),
    ("streams/s", "streams_per_s", 1.0),
    ("token p50 µs", "token_p50_us", 1.0),
    ("p99 µs", "token_p99_us", 1.0),
    ("p999 µs", "token_p999_us", 1.0),
    ("TTFT added p50 ms", "added_p50_us", 1e-3),
    ("p99 ms", "added_p99_us", 1e-3),
    ("RSS kB/stream", "rss_kb_per_stream", 1.0),
)
"""Heading, field of `Sample`, and what its unit is multiplied by."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column left, the others right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped, no exponent."""
    if value is None:
        return _ABSENT
    if value == float("inf"):
        return "never"
    size = abs(value)
    if size < 1e-9:
        return "0"
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}"


def load_table(rounds: Rounds, missing: Mapping[str, str]) -> str:
    """Medians over the rounds, a proxy a line; a failed run, and a proxy that is ``missing``, say why."""
    rows = []
    for name in rounds.samples:
        medians = [(rounds.median(name, field), scale) for _, field, scale in LOAD_COLUMNS]
        cells = [number(None if median is None else median * scale) for median, scale in medians]
        if _KNOWN[name].program is None:
            cells[0] = cells[-1] = _ABSENT
        rows.append([name, _KNOWN[name].does, *cells, _notes(rounds, name)])
    for name, why in missing.items():
        rows.append([name, PROXIES[name].does, *[_ABSENT] * len(LOAD_COLUMNS), _cell(why)])
    return table(["proxy", "does", *(heading for heading, _, _ in LOAD_COLUMNS), "notes"], rows)


def _notes(rounds: Rounds, name: str) -> str:
    notes = [f"{rounds.failed(name)} requests failed"] if rounds.failed(name) else []
    if lost := rounds.samples[name].count(None):
        notes.append(f"{lost} runs failed: {rounds.reasons.get(name, '')}")
    return _cell("; ".join(notes))


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def ratio_table(rounds: Rounds, figure: str) -> str:
    """Ours over theirs: the median of the pairs and their range."""
    theirs = [name for name in rounds.samples if name not in OURS and PROXIES[name].program is not None]
    rows = []
    for ours in (name for name in OURS if name in rounds.samples):
        cells = []
        for other in theirs:
            ratios = rounds.ratios(ours, other, figure)
            middle = number(rounds.median_ratio(ours, other, figure))
            cells.append(f"{middle} ({number(min(ratios))}–{number(max(ratios))})" if ratios else _ABSENT)
        rows.append([ours, *cells])
    return table(["", *(f"÷ {name}" for name in theirs)], rows)


def departure_table(results: Results) -> str:
    """Median / worst in milliseconds: a phase and way a line, a subject a column."""
    subjects = [name for name, row in results.departures.items() if row]
    rows = [
        [f"{phase}, {_WAY_NAMES[way]}", *(render_cell(results.departures[name][phase, way]) for name in subjects)]
        for phase in PHASES
        for way in WAYS
    ]
    return table(["phase, way of leaving", *subjects], rows)


def budget_table(results: Results) -> str:
    """The budget with what was measured for both formats."""
    rows = []
    for line in BUDGET:
        measured = [(line.measure(results, ours), line) for ours in OURS]
        cells = [part for value, each in measured for part in (_with_unit(value, each), each.verdict(value))]
        sign = "≥" if line.more_is_better else "≤"
        rows.append([line.figure, *(f"{sign} {_with_unit(limit, line)}" for limit in (line.goal, line.floor)), *cells])
    return table(["figure", "goal", "floor", *(part for ours in OURS for part in (ours, "verdict"))], rows)


def _with_unit(value: float | None, line: Line) -> str:
    return _ABSENT if value is None else f"{number(value)} {line.unit}"


def telemetry_part(title: str, rounds: Rounds) -> str:
    """Both rows, what one costs over the other, and what becomes of the latency."""
    ratios = [number(each) for each in sorted(rounds.ratios(ON, OFF, _CPU[0]))]
    middle = number(rounds.median_ratio(ON, OFF, _CPU[0]))
    said = f"CPU/token on ÷ off: median {middle} of {', '.join(ratios) or _ABSENT}. "
    p99s = " and ".join(number(rounds.median(name, "token_p99_us")) for name in (ON, OFF))
    return f"## {title}\n\n{load_table(rounds, {})}\n{said}Median of token latency's p99s on and off: {p99s} µs.\n"


def connections_part(rounds: Rounds) -> str:
    """The table, and how much of its core each took."""
    said = []
    for name in rounds.samples:
        cpu_us, rate = rounds.median(name, "cpu_us_per_token"), rounds.median(name, "tokens_per_s")
        if cpu_us is not None and rate is not None:
            said.append(f"{name} took {cpu_us * rate / 1e4:.0f} % of its core")
    return f"## {CONNECTIONS.title} for a minute\n\n{load_table(rounds, {})}\nOf the whole run: {', '.join(said)}.\n"


def burst_part(bursts: Bursts) -> str:
    """A burst a line, and what the last refusal took against a server that does nothing but refuse."""
    size = bursts.size
    rows = [
        [name, *map(number, (one.served, one.refused, one.lost, one.over_ms, one.from_head_ms))]
        for name, taken in bursts.taken.items()
        for one in taken
    ]
    ratios = bursts.ratios
    verdict = f"{number(statistics.median(ratios))} × of {_few(ratios)}" if ratios else _ABSENT
    slowest = max((one.from_head_ms or 0.0 for one in bursts.taken[BURST_OURS]), default=None)
    said = (
        f"Last refusal, ours ÷ bare aiohttp's: median {verdict}; at most {MOST_TIMES_BARE:g} × is wanted.\n"
        f"Slowest from a request's head to its refusal: {number(slowest)} ms of at most {MOST_MS_FROM_HEAD:g}.\n"
    )
    told = [
        f"## {size.requests:,} requests at once against `max_streams: {size.limit}`\n",
        table(["server", "served", "refused", "lost", "last refusal ms", "slowest from its head ms"], rows),
        said,
        *([f"Not all was measured: {_cell(bursts.reason)}\n"] if bursts.reason else []),
    ]
    return "\n".join(told)


def _few(ratios: Sequence[float]) -> str:
    return ", ".join(number(each) for each in sorted(ratios))


def _measured(results: Results) -> list[Load]:
    return [load for load in TELEMETRY_LOADS if load.name in results.loads]


def line_table(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The in-process line: microseconds per token by dialect and format."""
    formats = list(next(iter(measured.values())))
    rows = [[dialect, *(f"{by_format[name]:.2f}" for name in formats)] for dialect, by_format in measured.items()]
    return table(["dialect, µs per token", *formats], rows)


def report(results: Results, proxies: Sequence[str], rounds: int, *, is_quick: bool) -> str:
    """All of RESULTS.md."""
    parts = ["# Results\n\nWritten by `make bench`; docs/benchmarks.md says how to read it.\n"]
    if is_quick:
        parts.append("**A quick run: it shows that everything works, and its figures mean nothing.**\n")
    facts = [
        *describe(),
        ("rounds", str(rounds)),
        ("telemetry", BY_DEFAULT),
        *((name, version(PROXIES[name])) for name in proxies if _runs(name)),
    ]
    parts.append(table(["what", "value"], [[what, _cell(value)] for what, value in facts]))
    if reasons := {**results.missing, **results.reasons}:
        parts.append("Not measured:\n\n" + "".join(f"* {name}: {_cell(why)}\n" for name, why in reasons.items()))
    parts.append("## Budget\n\n" + budget_table(results))
    for load in LOADS:
        if load.name in results.loads:
            taken = results.loads[load.name]
            figure, words = ("streams_per_s", "streams/s") if load.name == "short" else _CPU
            parts.append(f"## {load.title}\n\n{load_table(taken, results.missing)}")
            parts.append(f"Pairs of one round, {words}, median (range):\n\n{ratio_table(taken, figure)}")
    parts += [telemetry_part(load.title, results.loads[load.name]) for load in _measured(results)]
    for name, title in (("long", "One stream of 100,000 tokens"), ("parts", "100 streams of 1,000 tokens")):
        if name in results.flatness:
            parts.append(f"## {title}\n\n" + load_table(results.flatness[name], {}))
    if CONNECTIONS.name in results.loads:
        parts.append(connections_part(results.loads[CONNECTIONS.name]))
    if results.bursts is not None:
        parts.append(burst_part(results.bursts))
    if any(results.departures.values()):
        parts.append("## From the client's close to the upstream's closing, median / worst, ms\n\n" + _DEPARTURES)
        parts.append(departure_table(results))
    return "\n".join(parts)


_CPU: Final = ("cpu_us_per_token", "CPU/token")
_DEPARTURES: Final = 'All streams of a phase are open at once. "direct" has no proxy: it is what the measuring adds.\n'


def _runs(name: str) -> bool:
    return PROXIES[name].program is not None
