"""The shape of the code, held: floors, forbidden imports, sizes, names, and a design page that tells the truth."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sidecar"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. A part is a module or a package directly under sidecar/.
FLOORS = {
    "words": {"", "errors", "events", "ports", "record", "settings", "units"},
    "codecs": {"dialects", "formats", "framing", "rejection"},
    "core": {
        "accounting",
        "admission",
        "answer",
        "client_watch",
        "contender",
        "deadlines",
        "drain",
        "fallback",
        "headers",
        "health",
        "held_request",
        "kept_content",
        "local_counts",
        "log",
        "opening",
        "relay",
        "routing",
        "session",
        "stencil",
        "stream",
        "stream_asking",
        "stream_deadlines",
        "stream_place",
        "streams",
        "waiting_line",
        "withheld",
    },
    "edges": {"secrets", "shared_counts", "signing", "subscribers", "telemetry", "upstream"},
    "doors": {"admin", "gateway"},
    "process": {
        "__main__",
        "app",
        "certificates",
        "cli",
        "configuration",
        "demo",
        "descriptors",
        "reload",
        "simulator",
        "workers",
    },
}
HEIGHT = {floor: height for height, floor in enumerate(FLOORS)}
FLOOR_OF = {part: floor for floor, parts in FLOORS.items() for part in parts}
STRANGERS = {"edges", "doors"}  # floors whose parts may not know each other

NO_IO = {"words", "codecs", "core"}
IO = {
    "aiohttp",
    "asyncio",
    "httptools",
    "logging",
    "os",
    "random",
    "select",
    "socket",
    "ssl",
    "threading",
    "time",
    "uvloop",
}
OWNS_TASKS = "sidecar.streams"  # the one module below the edges that may know asyncio, since it owns every task
# One task each, as aiohttp's server has it, whose shutdown awaits it.
SERVES_CONNECTIONS = "sidecar.gateway.connection"
TASK_MAKERS = {"create_task", "ensure_future", "shield", "run_coroutine_threadsafe"}

MAX_LINES = 500
EMPTY_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|misc|base)(_|$)")
DESIGN_STEP = re.compile(r"`(?P<path>[\w/]+\.py)`\s+`(?P<name>[A-Za-z_][\w.]*)(?:\(\))?`")
MIN_DESIGN_STEPS = 8


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module a file names in an import, wherever in the file, under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = (f"sidecar.{alias.name}" for alias in node.names)
            yield from (
                (name if part_of(name) in FLOOR_OF else module for name in names) if module == "sidecar" else [module]
            )


def import_faults(module: str, tree: ast.AST) -> Iterator[str]:
    part = part_of(module)
    floor = FLOOR_OF[part]
    for name in imported(tree):
        if name.split(".")[0] != "sidecar":
            if floor in NO_IO and name.split(".")[0] in IO and (module, name) != (OWNS_TASKS, "asyncio"):
                yield f"{module} ({floor}) imports {name}"
            continue
        other = part_of(name)
        other_floor = FLOOR_OF.get(other)
        if other_floor is None:
            yield f"{module} imports {name}, which is on no floor"
        elif HEIGHT[other_floor] > HEIGHT[floor]:
            yield f"{module} ({floor}) imports {name} above it ({other_floor})"
        elif other_floor == floor and floor in STRANGERS and other != part:
            yield f"{module} imports {name} beside it ({floor})"


def name_exists(path: str, qualified: str) -> bool:
    """Whether ``Class.method``, ``Class.attribute``, ``function`` or ``CONSTANT`` is defined in the file."""
    scope: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
    for name in qualified.split("."):
        found = next((node for node in scope if name in defined_names(node)), None)
        if found is None:
            return False
        scope = found.body if isinstance(found, ast.ClassDef) else []
    return True


def defined_names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_module_keeps_to_its_floor(file: Path) -> None:
    module, text = module_name(file), file.read_text()
    tree = ast.parse(text)
    assert part_of(module) in FLOOR_OF, f"{module} is on no floor: put it into FLOORS"
    assert list(import_faults(module, tree)) == []
    assert ast.get_docstring(tree), f"{module} does not say what it owns"
    assert len(text.splitlines()) <= MAX_LINES, f"{module} has more than {MAX_LINES} lines"
    assert not EMPTY_NAMES.search(file.stem), f"{module} has a name that says nothing"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_only_streams_makes_tasks(file: Path) -> None:
    module = module_name(file)
    is_program = part_of(module) == "simulator"  # with tasks of its own
    if module in {OWNS_TASKS, SERVES_CONNECTIONS} or is_program:
        return
    calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    makers = [f"line {call.lineno}" for call in calls if getattr(call.func, "attr", "") in TASK_MAKERS]
    assert makers == [], f"{module} makes tasks of its own"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sidecar.framing.sse", "import asyncio"),
        ("sidecar.relay", "from sidecar.upstream import pool"),
        ("sidecar.relay", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from socket import socket"),
        ("sidecar.upstream.pool", "def late():\n    from sidecar.secrets import Secret"),
        ("sidecar.admin", "import sidecar.gateway"),
        ("sidecar.streams", "import time"),
        ("sidecar.events", "from sidecar import relay"),
        ("sidecar.cli", "import sidecar.novelty"),
    ],
)
def test_the_floors_notice(module: str, source: str) -> None:
    assert len(list(import_faults(module, ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sidecar.streams", "import asyncio"),
        ("sidecar.relay", "from sidecar.session import Session"),
        ("sidecar.upstream.pool", "from sidecar.upstream.dial import Dialler\nimport socket"),
        ("sidecar.cli", "from sidecar import __version__, configuration"),
    ],
)
def test_the_floors_allow(module: str, source: str) -> None:
    assert list(import_faults(module, ast.parse(source))) == []


def test_only_one_module_needs_the_extra() -> None:
    users = {
        module_name(file)
        for file in FILES
        for name in imported(ast.parse(file.read_text()))
        if name.split(".")[0] in {"boto3", "botocore"}
    }
    assert users == {"sidecar.signing"}


def test_the_design_page_names_what_exists() -> None:
    steps = {(step["path"], step["name"]) for step in DESIGN_STEP.finditer((ROOT / "docs/design.md").read_text())}
    assert len(steps) >= MIN_DESIGN_STEPS
    missing = [
        f"{path} {name}" for path, name in sorted(steps) if not (ROOT / path).is_file() or not name_exists(path, name)
    ]
    assert missing == []
