"""How long to go on: a few examples in `make test`, and for FUZZ_SECONDS in `make fuzz`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUZZ_SECONDS") or 0)
"""What the whole run may take of one processor; 0 for the short form."""
IS_LONG = SECONDS > 0
FEW_EXAMPLES, MANY_EXAMPLES = 12, 400
UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def explore(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], share: float) -> None:
    """``check`` examples of ``strategy``: a few, or many for ``share`` of the seconds. A failing one is made small and
    shown."""

    @settings(
        max_examples=MANY_EXAMPLES if IS_LONG else FEW_EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=UNHURRIED,
    )
    @given(strategy)
    def run(example: Any) -> None:
        check(example)

    until = time.monotonic() + SECONDS * share
    run()
    while time.monotonic() < until:
        run()
