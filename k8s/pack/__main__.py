"""Writes the pack: ``python -m k8s.pack``.

Owns which file holds what.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from k8s.pack import dashboard, rules

COMPONENTS: Final = Path(__file__).resolve().parent.parent / "components"
FILES: Final[dict[str, Callable[[], str]]] = {
    "rules/llm-sidecar.rules.yaml": rules.plain,
    "rules/prometheusrule.yaml": rules.manifest,
    "dashboard/llm-sidecar.json": dashboard.written,
}


def main() -> None:
    """Write every file anew."""
    for path, content in FILES.items():
        (COMPONENTS / path).write_text(content())


if __name__ == "__main__":
    main()
