"""What every test may ask for, and the rule that CI skips nothing.

Owns the way to the recorded streams and the skip rule. Must not know any part of the sidecar: fixtures that need one
live beside the tests that use it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

STREAMS_VARIABLE = "SIDECAR_STREAMS"
OPTIONAL_PLATFORM = "optional_platform"


def in_ci() -> bool:
    """CI=true: whatever cannot run there has to fail, since nobody reads its skips."""
    return os.environ.get("CI", "").lower() == "true"


@pytest.fixture(scope="session")
def streams_dir() -> Path:
    """The folder of recorded streams named by SIDECAR_STREAMS; skips where it is unset (fails with CI=true)."""
    named = os.environ.get(STREAMS_VARIABLE, "")
    if named and Path(named).is_dir():
        return Path(named)
    reason = f"{STREAMS_VARIABLE} names no folder of recorded streams: {named!r}"
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
