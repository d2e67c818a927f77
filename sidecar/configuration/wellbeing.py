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
_COUNT: Final = re.compile(r"[0-9]{1,4}")


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
        healthy_after=section.checked("healthy_after", _above_zero, default.healthy_after),
        unhealthy_after=section.checked("unhealthy_after", _above_zero, default.unhealthy_after),
    )


def read_circuit(upstream: Section) -> Circuit:
    """When it is left alone."""
    section, default = upstream.section("circuit"), Circuit()
    circuit = Circuit(
        failures=section.checked("failures", _count, default.failures),
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


def _count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError("must be a whole number from 0 to 9999")
    return int(text)


def _above_zero(text: str) -> int:
    if not _COUNT.fullmatch(text) or not int(text):
        raise ValueError("must be a whole number from 1 to 9999")
    return int(text)
