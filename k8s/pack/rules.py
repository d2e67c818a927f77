"""The rules as files: plain for Prometheus itself, and wrapped as a PrometheusRule for its operator.

Owns how they are written. Must not know what they say.
"""

from __future__ import annotations

from typing import Any

import yaml

from k8s.pack import alerts, objectives
from k8s.pack.objectives import Group

HEAD = "# Written by `make pack`; the table it comes from is in k8s/pack. What an alert means: docs/alerts.md.\n"


class _Dumper(yaml.SafeDumper):
    """Expressions stay readable: text of several lines is written as a block."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def all_groups() -> list[Group]:
    """Every group of the pack, the budget's first."""
    return [*objectives.groups(), *alerts.groups()]


def plain() -> str:
    """A file for ``rule_files`` of prometheus.yml."""
    return _written({"groups": all_groups()})


def manifest() -> str:
    """The same groups for the Prometheus operator."""
    return _written(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "llm-sidecar", "labels": {"app.kubernetes.io/name": "llm-sidecar"}},
            "spec": {"groups": all_groups()},
        }
    )


def _written(content: Any) -> str:
    return HEAD + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
