"""What is shipped is what is declared: dependencies, locks, version, and the files a package needs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import sidecar

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
IMPORTED_AS = {
    "PyYAML": "yaml",
    "backports-zstd": "backports",
    "opentelemetry-exporter-otlp-proto-grpc": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
}
LATER_STANDARD = {"compression"}
"""Packages of the standard library of a later Python than the oldest."""
EXTRAS = ("bedrock", "compression", "otlp-grpc")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ ;\[]", requirement, maxsplit=1)[0] for requirement in requirements}


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def test_every_third_party_import_is_declared_and_every_declaration_is_imported() -> None:
    roots = set()
    for file in (ROOT / "sidecar").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots.add(node.module.split(".")[0])
    third_party = roots - sys.stdlib_module_names - {"sidecar"} - LATER_STANDARD
    declared = names(PROJECT["dependencies"]).union(*(names(PROJECT["optional-dependencies"][each]) for each in EXTRAS))
    assert third_party == {IMPORTED_AS.get(name, name) for name in declared}


def test_every_dependency_is_accounted_for() -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    extras = PROJECT["optional-dependencies"]
    declared = names(PROJECT["dependencies"]).union(*(names(extras[each]) for each in (*EXTRAS, "dev")))
    assert [name for name in sorted(declared) if name not in page] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_is_hashed_and_names_no_host_or_path(lock: Path) -> None:
    text = lock.read_text()
    assert len(pins(lock)) > 0
    for requirement in re.split(r"\n(?=[a-z0-9])", text):
        assert "--hash=sha256:" in requirement
    assert not re.search(r"://|^-|@ |^\s*/", text, re.MULTILINE)


def test_the_locks_hold_what_is_declared_and_agree() -> None:
    runtime, dev = pins(ROOT / "requirements/runtime.txt"), pins(ROOT / "requirements/dev.txt")
    assert {name.lower() for name in names(PROJECT["dependencies"])} <= runtime.keys()
    assert {name.lower() for name in names(PROJECT["optional-dependencies"]["dev"])} <= dev.keys()
    assert {name: dev.get(name) for name in runtime} == runtime


def test_one_version_is_told_everywhere() -> None:
    assert metadata.version("llm-sidecar") == sidecar.__version__
    assert sidecar.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_is_declared_and_the_types_are_shipped() -> None:
    assert PROJECT["scripts"] == {"sidecar": "sidecar.cli:main"}
    assert (ROOT / "sidecar/py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
