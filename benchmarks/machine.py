"""The machine measured on: its cores, its compiler, and what RESULTS.md has to say of it.

Owns the split of cores between the proxy under test and everything else. Must not know proxies.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_NATIVE: Final = Path(__file__).resolve().parent / "native"
_PROGRAM_FOLDERS: Final = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin")


class BenchmarkError(Exception):
    """A measurement that could not be made, in words for its row of the table."""


def find_program(name: str) -> str | None:
    """Where a program is: beside this Python, on PATH, or where servers are installed."""
    return shutil.which(name, path=os.pathsep.join(_PROGRAM_FOLDERS))


def proxy_core() -> int:
    """The core the proxy under test has to itself."""
    return _CORES[0]


def load_core() -> int:
    """The core of upstream, load and this program; the proxy's own where there is only one."""
    return _CORES[min(1, len(_CORES) - 1)]


_CORES: Final = sorted(os.sched_getaffinity(0))


def raise_open_files() -> int:
    """Let this process and its children open as many files as the machine allows; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def build_native(folder: Path) -> None:
    """Compile every program of ``native`` into ``folder``. Raises BenchmarkError without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchmarkError("no C compiler (cc, gcc or clang): the load generator cannot be built")
    for name in ("upstream", "load", "collector", "burst"):
        made = subprocess.run(
            [compiler, "-O2", "-o", str(folder / name), str(_NATIVE / f"{name}.c")],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise BenchmarkError(f"{name}.c does not compile: {made.stderr.strip()[-500:]}")


def python_build() -> str:
    """How this Python was built: an optimised build (PGO, the interpreter linked in) takes a fifth less of
    a proxy's time. Distributions build so without saying it where ``CONFIG_ARGS`` is read."""
    if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""):
        return "PGO build"
    is_distributions = Path(sys.executable).resolve().is_relative_to("/usr/bin")
    return "the distribution's build" if is_distributions else "not a PGO build"


def describe() -> list[tuple[str, str]]:
    """What RESULTS.md says of the machine, as (what, value)."""
    shared = "" if load_core() != proxy_core() else " (one core for all: figures mean little)"
    return [
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        (
            "processor",
            f"{_processor()}, {len(_CORES)} cores; proxy on core {proxy_core()}, rest on {load_core()}{shared}",
        ),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("Python", f"{platform.python_version()}, {python_build()}"),
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()
