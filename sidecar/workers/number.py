"""How many workers there can be, and how many ``auto`` is.

Owns what counts as a usable core. Must not know what workers do.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

from sidecar.configuration import MOST_WORKERS

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """The cores that this process may run on; fewer where its control group may not use all of their time, as in a
    container with a CPU limit."""
    cores = len(os.sched_getaffinity(0))
    try:
        allowed_us, period_us = quota.read_text().split()
        if allowed_us != "max":
            cores = min(cores, math.ceil(int(allowed_us) / int(period_us)))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no control groups, or not of the second kind: nothing is known of a quota
    return max(1, min(cores, MOST_WORKERS))
