"""Debian's Prometheus as the tests run it: it scrapes every second, and answers at once or is asked again.

Owns its configuration, its start and its query API. Must not know what is scraped.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.processes import free_port, get_json, server, until

JOB = "llm-sidecar"


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression is now: labels and value of every series."""
        query = urllib.parse.urlencode({"query": expression})
        result = get_json(f"{self.url}/api/v1/query?{query}")["data"]["result"]
        return [(each["metric"], float(each["value"][1])) for each in result]

    def value(self, expression: str) -> float | None:
        """The one value of an expression that has no more than one."""
        found = self.ask(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def wait(self, condition: str) -> None:
        """Return when a condition, such as ``x > 3``, has an answer."""
        until(lambda: self.ask(condition), condition)

    def rules(self) -> list[dict[str, Any]]:
        """Every loaded rule with its ``health``, ``unknown`` before its first evaluation."""
        groups = get_json(f"{self.url}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def exemplars(self, series: str) -> list[dict[str, str]]:
        """The labels of the exemplars of the last hour."""
        query = urllib.parse.urlencode({"query": series, "start": "0", "end": "99999999999"})
        found = get_json(f"{self.url}/api/v1/query_exemplars?{query}")["data"]
        return [exemplar["labels"] for each in found for exemplar in each["exemplars"]]


@contextmanager
def running_prometheus(
    program: str, folder: Path, targets: Sequence[str], rules: Path | None = None
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes ``/metrics`` of each ``HOST:PORT`` and evaluates ``rules``, until the block ends."""
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(targets)}]}],
    }
    if rules is not None:
        often = yaml.safe_load(rules.read_text())
        for group in often["groups"]:
            group["interval"] = "1s"
        (folder / "rules.yaml").write_text(yaml.safe_dump(often))
        config["rule_files"] = [str(folder / "rules.yaml")]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
    ]
    with server(command, f"http://{address}/-/ready", folder / "prometheus.log", os.environ):
        yield Prometheus(f"http://{address}")
