"""An upstream for demos, tests and benchmarks: speaks the dialects, at any pace, with any fault.

Owns `sidecar simulate` and, in a process, `serve`. Must not know the sidecar: it stands where a model server would.
"""

from __future__ import annotations

from sidecar.simulator.command import add_arguments, run
from sidecar.simulator.faults import Behaviour
from sidecar.simulator.server import SimulatorServer, serve

__all__ = ["Behaviour", "SimulatorServer", "add_arguments", "run", "serve"]
