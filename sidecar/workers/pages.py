"""One page of metrics out of many: every worker's, family by family, each sample with its worker's number.

Owns the text of exposition as far as merging needs it. Must not know what any metric means. What it merges comes from
one and the same code, so a family is described alike wherever it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_TARGETS: Final = frozenset({"target", "target_info"})
_END: Final = "# EOF"


def merged(own: str, pages: Mapping[int, str], label: str) -> str:
    """``own`` is the parent's page and stays as it is; it alone describes the target. ``pages`` are the workers', by
    number, which ``label`` tells their samples apart by."""
    described: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for family, is_sample, line in _lines(own):
        (samples if is_sample else described).setdefault(family, []).append(line)
    for number, page in pages.items():
        known = set(described)
        for family, is_sample, line in _lines(page):
            if family in _TARGETS:
                continue
            if is_sample:
                samples.setdefault(family, []).append(_labelled(line, label, number))
            elif family not in known:
                described.setdefault(family, []).append(line)
    lines = [line for family, head in described.items() for line in (*head, *samples.get(family, ()))]
    return "\n".join([*lines, *([_END] if own.rstrip().endswith(_END) else []), ""])


def _lines(page: str) -> Iterator[tuple[str, bool, str]]:
    """Each line with the family it belongs to, and whether it is a sample."""
    family = ""
    for line in page.split("\n"):
        if line.startswith("# ") and line != _END:
            family = line.split(" ", 3)[2]
            yield family, False, line
        elif line and line != _END:
            yield family, True, line


def _labelled(sample: str, label: str, number: int) -> str:
    name, brace, rest = sample.partition("{")
    if not brace or " " in name:  # what follows a blank is the value, or an exemplar's labels
        name, _, value = sample.partition(" ")
        return f'{name}{{{label}="{number}"}} {value}'
    return f'{name}{{{label}="{number}"{"" if rest.startswith("}") else ","}{rest}'


def merged_streams(found: Mapping[int, Iterable[dict[str, object]]]) -> list[dict[str, object]]:
    """Every worker's streams with its number, oldest first."""
    streams = [{"worker": number, **stream} for number, of_worker in found.items() for stream in of_worker]
    return sorted(streams, key=_age_s, reverse=True)


def _age_s(stream: Mapping[str, object]) -> float:
    age_s = stream.get("age_s")
    return float(age_s) if isinstance(age_s, int | float) else 0.0
