"""What the process itself costs, as the system counts it.

Owns the reading of CPU time and memory. Must not know who asks.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Final

from sidecar.telemetry import names
from sidecar.telemetry.snapshot import Gauge

_STATM: Final = Path("/proc/self/statm")


def process_gauges() -> list[Gauge]:
    """CPU time by mode, and resident memory."""
    return [
        Gauge(names.PROCESS_CPU_TIME, lambda: os.times().user, ((names.CPU_MODE, "user"),)),
        Gauge(names.PROCESS_CPU_TIME, lambda: os.times().system, ((names.CPU_MODE, "system"),)),
        Gauge(names.PROCESS_MEMORY, resident_bytes),
    ]


def resident_bytes() -> int:
    """Memory that is resident now; where only its peak is told, the peak."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGESIZE")
