"""T(p, o) = alpha(p) + beta (o - 1): exact at the table, monotone between, and the same through the twin's steps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadInput
from penstock.reproduce.idealized_runtime import davinci_log, published, tables
from penstock.twin.affine import (
    OUTPUT_GRID,
    PROMPT_GRID,
    Affine,
    AffineSteps,
    Measurement,
    denoise,
    dollars,
    fit,
    flop,
    profile,
)
from penstock.twin.load import StepLoad

MODELS = sorted(tables()["models"])
PAIRS = st.builds(
    lambda table, beta: Affine(tuple(sorted(table.items())), beta),
    st.dictionaries(st.integers(1, 2000), st.floats(1e-3, 10.0), min_size=1, max_size=8),
    st.floats(1e-4, 1.0),
)


@pytest.mark.parametrize("device", ["a100", "v100"])
@pytest.mark.parametrize("model", MODELS)
def test_the_table_is_met_exactly(model: str, device: str) -> None:
    pair = published(model, device)
    for prompt, alpha in pair.prompt_s:
        assert pair.seconds(prompt, 1, "saw_tooth") == alpha
        assert pair.seconds(prompt, 0, "saw_tooth") == alpha
        assert pair.seconds(prompt, 65, "saw_tooth") == alpha + 64 * pair.token_s


@pytest.mark.parametrize(
    ("model", "beta", "alphas"),
    [
        ("gptj-6b", 0.021, (0.023, 0.025, 0.042, 0.076, 0.113, 0.142)),
        ("j1-grande-17b", 0.038, (0.041, 0.056, 0.097, 0.190, 0.298, 0.380)),
        ("davinci-175b", 0.081, (0.084, 0.109, 0.178, 0.323, 0.476, 0.597)),
        ("mt-nlg-530b", 0.123, (0.125, 0.273, 0.490, 0.951, 1.468, 1.852)),
    ],
)
def test_constants_of_the_paper(model: str, beta: float, alphas: tuple[float, ...]) -> None:
    pair = published(model)
    assert pair.token_s == beta
    for prompt, alpha in zip((1, 256, 512, 1024, 1536, 1920), alphas, strict=True):
        assert pair.prompt_seconds(prompt, "saw_tooth") == pytest.approx(alpha, abs=1.1e-3)


def test_the_published_times_give_the_published_pair() -> None:
    fitted = fit(davinci_log())
    assert fitted.affine.token_s == 0.081
    assert round(fitted.r_squared, 3) == 1.0
    assert fitted.mean_square_error == pytest.approx(2e-4, rel=0.15)


def test_boolq_is_the_papers_saw_tooth() -> None:
    """p = 1245: alpha(1280) x 1245 / 1280."""
    pair = published("davinci-175b")
    assert pair.seconds(1244.746667, 1, "saw_tooth") == pytest.approx(0.403 * 1244.746667 / 1280)
    assert pair.seconds(3840, 1, "saw_tooth") == pytest.approx(2 * 0.597)


@settings(deadline=None)
@given(PAIRS, st.integers(1, 3000), st.integers(0, 500))
def test_straight_lines_never_fall(pair: Affine, prompt: int, more: int) -> None:
    assert pair.prompt_seconds(prompt + more) >= pair.prompt_seconds(prompt) * (1 - 1e-12)


@settings(deadline=None)
@given(PAIRS, st.integers(1, 2500), st.integers(1, 300))
def test_a_lone_request_through_the_twin_takes_the_formula(pair: Affine, prompt: int, output: int) -> None:
    steps = AffineSteps(pair)
    first = steps.seconds(StepLoad(chunks=((0, prompt),), sampled=1))
    assert first == pair.prompt_seconds(prompt)
    ends = steps.decode_ends(1, prompt, prompt**2, first, output - 1, float("inf"))
    assert len(ends) == output - 1
    total = ends[-1] if ends else first
    assert total == pytest.approx(pair.seconds(prompt, output), rel=1e-12)


@settings(deadline=None)
@given(PAIRS, st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_chunks_add_up_to_the_prompt(pair: Affine, chunks: list[int]) -> None:
    steps, done, total = AffineSteps(pair), 0, 0.0
    for tokens in chunks:
        total += steps.seconds(StepLoad(chunks=((done, tokens),)))
        done += tokens
    assert total == pytest.approx(pair.prompt_seconds(done), rel=1e-9)


def test_decode_ends_stop_as_asked() -> None:
    steps = AffineSteps(Affine(((1, 0.1),), 0.5))
    assert steps.decode_ends(3, 10, 40, 0.0, 10, 1.2) == [0.5, 1.0, 1.5]
    assert steps.decode_ends(3, 10, 40, 0.0, 2, 9.0) == [0.5, 1.0]


@settings(deadline=None)
@given(PAIRS, st.integers(0, 2**31))
def test_a_fit_of_exact_times_gives_the_pair_back(pair: Affine, seed: int) -> None:
    prompts = [length for length, _ in pair.prompt_s]
    exact = profile(lambda p, o: pair.seconds(p, o, "saw_tooth"), prompts=prompts, outputs=(1, 2, 16, 64))
    shuffled = list(exact)
    random.Random(seed).shuffle(shuffled)
    fitted = fit(shuffled, digits=None)
    assert fitted.affine.token_s == pytest.approx(pair.token_s)
    assert fitted.affine.prompt_s == pair.prompt_s
    assert fitted.mean_square_error < 1e-18


def test_the_least_of_noisy_trials_is_kept_and_short_answers_are_left_out() -> None:
    noise, pair = random.Random(1), published("gptj-6b")
    trials = [
        Measurement(one.prompt_tokens, one.output_tokens, one.seconds + noise.expovariate(20), one.output_tokens)
        for one in profile(lambda p, o: pair.seconds(p, o), trials=40)
    ]
    trials.append(Measurement(1, 1, 0.0, asked_tokens=64))
    fitted = fit(denoise(trials))
    assert fitted.affine.token_s == pytest.approx(pair.token_s, abs=2e-3)
    assert fitted.r_squared > 0.98
    assert dict(fitted.affine.prompt_s)[512] == pytest.approx(pair.prompt_seconds(512), abs=0.02)


def test_the_variant_for_noisy_first_tokens() -> None:
    times = [Measurement(p, o, 0.2 + 0.001 * p + 0.05 * (o - 1)) for p in (10, 100) for o in (1, 8, 16)]
    noisy = [Measurement(one.prompt_tokens, one.output_tokens, one.seconds * (5 if one.output_tokens == 1 else 1))
             for one in times if one.output_tokens > 1]  # fmt: skip
    fitted = fit(noisy, prompt_from="line")
    assert fitted.affine.prompt_s == ((10, 0.21), (100, 0.3))
    assert fitted.affine.token_s == 0.05
    falling = [Measurement(10, o, 1.0 + o) for o in (2, 3)] + [Measurement(20, o, 0.5 + o) for o in (2, 3)]
    assert fit(falling, prompt_from="line").affine.prompt_s == ((10, 2.0), (20, 2.0))


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(BadInput, match="no time with one output"):
        fit([Measurement(8, 2, 1.0), Measurement(8, 4, 2.0)])
    with pytest.raises(BadInput, match="later token"):
        fit([Measurement(8, 1, 1.0)])
    with pytest.raises(BadInput, match="must rise"):
        Affine((), 0.1)


@settings(deadline=None)
@given(PAIRS)
def test_json_round_trip(pair: Affine) -> None:
    assert Affine.from_json(pair.as_json()) == pair


def test_grids_dollars_and_flop() -> None:
    assert (len(PROMPT_GRID), len(OUTPUT_GRID)) == (27, 10)
    assert dollars(1.0, 24, 4.096) == pytest.approx(0.0273067, rel=1e-5)
    assert flop(12288, 96, 1, 1) == 24 * 12288**2 * 96
