"""Working memory grows at once and shrinks after a while; logits are made in one place."""

from __future__ import annotations

import pytest
import torch

from penstock.engine.loader import load_model
from penstock.engine.ops.native import load_native
from penstock.engine.scratch import SMALL_STEPS, Scratch


def test_it_grows_at_once_and_stays_where_it_is_while_it_is_large_enough():
    scratch = Scratch()
    small = scratch.take(100)
    assert (small.numel(), small.data_ptr() % 4096, scratch.held) == (100, 0, 100)
    large = scratch.take(10_000)
    large.fill_(7)
    assert scratch.held == 10_000
    again = scratch.take(5_000)
    assert again.data_ptr() == large.data_ptr()
    assert int(again.sum()) == 7 * 5_000


def test_it_shrinks_when_little_was_needed_many_times_in_a_row():
    scratch = Scratch()
    scratch.take(10_000)
    for _ in range(SMALL_STEPS - 1):
        scratch.take(100)
    scratch.take(9_000)
    for _ in range(SMALL_STEPS - 1):
        scratch.take(100)
    assert scratch.held == 10_000
    scratch.take(120)
    assert scratch.held == 120


@pytest.mark.parametrize("dtype", ["float32", "float32_compressed", "int8", "int8_weights", "int4"])
def test_logits_of_every_step_are_in_one_place_and_not_in_the_heap(checkpoint, dtype):
    """Freed and asked for with a few rows more, they left holes in the heap that took ten times their size."""
    model = load_model(checkpoint("llama", hidden_size=64), dtype=dtype).model
    kernels, hidden = load_native(), torch.randn(9, 64)
    with torch.inference_mode():
        first = model.logits(hidden, kernels)
        place, expected = first.data_ptr(), first.clone()
        for rows in (9, 5, 1):
            logits = model.logits(hidden[:rows], kernels)
            assert logits.data_ptr() == place
            assert torch.equal(logits, expected[:rows])
