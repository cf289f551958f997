"""Pieces of large pages: none overlaps another, all keep what is written, and none keeps memory when all are gone."""

from __future__ import annotations

import gc
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.ops.large_pages import SMALLEST, LargePages

sizes = st.lists(st.integers(1, 9 * SMALLEST), min_size=1, max_size=12)


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_pieces_do_not_overlap_and_begin_at_a_cache_line(asked):
    pages = LargePages()
    found = [pages.empty((size,), torch.uint8) for size in asked]
    for piece, size in zip(found, asked, strict=True):
        assert piece.shape == (size,)
        assert piece.data_ptr() % 64 == 0
    ends = sorted((piece.data_ptr(), piece.data_ptr() + piece.nbytes) for piece in found)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends))


def test_each_type_and_shape_keeps_what_is_written():
    pages, kept = LargePages(), []
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.int8, torch.uint8) * 12):
        piece = pages.empty((3, SMALLEST // 2 + 1, 2), dtype)
        assert piece.is_contiguous()
        kept.append((number, piece.fill_(number)))
    for number, piece in kept:
        assert (piece == number).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_goes_back_when_the_last_piece_has_gone():
    def held() -> int:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * 4096

    pages = LargePages()
    first = pages.empty((40 << 20,), torch.uint8).fill_(1)
    with_one = held()
    second = pages.empty((8 << 20,), torch.uint8).fill_(1)
    assert held() >= with_one + (7 << 20)
    del first
    gc.collect()
    assert held() <= with_one - (25 << 20)
    assert second.sum() == 8 << 20
    del second
    gc.collect()
    assert held() <= with_one - (35 << 20)


def test_threads_get_pieces_of_their_own():
    pages, before = LargePages(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            asked = pool.map(lambda _: pages.empty((SMALLEST,), torch.uint8), range(400))
            found = list(asked)
            places = sorted(piece.data_ptr() for piece in found)
    finally:
        sys.setswitchinterval(before)
    assert all(second - first >= SMALLEST for first, second in itertools.pairwise(places))
