"""The page of telemetry's names, made of the tables that the code itself uses.

Owns how the names are published. Must not know more of a name than its row says.
``python -m sidecar.telemetry.document > docs/telemetry.md`` publishes it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from sidecar.telemetry import calls, names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_INTRODUCTION: Final = f"""\
# Telemetry

Every name that the sidecar tells of requests: metrics, attributes of spans and metrics, events and fields of log lines.
This page is made by the code (`python -m sidecar.telemetry.document > docs/telemetry.md`); a test compares. `gen_ai.*`
and `http.*` are names of OpenTelemetry's semantic conventions {names.SEMCONV}, those marked newer of what follows them;
`{names.SCOPE}.*` are the sidecar's own.

No metric holds a user, a key, a request's id or a conversation. Model names are bounded: those of the configuration,
and the first that upstreams answered to; the others are `{names.OTHER}`. So are series: what is beyond the bound of a
metric is one series with `{names.OVERFLOW}`.
"""
_METRICS: Final = """
## Metrics

Each is recorded once per request, when it is over. The Prometheus name is that of the admin port's `/metrics`, and of
what a collector makes of OTLP by default. Exemplars (OTLP and OpenMetrics) point at the span named last.

"""
_POINTS: Final = """
## What tells series apart

"""
_EDGES: Final = """
## Bucket edges

In the metric's unit. A value on an edge is counted within it, so what `le="0.3"` counts took 300 ms at most.

"""
_ATTRIBUTES: Final = """
## Attributes

Absent where nothing is known. Those of a switch are added for readers that look for their own names
(`telemetry.compat`).

"""
_EVENTS: Final = """
## Events

"""
_ERRORS: Final = f"""
## Closed lists

`{names.OPERATION}` by the dialect, `{names.PROVIDER}` by the upstream's host, and where that is nobody's that is known,
by the dialect, else the upstream's name. Any other stream's operation is `{calls.GENERATION}`; plain traffic that asks
no model is counted with requests alone.

"""
_HOSTS: Final = """
Hosts are told by their ends:

"""
_CODES: Final = f"""
What providers say went wrong inside a stream is an `{names.ERROR_TYPE}` if it is an HTTP status or one of these, else
`{names.OTHER}`:

"""
_LOG: Final = """
## Log lines

One line per request that is over. What is not known is left out.

"""
_WIDTH: Final = 118


def render() -> str:
    """The page as it is published."""
    rows_of_codes = _wrapped(f"`{code}`" for code in sorted(calls.PROVIDER_CODES))
    parts = (_INTRODUCTION, _METRICS, _metrics(), _POINTS, _points(), _EDGES, _edges(), _ATTRIBUTES, _attributes())
    closed = (_ERRORS, _dialects(), _HOSTS, _hosts(), _CODES, rows_of_codes)
    return "".join((*parts, _EVENTS, _described("event", names.EVENTS), *closed, _LOG, _log()))


def _metrics() -> str:
    rows = [
        [f"`{each.name}`", each.kind, f"`{each.unit}`", each.description, f"`{each.prometheus_name}`", each.span]
        for each in names.METRICS.values()
    ]
    return _table(["metric", "kind", "unit", "what it is", "Prometheus name", "exemplars"], rows)


def _points() -> str:
    alike: dict[tuple[str, ...], list[str]] = {}
    for metric in names.METRICS.values():
        alike.setdefault(metric.attributes, []).append(metric.name)
    return _table(["series of", "attributes"], [[_ticked(of), _ticked(by)] for by, of in alike.items()])


def _edges() -> str:
    rows = [
        [f"`{metric.name}`", ", ".join(f"{bound:.10g}" for bound in metric.bounds)]
        for metric in names.METRICS.values()
        if metric.bounds
    ]
    return _table(["edges of", "at"], rows)


def _attributes() -> str:
    rows = [
        [f"`{each.name}`", each.type, ", ".join(each.places), each.description, each.compat and f"`{each.compat}`"]
        for each in names.ATTRIBUTES.values()
    ]
    return _table(["attribute", "type", "on", "what it says", "switch"], rows)


def _dialects() -> str:
    rows = [
        [f"`{dialect}`", f"`{operation}`", f"`{calls.PROVIDERS[dialect]}`"]
        for dialect, operation in calls.OPERATIONS.items()
    ]
    return _table(["spoken", "operation", "provider"], rows)


def _hosts() -> str:
    return _table(["host", "provider"], [[f"`{end}`", f"`{provider}`"] for end, provider in calls.HOSTS])


def _log() -> str:
    return _described("field", names.LOG_FIELDS)


def _described(what: str, descriptions: dict[str, str]) -> str:
    return _table([what, "what it says"], [[f"`{name}`", text] for name, text in descriptions.items()])


def _ticked(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell or "–" for cell in row] for row in rows)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _wrapped(words: Iterable[str]) -> str:
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) + 2 > _WIDTH:
            lines.append("")
        lines[-1] += f"{word}, "
    return "\n".join(line.rstrip() for line in lines).rstrip(",") + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
