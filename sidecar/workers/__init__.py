"""Several processes behind one port: a parent that serves nobody, and workers that each are a whole app.

Owns how workers are begun, replaced, asked and ended. Must not know what an app is made of.
"""

from __future__ import annotations

from sidecar.workers.number import usable_cores
from sidecar.workers.parent import run_workers
from sidecar.workers.worker import run_worker

__all__ = ["run_worker", "run_workers", "usable_cores"]
