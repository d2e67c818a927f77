"""YAML in, `Settings` out, or every problem at once with its path and line.

Owns the configuration file: its keys, units and checks. Must not know what the settings are used for.
"""

from __future__ import annotations

from sidecar.configuration.description import describe
from sidecar.configuration.problems import Loaded, Problem
from sidecar.configuration.reading import apply_overrides, for_upstream_url, load, load_file

__all__ = ["Loaded", "Problem", "apply_overrides", "describe", "for_upstream_url", "load", "load_file"]
