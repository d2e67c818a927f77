"""The page of a process that serves nobody itself: what it is, what it costs, and which of its workers answer.

Owns which series are the parent's own. Must not know what workers are, nor how their pages come to it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from sidecar.telemetry import names
from sidecar.telemetry.choices import choose
from sidecar.telemetry.exposition import exposition
from sidecar.telemetry.process import process_gauges
from sidecar.telemetry.resource import make_resource
from sidecar.telemetry.rows import Families
from sidecar.telemetry.snapshot import Clocks, Gauge, Snapshots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar import settings

_PARENT: Final = (names.WORKER, "parent")
_RESOURCE_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"


class ParentPage:
    """``keeps_metrics`` says whether there is a page at all. ``instance`` is the process's own name, which its workers'
    names are made from."""

    def __init__(self, asked: settings.Telemetry, environ: Mapping[str, str]) -> None:
        choices = choose(asked, environ)
        self.keeps_metrics = choices.is_on and choices.keeps_metrics
        self.label = names.prometheus_label(names.WORKER)
        resource = make_resource(asked.service_name, environ).attributes
        self.instance = str(resource[names.SERVICE_INSTANCE_ID])
        kept = {key: value for key, value in resource.items() if isinstance(value, str | int)}
        self._snapshots = Snapshots(kept, Families(), threading.Lock(), Clocks(time.monotonic, time.time_ns))

    def prometheus(self, accept: str, answering: Mapping[int, bool]) -> tuple[str, str]:
        """The page and its content type. ``answering`` says of each worker whether its page is there to be merged."""
        gauges = [Gauge(each.name, each.read, (_PARENT, *each.attributes)) for each in process_gauges()]
        gauges += [_up(number, is_up) for number, is_up in answering.items()]
        page, content_type = exposition(self._snapshots.show(gauges), accept)
        return page.decode(), content_type


def _up(number: int, is_up: bool) -> Gauge:
    return Gauge(names.WORKER_UP, lambda: int(is_up), ((names.WORKER, str(number)),))


def worker_environ(environ: Mapping[str, str], instance: str) -> dict[str, str]:
    """A worker's environment: its telemetry bears an instance's name of its own, even where the environment names
    one, since two processes that send the same series under one name undo each other's counts."""
    told = environ.get(_RESOURCE_ATTRIBUTES, "")
    own = f"{names.SERVICE_INSTANCE_ID}={quote(instance, safe='')}"
    return {**environ, _RESOURCE_ATTRIBUTES: f"{told},{own}" if told else own}
