"""The composition root: the one package that builds concrete parts and ties them together.

Owns which parts there are. Must not hold a rule of its own: what a part does is its own business.
"""

from __future__ import annotations

from sidecar.app.app import App, Prepared
from sidecar.app.listening import Shared

__all__ = ["App", "Prepared", "Shared"]
