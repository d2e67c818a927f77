"""Which names an expression speaks of: metrics, labels, and attributes in TraceQL.

Owns as much of PromQL's grammar as that takes. Must not know which names exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

WORDS = {
    *(
        "and",
        "or",
        "unless",
        "bool",
        "offset",
        "sum",
        "max",
        "min",
        "avg",
        "count",
        "rate",
        "increase",
        "vector",
        "absent",
    ),
    *("histogram_quantile", "present_over_time", "label_values"),
}
"""What is neither metric nor label. A function that is missing here is told as an unknown metric."""

TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
SELECTOR = re.compile(r"(?P<metric>[a-zA-Z_:][\w:]*)\s*\{(?P<matchers>[^}]*)\}")
GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\((?P<labels>[^)]*)\)")
VARIABLE_OF = re.compile(r"label_values\((?P<of>.*),\s*(?P<label>\w+)\)")
IDENTIFIER = re.compile(r"(?<![\w$:.])[a-zA-Z_:][\w:]*")
RANGE = re.compile(r"\[[^\]]*\]")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
ATTRIBUTE = re.compile(r"\bspan\.([a-z_][\w.]*\w)")


@dataclass
class Spoken:
    """The names in one expression. ``matched`` are labels that a metric is selected by."""

    metrics: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    matched: set[tuple[str, str]] = field(default_factory=set)


def spoken(expression: str) -> Spoken:
    """What a PromQL expression or a Grafana variable's query names."""
    found = Spoken()
    if variable := VARIABLE_OF.fullmatch(expression):
        found.labels.add(variable["label"])
        expression = variable["of"]
        found.matched.update((metric, variable["label"]) for metric in spoken(expression).metrics)
    expression = RANGE.sub("", TEXT.sub("", expression))
    for selector in SELECTOR.finditer(expression):
        found.matched.update((selector["metric"], label) for label in MATCHER.findall(selector["matchers"]))
    expression = SELECTOR.sub(lambda selector: selector["metric"], expression)
    for grouping in GROUPING.finditer(expression):
        found.labels.update(label.strip() for label in grouping["labels"].split(",") if label.strip())
    found.metrics.update(set(IDENTIFIER.findall(GROUPING.sub("", expression))) - WORDS)
    found.labels.update(label for _, label in found.matched)
    return found


def attributes_of(traceql: str) -> Iterator[str]:
    """The span attributes a TraceQL query names."""
    return (found.group(1) for found in ATTRIBUTE.finditer(traceql))
