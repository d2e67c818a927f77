"""YAML in, `Settings` out, or every problem at once with its path and line.

Owns the configuration file: its keys, units and checks. Must not know what the settings are used for.
"""

from __future__ import annotations

from sidecar.configuration.description import describe
from sidecar.configuration.problems import Loaded, Problem
from sidecar.configuration.reading import MOST_WORKERS, apply_overrides, for_upstream_url, load, load_file
from sidecar.configuration.source import Source, text_of

__all__ = [
    "MOST_WORKERS",
    "Loaded",
    "Problem",
    "Source",
    "apply_overrides",
    "describe",
    "for_upstream_url",
    "load",
    "load_file",
    "text_of",
]
