"""STREAM: what is counted, what is checked, and the arithmetic of placement."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.calibrate.stream import TOLERANCE, compare_streams, expected, run_stream
from penstock.errors import BadInput
from penstock.twin.placement import bytes_per_s, half_peak_items, local_shares, split, stream_s

ITEMS, TARGETS = st.integers(0, 10_000), st.integers(1, 64)


@settings(deadline=None)
@given(ITEMS, TARGETS)
def test_a_partition_covers_everything_once_and_evenly(items: int, targets: int) -> None:
    parts = split(items, targets)
    assert len(parts) == targets
    assert [index for part in parts for index in part] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None)
@given(ITEMS, TARGETS)
def test_allocator_and_executor_that_divide_alike_are_all_local(items: int, targets: int) -> None:
    assert local_shares(split(items, targets), split(items, targets)) == [1.0] * targets


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_misplacement_costs_between_nothing_and_the_remote_rate(shares: list[float]) -> None:
    rate = bytes_per_s(shares, 40e9, 10e9)
    assert 10e9 * len(shares) * (1 - 1e-12) <= rate <= 40e9 * len(shares) * (1 + 1e-12)


def test_half_the_peak_is_reached_where_launching_takes_as_long_as_streaming() -> None:
    items = half_peak_items(1e-5, 1e10, 24)
    assert items * 24 / stream_s(items * 24, 1e10, 1e-5) == pytest.approx(5e9)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize(("elements", "threads"), [(1, 1), (3, 8), (50_001, 1), (50_001, 2)])
def test_the_arrays_hold_the_recurrence(backend: str, elements: int, threads: int) -> None:
    result = run_stream(elements, 5, threads, backend)  # type: ignore[arg-type]
    assert result.error < TOLERANCE
    assert result.threads == min(elements, threads)
    assert {name: kernel.bytes for name, kernel in result.kernels.items()} == {
        "copy": 16 * elements, "scale": 16 * elements, "add": 24 * elements, "triad": 24 * elements,
    }  # fmt: skip
    for kernel in result.kernels.values():
        assert 0 < kernel.best_s <= kernel.mean_s
        assert kernel.bytes_per_s == kernel.bytes / kernel.best_s
    assert result.bytes_per_s == max(kernel.bytes_per_s for kernel in result.kernels.values())


def test_values_grow_fifteen_fold() -> None:
    assert expected(0) == (1.0, 2.0, 0.0)
    assert expected(3)[0] == 15.0**3


def test_both_backends_and_torchs_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    assert set(compare_streams(1000, 2, 2)) == {"torch", "numpy"}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("bad", [(0, 1, 1), (10, 0, 1), (10, 201, 1), (10, 1, 0)])
def test_out_of_range_is_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(BadInput, match="out of range"):
        run_stream(*bad)
