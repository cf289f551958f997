"""Prompts have the length asked for, share what the trace says is shared, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.workload.prompts import WORDS, IdPrompts, TextPrompts, Vocabulary, phase_seed
from penstock.workload.trace import TraceRequest


@given(st.integers(16, 300_000), st.integers(1, 3000))
def test_ids_are_exact_in_number_and_clear_of_both_ends_of_the_vocabulary(size: int, length: int) -> None:
    ids = IdPrompts(Vocabulary.of_size(size), seed=1).make(0, TraceRequest(0.0, length, 1))
    assert len(ids) == length
    assert min(ids) >= min(259, size // 8)
    assert max(ids) < size * 9 // 10


def test_equal_blocks_give_equal_prefixes_and_the_rest_differs() -> None:
    prompts = IdPrompts(Vocabulary.of_size(5000), seed=1, block_tokens=16)
    one = prompts.make(0, TraceRequest(0.0, 40, 1, (1, 2, 3)))
    two = prompts.make(1, TraceRequest(0.0, 48, 1, (1, 2, 9)))
    assert one[:32] == two[:32]
    assert one[32:40] != two[32:40]


def test_unrelated_requests_share_no_prefix_and_the_same_one_is_always_the_same() -> None:
    prompts = IdPrompts(Vocabulary.of_size(5000), seed=1)
    request = TraceRequest(0.0, 64, 1)
    assert prompts.make(0, request) == prompts.make(0, request)
    assert prompts.make(0, request)[:4] != prompts.make(1, request)[:4]


def test_phases_and_seeds_share_no_prompt() -> None:
    seeds = {phase_seed(seed, phase) for seed in (0, 1) for phase in ("load 0.4", "load 0.8")}
    made = {tuple(IdPrompts(Vocabulary.of_size(5000), seed).make(0, TraceRequest(0.0, 8, 1))) for seed in seeds}
    assert len(made) == 4


def test_a_later_turn_begins_with_the_earlier_one_across_stream_pieces() -> None:
    prompts = IdPrompts(Vocabulary.of_size(5000), seed=1)
    first, later = (prompts.make(i, TraceRequest(0.0, n, 1, session=4)) for i, n in enumerate((100, 2500)))
    assert later[:100] == first
    assert len(later) == 2500


@pytest.mark.parametrize(("slope", "overhead", "words"), [(1.0, 0, 100), (2.0, 0, 50), (1.0, 20, 80), (1.0, 500, 1)])
def test_text_prompts_allow_for_the_tokens_of_a_word_and_of_the_template(
    slope: float, overhead: int, words: int
) -> None:
    text = TextPrompts(1, slope, overhead).make(0, TraceRequest(0.0, 100, 1))
    assert len(text.split()) == words
    assert set(text.split()) <= set(WORDS)
