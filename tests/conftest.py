"""What every test may ask for, and the rule that CI skips nothing.

Owns the way to the recorded streams and to the servers of other projects, and the skip rule. Must not know any part of
the sidecar: fixtures that need one live beside the tests that use it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests import llmock_server
from tests.phoenix_server import Phoenix, is_installed, running_phoenix

STREAMS_VARIABLE = "SIDECAR_STREAMS"
OPTIONAL_PLATFORM = "optional_platform"


def in_ci() -> bool:
    """CI=true: whatever cannot run there has to fail, since nobody reads its skips."""
    return os.environ.get("CI", "").lower() == "true"


@pytest.fixture(scope="session")
def streams_dir() -> Path:
    """The folder of recorded streams named by SIDECAR_STREAMS; skips where it is unset (fails with CI=true)."""
    named = os.environ.get(STREAMS_VARIABLE, "")
    if not named or not Path(named).is_dir():
        _lacking(f"{STREAMS_VARIABLE} names no folder of recorded streams: {named!r}")
    return Path(named)


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    """A running Arize Phoenix, whose start takes about ten seconds; skips where it is not installed."""
    if not is_installed():
        _lacking("Arize Phoenix is not installed: `make test` does that, on Linux and with a package index in reach")
    with running_phoenix(tmp_path_factory.mktemp("phoenix")) as running:
        yield running


@pytest.fixture(scope="session")
def llmock_installed() -> None:
    """Skips where llmock is not installed (fails with CI=true)."""
    if not llmock_server.is_installed():
        _lacking("llmock is not installed: `make test` does that, with a package index in reach")


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of Prometheus' promtool; skips where it is missing."""
    return _program("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """The path of the Prometheus server; skips where it is missing."""
    return _program("prometheus")


def _program(name: str) -> str:
    return shutil.which(name) or _lacking(f"{name} is not installed (Debian and Ubuntu: the package prometheus)")


def _lacking(reason: str) -> NoReturn:
    if in_ci():
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skipped test fails, unless it is marked optional_platform."""
    report = yield
    is_expected_failure = hasattr(report, "wasxfail")
    if report.skipped and in_ci() and not is_expected_failure and item.get_closest_marker(OPTIONAL_PLATFORM) is None:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {_reason(call)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """With CI=true a module that skips itself whole fails too."""
    report = yield
    if report.skipped and in_ci():
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself, which CI does not allow"
    return report


def _reason(call: pytest.CallInfo[None]) -> str:
    return str(call.excinfo.value) if call.excinfo is not None else "no reason given"
