"""The ``health`` and ``circuit`` sections of an upstream.

Owns their meaning. Must not know what is done with them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sidecar.configuration.yaml_tree import Scalar
from sidecar.settings import Circuit, HealthCheck

if TYPE_CHECKING:
    from sidecar.configuration.fields import Section

_PATH: Final = re.compile(r"/[\x21-\x22\x24-\x7e]*")
_MOST: Final = 9999


def read_health(upstream: Section) -> HealthCheck | None:
    """How it is checked; None where nothing is said of that, and no path for the word none."""
    if "health" not in upstream:
        return None
    node = upstream.node("health")
    if isinstance(node, Scalar) and node.text == "none":
        return HealthCheck(path="")
    section, default = upstream.section("health"), HealthCheck()
    return HealthCheck(
        path=section.checked("path", _path, default.path),
        interval_s=section.duration("interval", default.interval_s),
        timeout_s=section.duration("timeout", default.timeout_s),
        healthy_after=section.count("healthy_after", default.healthy_after, 1, _MOST),
        unhealthy_after=section.count("unhealthy_after", default.unhealthy_after, 1, _MOST),
    )


def read_circuit(upstream: Section) -> Circuit:
    """When it is left alone."""
    section, default = upstream.section("circuit"), Circuit()
    circuit = Circuit(
        failures=section.count("failures", default.failures, 0, _MOST),
        backoff_s=section.duration("backoff", default.backoff_s),
        max_backoff_s=section.duration("max_backoff", default.max_backoff_s),
    )
    if circuit.max_backoff_s < circuit.backoff_s:
        section.complain("max_backoff", "is shorter than backoff")
    return circuit


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError("must begin with / and hold no white space and no #")
    return text
