"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest

from penstock.units import format_bytes, parse_count, parse_seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [("4096", 4096), ("25k", 25_000), ("32Ki", 32_768), ("2GiB", 2**31), ("1.5M", 1_500_000), (" 7 MB ", 7_000_000)],
)
def test_counts(text: str, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("30s", 30.0), ("500ms", 0.5), ("2min", 120.0), ("1h", 3600.0), ("7", 7.0)]
)
def test_durations(text: str, value: float) -> None:
    assert parse_seconds(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5", "3x", "1e3", "10 GiBs"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_count(text)


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 days"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_seconds(text)


def test_bytes_are_shown_with_a_binary_unit() -> None:
    assert [format_bytes(n) for n in (0, 1023, 2**20, 5 * 2**30)] == ["0 B", "1023 B", "1.0 MiB", "5.0 GiB"]
