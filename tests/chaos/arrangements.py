"""Configurations of the chaos run, chosen at random but by a seed.

Owns which settings are tried together. Must not know upstreams' faults or clients.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sidecar.settings import (
    KIB,
    Address,
    Callers,
    Circuit,
    HealthCheck,
    Limits,
    Match,
    Retry,
    Route,
    Settings,
    Timeouts,
    Upstream,
)
from tests.app_support import CHAT, MESSAGES, OLLAMA_CHAT, settings_for, upstream_at
from tests.chaos.clients import CALLER

PATHS = {"openai": CHAT, "anthropic": MESSAGES, "ollama": OLLAMA_CHAT, "rest": "/**"}
TIMEOUTS = Timeouts(connect_s=0.5, first_token_s=0.8, idle_s=0.6, total_s=8.0)
"""Short ones: what falls silent in the run is to be noticed in it."""


def arrange(addresses: dict[str, Address], chance: random.Random) -> Settings:
    """Settings with these upstreams, each route with its own share of them and of everything there is to set."""
    upstreams = [_upstream(name, address, chance) for name, address in addresses.items()]
    routes = [_route(name, path, list(addresses), chance) for name, path in PATHS.items()]
    return settings_for(
        *upstreams,
        routes=routes,
        max_streams=chance.choice([0, 0, 30]),
        callers=Callers(header=CALLER, streams=chance.choice([0, 0, 15])),
    )


def _upstream(name: str, address: Address, chance: random.Random) -> Upstream:
    health = HealthCheck(path="/health", interval_s=0.2, timeout_s=0.2)
    return upstream_at(
        address,
        name,
        timeouts=TIMEOUTS,
        max_streams=chance.choice([0, 0, 12]),
        health=chance.choice([None, None, health]),
        circuit=chance.choice([Circuit(failures=0), Circuit(failures=8, backoff_s=0.1, max_backoff_s=0.5)]),
    )


def _route(name: str, path: str, upstreams: Sequence[str], chance: random.Random) -> Route:
    asked = chance.sample(list(upstreams), chance.randint(1, len(upstreams)))
    kinds: dict[str, Any] = {
        "retry": chance.choice([Retry(), Retry(attempts=3, max_wait_s=0.1), Retry(hedge_after_s=0.05, budget=1.0)]),
        "commit": chance.choice(["headers", "headers", "first_content"]),
        "weights": chance.choice([(), tuple(chance.randint(1, 3) for _ in asked)]),
        "priority": chance.choice(["low", "normal", "high"]),
        "preempt": chance.random() < 0.3,
        "heartbeat_s": chance.choice([15.0, 0.05]),
    }
    return Route(name, tuple(asked), Match(path), limits=_limits(chance), **kinds)


def _limits(chance: random.Random) -> Limits:
    return Limits(
        buffer_bytes=chance.choice([64 * KIB, 256 * KIB]),
        on_slow_client=chance.choice(["pause", "pause", "evict"]),
        stall_timeout_s=1.0,
        max_frame_bytes=chance.choice([100 * KIB, 1024 * KIB]),
        streams=chance.choice([0, 0, 10]),
        caller_streams=chance.choice([0, 0, 6]),
        queue=chance.choice([0, 20]),
        queue_timeout_s=0.3,
    )
