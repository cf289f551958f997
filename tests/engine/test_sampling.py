"""The sampler against an obvious one: one row at a time, in float64, every option spelled out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from penstock.control.request import Request, Sampling
from penstock.engine.sampling import SampledRows, Sampler
from penstock.engine.sampling.draw import uniforms
from penstock.engine.sampling.truncation import keep_top_p, keep_top_p_of_rows
from penstock.errors import InvalidRequest, ProtocolError

VOCAB = 50


def request(prompt: tuple[int, ...] = (1, 2, 3), output: tuple[int, ...] = (), **options: Any) -> Request:
    return Request(id="r", prompt=prompt, max_tokens=1000, output=output, sampling=Sampling(**options))


def sample_one(logits: np.ndarray, asked: Request, **known: Any) -> SampledRows:
    """One row, alone."""
    sampler = Sampler(1, len(logits), **known)
    sampler.add(0, asked)
    return sampler.sample(torch.from_numpy(logits)[None], np.array([0]), np.array([len(asked.output)]))


def kept_probabilities(logits: np.ndarray, asked: Request) -> np.ndarray:
    """The distribution the next token is drawn from; greedy ones have all of it on one token. Slow and plain."""
    s = asked.sampling
    scores = logits.astype(np.float64)
    for token, bias in s.logit_bias:
        scores[token] += bias
    if len(asked.output) < s.min_tokens:
        for token in s.stop_ids:
            scores[token] = -np.inf
    for token in {*asked.prompt, *asked.output}:
        scores[token] = (
            scores[token] / s.repetition_penalty if scores[token] > 0 else scores[token] * s.repetition_penalty
        )
    for token in set(asked.output):
        scores[token] -= s.frequency_penalty * asked.output.count(token) + s.presence_penalty
    if s.temperature == 0:
        return np.eye(len(scores))[int(np.argmax(scores))]
    p = np.exp((scores - scores.max()) / s.temperature)
    p /= p.sum()
    if s.top_k and s.top_k < len(p):
        p[p < np.sort(p)[-s.top_k]] = 0
        p /= p.sum()
    if s.top_p < 1:
        before = 0.0
        for token in np.argsort(-p, kind="stable"):
            share, p[token] = p[token], p[token] if before < s.top_p else 0
            before += share
    p[p < s.min_p * p.max()] = 0
    return p / p.sum()


def options(tokens: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, Any]]:
    few = st.lists(tokens, max_size=4, unique=True)
    return st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.0]),
            "top_k": st.integers(0, VOCAB + 5),
            "top_p": st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
            "min_p": st.sampled_from([0.0, 0.01, 0.3, 1.0]),
            "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
            "presence_penalty": st.sampled_from([0.0, 0.5, -2.0]),
            "frequency_penalty": st.sampled_from([0.0, 0.5, -2.0]),
            "logit_bias": few.map(lambda ids: tuple((id, (-1.0) ** id * 3) for id in ids)),
            "stop_ids": few.map(tuple),
            "min_tokens": st.integers(0, 6),
        },
    )


ids = st.integers(0, VOCAB - 1)


@settings(max_examples=400, deadline=None)
@given(
    numbers=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.5, 3.0, 20.0]),
    chosen=options(ids),
    seed=st.integers(-(2**63), 2**63 - 1),
    prompt=st.lists(ids, min_size=1, max_size=6).map(tuple),
    output=st.lists(ids, max_size=6).map(tuple),
)
def test_every_combination_of_options_draws_what_the_reference_draws(
    numbers: int, scale: float, chosen: dict[str, Any], seed: int, prompt: tuple[int, ...], output: tuple[int, ...]
) -> None:
    logits = (scale * np.random.default_rng(numbers).standard_normal(VOCAB)).astype(np.float32)
    asked = request(prompt, output, seed=seed, **chosen)
    expected = kept_probabilities(logits, asked)
    token = int(sample_one(logits, asked).tokens[0])
    u = uniforms(np.array([seed % 2**64], np.uint64), np.array([len(output)]))[0]
    running = np.cumsum(expected)
    # float32 against float64 may differ in the last bits at the border of two tokens.
    assert running[token] - expected[token] - 1e-4 <= u <= running[token] + 1e-4
    assert expected[token] > 0 or np.abs(expected - chosen.get("min_p", 0) * expected.max()).min() < 1e-5


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_their_probability_says(chosen: dict[str, Any]) -> None:
    draws = 20_000
    logits = np.random.default_rng(5).standard_normal(VOCAB).astype(np.float32) * 2
    expected = kept_probabilities(logits, request(**chosen)) * draws
    sampler = Sampler(draws, VOCAB, entropy=11)
    for slot in range(draws):
        sampler.add(slot, request(**chosen))
    rows = torch.from_numpy(logits).expand(draws, VOCAB)
    tokens = sampler.sample(rows, np.arange(draws), np.zeros(draws, np.int64)).tokens
    counts = np.bincount(tokens, minlength=VOCAB)
    assert not counts[expected == 0].any()
    likely = expected > 5
    chi_square = ((counts - expected) ** 2)[likely] / expected[likely]
    # Mean f and variance 2f for f degrees of freedom: six deviations.
    freedom = max(1, likely.sum() - 1)
    assert chi_square.sum() < freedom + 6 * np.sqrt(2 * freedom)


@settings(max_examples=150, deadline=None)
@given(numbers=st.integers(0, 2**32 - 1), p=st.floats(0.001, 0.999), levels=st.sampled_from([2, 10, 10**4]))
def test_both_ways_to_the_nucleus_keep_the_same_tokens_also_where_many_are_equal(
    numbers: int, p: float, levels: int
) -> None:
    # Small multiples of a power of two add up exactly, so that no rounding hides or makes a difference.
    weights = np.random.default_rng(numbers).integers(1, levels + 1, (4, 300)).astype(np.float32) / 2**20
    weights /= 2.0 ** np.ceil(np.log2(weights.max()))
    together, one_by_one = weights.copy(), weights.copy()
    keep_top_p_of_rows(together, np.full(4, p))
    for row, whole in zip(one_by_one, weights, strict=True):
        keep_top_p(row, p)
        order = np.argsort(-whole, kind="stable")
        running = np.cumsum(whole[order], dtype=np.float64)
        expected = order[: int(np.searchsorted(running, p * running[-1])) + 1]
        assert set(np.flatnonzero(row)) == set(expected)
    assert (together == one_by_one).all()


def test_the_numbers_of_one_seed_are_uniform_and_unlike_those_of_the_next() -> None:
    counters = np.arange(50_000)
    first, second = (uniforms(np.full(len(counters), seed, np.uint64), counters) for seed in (7, 8))
    across = uniforms(np.arange(50_000, dtype=np.uint64), np.zeros(50_000, np.int64))
    for numbers in (first, second, across):
        assert 0 <= numbers.min() <= numbers.max() < 1
        counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
        assert ((counts - 500) ** 2 / 500).sum() < 99 + 6 * np.sqrt(2 * 99)
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_the_numbers_are_those_of_splitmix64_written_out() -> None:
    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    pairs = [(0, 0), (1, 5), (2**64 - 1, 1000), (2**63, 2**31)]
    expected = [(mix((mix((s + golden) % 2**64) + (i + 1) * golden) % 2**64) >> 11) / 2**53 for s, i in pairs]
    seeds, counters = zip(*pairs, strict=True)
    assert uniforms(np.array(seeds, np.uint64), np.array(counters)).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    numbers=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([1, 63, 64, 1000, 5000]),
    chosen=st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.0, 0.7, 1.0])},
        optional={"top_k": st.integers(1, 30), "top_p": st.sampled_from([0.3, 0.95]), "min_p": st.just(0.05)},
    ),
    others=st.lists(
        st.sampled_from([{}, {"temperature": 0.0}, {"top_p": 0.5}, {"repetition_penalty": 2.0}]), max_size=4
    ),
)
def test_a_row_gives_the_same_token_alone_and_in_a_batch_of_64(
    numbers: int, vocab: int, chosen: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    rng = np.random.default_rng(numbers)
    logits = torch.from_numpy(rng.standard_normal((64, vocab)).astype(np.float32) * 3)
    slots = rng.permutation(100)[:64]
    lengths = rng.integers(0, 500, 64)
    mixed = [chosen, *others]
    asked = [request((0,), seed=row, **mixed[row % len(mixed)]) for row in range(64)]
    batch = Sampler(100, vocab)
    for slot, each in zip(slots.tolist(), asked, strict=True):
        batch.add(slot, each)
    together = batch.sample(logits, slots, lengths).tokens
    for row in range(64):
        alone = Sampler(1, vocab)
        alone.add(0, asked[row])
        assert alone.sample(logits[row : row + 1], np.array([0]), lengths[row : row + 1]).tokens[0] == together[row]


def test_a_seeded_request_goes_on_the_same_after_a_restart() -> None:
    rng = np.random.default_rng(2)
    logits = torch.from_numpy(rng.standard_normal((12, 1, VOCAB)).astype(np.float32))
    chosen: dict[str, Any] = {"seed": 9, "repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2}

    def run(output: tuple[int, ...], steps: int) -> tuple[int, ...]:
        sampler = Sampler(1, VOCAB)
        sampler.add(0, request(output=output, **chosen))
        for step in range(len(output), steps):
            output += (int(sampler.sample(logits[step], np.array([0]), np.array([step])).tokens[0]),)
        return output

    whole = run((), 12)
    for cut in range(12):
        assert run(whole[:cut], 12) == whole


def test_penalties_count_what_was_produced_step_by_step() -> None:
    rng = np.random.default_rng(3)
    chosen: dict[str, Any] = {
        "temperature": 0.0,
        "frequency_penalty": 0.7,
        "presence_penalty": 0.4,
        "repetition_penalty": 1.2,
    }
    sampler = Sampler(1, VOCAB)
    output: tuple[int, ...] = (4, 4)
    sampler.add(0, request(output=output, **chosen))
    for _ in range(200):
        logits = rng.standard_normal(VOCAB).astype(np.float32) * 10
        token = int(sampler.sample(torch.from_numpy(logits)[None], np.array([0]), np.array([len(output)])).tokens[0])
        assert token == kept_probabilities(logits, request(output=output, **chosen)).argmax()
        output += (token,)


def test_without_a_seed_runs_differ_unless_the_entropy_is_given() -> None:
    logits = np.zeros(10_000, np.float32)

    def draw(**known: Any) -> int:
        return int(sample_one(logits, request(), **known).tokens[0])

    assert draw(entropy=1) == draw(entropy=1)
    assert len({draw() for _ in range(8)}) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_is_argmax_with_ties_to_the_lowest_id(dtype: torch.dtype) -> None:
    logits = torch.randint(0, 4, (64, 300), generator=torch.Generator().manual_seed(0)).to(dtype)
    sampler = Sampler(64, 300)
    for slot in range(64):
        sampler.add(slot, request(temperature=0.0))
    sampled = sampler.sample(logits, np.arange(64), np.zeros(64, np.int64))
    assert (sampled.tokens == logits.float().numpy().argmax(axis=1)).all()
    assert sampled.tokens.dtype == np.int64


@pytest.mark.parametrize(
    "chosen", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"repetition_penalty": 1.5}, {"logprobs": 2}]
)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_numbers_fails_alone(chosen: dict[str, Any], poison: float) -> None:
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(1))
    sampler, healthy = Sampler(5, VOCAB), Sampler(5, VOCAB)
    for slot in range(5):
        sampler.add(slot, request(seed=slot, **chosen))
        healthy.add(slot, request(seed=slot, **chosen))
    expected = healthy.sample(logits, np.arange(5), np.zeros(5, np.int64)).tokens
    logits[2, 7] = poison
    sampled = sampler.sample(logits, np.arange(5), np.zeros(5, np.int64))
    assert list(sampled.failed) == [2]
    assert 2 not in sampled.logprobs
    others = [0, 1, 3, 4]
    assert (sampled.tokens[others] == expected[others]).all()


def test_a_row_of_minus_infinity_fails_and_single_ones_are_never_drawn() -> None:
    logits = np.full(VOCAB, -np.inf, np.float32)
    assert sample_one(logits, request()).failed
    logits[9] = 0.0
    assert sample_one(logits, request()).tokens[0] == 9


def test_stop_ids_are_banned_until_min_tokens_and_no_longer() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[5] = 9.0
    for produced in range(5):
        asked = request(output=(1,) * produced, temperature=0.0, stop_ids=(5,), min_tokens=3)
        assert (sample_one(logits, asked).tokens[0] == 5) == (produced >= 3)


def test_a_row_whose_tokens_are_all_banned_fails_alone() -> None:
    sampled = sample_one(np.zeros(2, np.float32), request((0,), stop_ids=(0, 1), min_tokens=1))
    assert "banned" in sampled.failed[0]


def test_logprobs_are_the_models_own_whatever_the_options() -> None:
    logits = np.random.default_rng(4).standard_normal(VOCAB).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    for chosen in ({}, {"temperature": 0.2, "top_k": 3}, {"logit_bias": ((3, 50.0),)}):
        sampled = sample_one(logits, request(logprobs=5, seed=1, **chosen))
        found = sampled.logprobs[0]
        assert found.chosen == pytest.approx(float(expected[int(sampled.tokens[0])]), abs=1e-6)
        top = torch.topk(expected, 5)
        assert [id for id, _ in found.top] == top.indices.tolist()
        assert [value for _, value in found.top] == pytest.approx(top.values.tolist(), abs=1e-6)


def test_logprobs_come_only_for_rows_that_ask_and_ties_go_to_the_lowest_id() -> None:
    sampler = Sampler(3, VOCAB)
    for slot, wanted in enumerate([None, 0, 3]):
        sampler.add(slot, request(logprobs=wanted))
    found = sampler.sample(torch.zeros(3, VOCAB), np.arange(3), np.zeros(3, np.int64)).logprobs
    assert {row: [id for id, _ in each.top] for row, each in found.items()} == {1: [], 2: [0, 1, 2]}


@pytest.mark.parametrize(
    ("chosen", "processors"),
    [
        ({"top_k": 7}, [TopKLogitsWarper(7)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        (
            {"top_k": 12, "top_p": 0.6, "min_p": 0.2},
            [TopKLogitsWarper(12), TopPLogitsWarper(0.6), MinPLogitsWarper(0.2)],
        ),
        ({"repetition_penalty": 1.7, "top_k": 4}, [RepetitionPenaltyLogitsProcessor(1.7), TopKLogitsWarper(4)]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_same_tokens_are_kept_as_in_transformers(chosen: dict[str, Any], processors: list[Any]) -> None:
    draws = 4000
    for number in range(3):
        logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(number))
        prompt, output = (1, 2, 3, 5), (7, 7)
        scores = logits.clone()
        for processor in processors:
            scores = processor(torch.tensor([[*prompt, *output]]), scores)
        sampler = Sampler(draws, 16, entropy=number)
        for slot in range(draws):
            sampler.add(slot, request(prompt, output, **chosen))
        tokens = sampler.sample(logits.expand(draws, 16), np.arange(draws), np.full(draws, 2)).tokens
        kept = torch.softmax(scores[0], 0).numpy()
        assert set(tokens.tolist()) <= set(np.flatnonzero(kept).tolist())
        assert set(tokens.tolist()) >= set(np.flatnonzero(kept > 0.005).tolist())


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("temperature", request(temperature=-0.1)),
        ("temperature", request(temperature=float("nan"))),
        ("top_k", request(top_k=-1)),
        ("top_p", request(top_p=0.0)),
        ("min_p", request(min_p=1.1)),
        ("repetition_penalty", request(repetition_penalty=0.0)),
        ("repetition_penalty", request(repetition_penalty=1e-40)),
        ("repetition_penalty", request(repetition_penalty=1e39)),
        ("frequency_penalty", request(frequency_penalty=-1e39)),
        ("presence_penalty", request(presence_penalty=float("inf"))),
        ("logit_bias", request(logit_bias=((VOCAB, 1.0),))),
        ("logit_bias", request(logit_bias=((1, float("inf")),))),
        ("stop_ids", request(stop_ids=(-1,))),
        ("min_tokens", request(min_tokens=-1)),
        ("logprobs", request(logprobs=-1)),
        ("prompt", request(prompt=(VOCAB,))),
        ("output", request(output=(-3,))),
    ],
)
def test_a_request_that_cannot_be_sampled_is_refused_by_field_and_the_slot_stays_free(
    field: str, asked: Request
) -> None:
    sampler = Sampler(1, VOCAB)
    with pytest.raises(InvalidRequest) as caught:
        sampler.add(0, asked)
    assert caught.value.field == field
    sampler.add(0, request())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 3e38},
        {"repetition_penalty": 3e38, "frequency_penalty": 3e38, "presence_penalty": -3e38},
        {"frequency_penalty": -3e38, "presence_penalty": -3e38},
    ],
)
def test_no_penalty_in_its_range_leaves_a_row_without_a_token(penalties: dict[str, float], temperature: float) -> None:
    logits = np.linspace(-50, 50, VOCAB, dtype=np.float32)
    asked = request(prompt=tuple(range(VOCAB)), output=(1, 1, VOCAB - 1), temperature=temperature, **penalties)
    result = sample_one(logits, asked)
    assert not result.failed
    assert 0 <= result.tokens[0] < VOCAB


def test_a_banned_token_stays_banned_under_penalties() -> None:
    asked = request(stop_ids=(2,), min_tokens=9, output=(2,), frequency_penalty=-3e38, temperature=0.0)
    assert sample_one(np.zeros(VOCAB, np.float32), asked).tokens[0] != 2


def test_slots_are_taken_once_and_given_back() -> None:
    sampler = Sampler(2, VOCAB)
    sampler.add(1, request())
    for misuse in (lambda: sampler.add(1, request()), lambda: sampler.add(2, request()), lambda: sampler.remove(0)):
        with pytest.raises(ProtocolError):
            misuse()
    with pytest.raises(ProtocolError):
        sampler.sample(torch.zeros(1, VOCAB), np.array([0]), np.array([0]))
    assert sampler.statistics()["slots_used"] == 1
    sampler.remove(1)
    assert sampler.statistics()["slots_used"] == 0


def test_the_logits_are_left_as_they_are() -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    sampler = Sampler(1, VOCAB)
    sampler.add(0, request(logit_bias=((1, 5.0),), repetition_penalty=2.0, top_p=0.5, logprobs=2))
    sampler.sample(logits, np.array([0]), np.array([0]))
    assert torch.equal(logits, before)
