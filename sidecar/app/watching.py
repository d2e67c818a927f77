"""What goes on beside the streams for each upstream: its health checks, and looking its name up.

Owns which upstreams are watched, and that those of a configuration no longer in use are not. Must not know how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.upstream import BalancedPool
from sidecar.upstream.health_check import Checker

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.gateway import Plan, Target
    from sidecar.health import Health
    from sidecar.ports import Cancellable
    from sidecar.streams import Streams
    from sidecar.upstream import UpstreamPool


class Watching:
    """``streams`` own the tasks, and end them when they close."""

    def __init__(self, streams: Streams, clock: Callable[[], float]) -> None:
        self._streams = streams
        self._clock = clock
        self._tasks: dict[tuple[UpstreamPool, Health], list[Cancellable]] = {}

    def follow(self, plan: Plan) -> None:
        """Watch the upstreams of this plan, and no longer those that are not in it."""
        targets = {(target.pool, target.health): target for target in plan.targets.values()}
        for gone in self._tasks.keys() - targets.keys():
            for task in self._tasks.pop(gone):
                task.cancel()
        for key, target in targets.items():
            if key not in self._tasks:
                self._tasks[key] = self._begin(plan, target)

    def _begin(self, plan: Plan, target: Target) -> list[Cancellable]:
        tasks: list[Cancellable] = []
        check = plan.settings.check_of(target.upstream)
        if check is not None:
            checker = Checker(check, target.pool, target.upstream.authority, target.health, self._clock)
            tasks.append(self._streams.spawn(checker.run(), f"check {target.upstream.name}"))
        if isinstance(target.pool, BalancedPool):
            tasks.append(self._streams.spawn(target.pool.keep_looked_up(), f"look up {target.upstream.name}"))
        return tasks


def describe_upstreams(plan: Plan, now: float) -> list[dict[str, Any]]:
    """What /upstreams shows."""
    found = []
    for name, target in plan.targets.items():
        wait_s = target.health.wait_s(now)
        found.append(
            {
                "upstream": name,
                "state": target.health.state.value,
                "is_up": target.health.is_up(now),
                "next_try_s": None if wait_s is None else round(wait_s, 3),
                "addresses": target.pool.addresses,
            }
        )
    return found


def upstreams_up(plan: Plan, now: float) -> dict[str, float]:
    """1 for each upstream that may be asked, else 0. May be asked from any thread."""
    return {name: float(target.health.is_up(now)) for name, target in plan.targets.items()}


def unready_route(plan: Plan, now: float) -> str:
    """Which route has no upstream that is up, in words; "" where each has one. May be asked from any thread."""
    targets = plan.targets
    for route in plan.settings.routes:
        if not any(targets[name].health.is_up(now) for name in route.upstreams):
            states = ", ".join(f"{name} is {targets[name].health.state.value}" for name in route.upstreams)
            return f"no upstream of route {route.name} is up: {states}"
    return ""
