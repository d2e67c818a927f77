"""Sizes and durations: every unit, every complaint, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.units import (
    DURATION_UNITS,
    MAX_SIZE_BYTES,
    SIZE_UNITS,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1B", 1),
        ("0B", 0),
        ("256KiB", 262_144),
        ("16MiB", 16_777_216),
        ("1GiB", 1024**3),
        ("1.5KiB", 1536),
        ("64KB", 64_000),
        ("3MB", 3_000_000),
        ("2GB", 2_000_000_000),
        ("256 KiB", 262_144),
        (" 8KiB ", 8192),
    ],
)
def test_sizes_are_bytes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("30s", 30.0), ("500ms", 0.5), ("5m", 300.0), ("1h", 3600.0), ("0s", 0.0), ("1.5s", 1.5), ("30 s", 30.0)],
)
def test_durations_are_seconds(text: str, duration_s: float) -> None:
    assert parse_duration(text) == duration_s


@pytest.mark.parametrize("text", ["30", "1.5", "0"])
def test_a_bare_number_is_told_every_unit(text: str) -> None:
    with pytest.raises(ValueError, match="needs a unit") as size_error:
        parse_size(text)
    with pytest.raises(ValueError, match="needs a unit") as duration_error:
        parse_duration(text)
    assert all(unit in str(size_error.value) for unit in SIZE_UNITS)
    assert all(unit in str(duration_error.value) for unit in DURATION_UNITS)


@pytest.mark.parametrize(
    "text", ["", "KiB", "-1KiB", "1e3B", "\u0661KiB", "1kib", "1K", "1Mb", "0.5B", "1025GiB", "9" * 40]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is |has |needs "):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1e3s", "1S", "1sec", "1d", "inf", "nan", "1m30s", "99999h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is |has "):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=MAX_SIZE_BYTES))
def test_a_size_reads_back_as_it_was_written(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.integers(min_value=0, max_value=10**9))
def test_a_duration_reads_back_to_the_millisecond(duration_ms: int) -> None:
    assert parse_duration(format_duration(duration_ms / 1000)) == pytest.approx(duration_ms / 1000)


def test_the_largest_whole_unit_is_written() -> None:
    assert [format_duration(value) for value in (0, 0.25, 1, 90, 120, 7200)] == [
        "0ms",
        "250ms",
        "1s",
        "90s",
        "2m",
        "2h",
    ]
    assert [format_size(value) for value in (0, 1, 1024, 1536, 1024**2)] == ["0B", "1B", "1KiB", "1536B", "1MiB"]
