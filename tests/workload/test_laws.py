"""Arrivals and lengths follow the laws they name; the same seed gives the same draw."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.errors import BadInput
from penstock.workload.arrivals import SHAPES, Gamma, arrivals
from penstock.workload.lengths import MEASURED, PERCENTILES, Bootstrap, parse_lengths
from penstock.workload.plan import Workload, conversations, open_loop
from penstock.workload.trace import Trace, TraceRequest


def gaps(shape: str, rate: float, count: int = 50_000, seed: int = 0, **options: float) -> np.ndarray:
    return np.diff(arrivals(shape, rate, **options).times(count, np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("shape", "options", "cv", "tolerance"),
    [
        ("constant", {}, 0.0, 1e-6),
        ("poisson", {}, 1.0, 0.02),
        ("gamma", {"cv": 0.5}, 0.5, 0.01),
        ("gamma", {"cv": 3.0}, 3.0, 0.15),
        ("azure-conv", {}, 1.15, 0.08),
        ("azure-code", {}, 12.0, 2.0),
    ],
)
def test_each_law_has_its_mean_and_coefficient_of_variation(
    shape: str, options: dict[str, float], cv: float, tolerance: float
) -> None:
    seen = gaps(shape, 4.0, **options)
    assert (seen >= 0).all()
    assert seen.std() / seen.mean() == pytest.approx(cv, abs=tolerance)
    assert seen.mean() == pytest.approx(0.25, rel=0.12 if shape.startswith("azure") else 0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_fixes_every_time(shape: str) -> None:
    law = arrivals(shape, 2.0, cv=2.0)
    one, same, other = (law.times(500, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one == same).all()
    assert shape == "constant" or (one != other).any()
    assert one.size == 500
    assert (np.diff(one) >= 0).all()


def dispersion(times: np.ndarray, window: float) -> float:
    counts = np.histogram(times, bins=np.arange(0, times[-1], window))[0]
    return float(counts.var() / counts.mean())


def test_the_conversation_law_drifts_as_much_as_the_trace_it_is_fitted_to() -> None:
    times = arrivals("azure-conv", 5.53).times(400_000, np.random.default_rng(0))
    assert 11 < dispersion(times, 60) < 21  # the trace: 16
    assert 40 < dispersion(times, 300) < 75  # the trace: 56


def test_the_code_law_is_silent_most_of_the_time_in_bursts_of_nine_per_second() -> None:
    times = arrivals("azure-code", 8819 / 3436).times(50_000, np.random.default_rng(0))
    pauses = np.diff(times)
    silent = pauses[pauses > 5].sum() / times[-1]
    assert silent == pytest.approx(2465 / 3436, abs=0.05)
    assert (pauses < 5).sum() / (times[-1] * (1 - silent)) == pytest.approx(9.1, rel=0.1)


def test_no_request_and_one_request_are_fine_for_every_law() -> None:
    for shape in SHAPES:
        for count in (0, 1):
            assert arrivals(shape, 1.0, cv=2.0).times(count, np.random.default_rng(0)).size == count


@pytest.mark.parametrize(
    ("shape", "rate", "cv"), [("sine", 1, 1), ("poisson", 0, 1), ("gamma", 1, -1), ("gamma", float("nan"), 1)]
)
def test_a_law_that_cannot_be_is_refused_by_name(shape: str, rate: float, cv: float) -> None:
    with pytest.raises(BadInput):
        arrivals(shape, rate, cv=cv)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("output", [False, True])
def test_a_measured_law_gives_back_the_percentiles_of_its_trace(name: str, output: bool) -> None:
    law = parse_lengths(name, field="x", output=output)
    drawn = law.draw(100_000, np.random.default_rng(0))
    expected = MEASURED[name][output].tokens
    for share, tokens in zip(PERCENTILES[1:9], expected[1:9], strict=True):
        below, above = (drawn < tokens).mean(), (drawn <= tokens).mean()
        assert below - 0.01 <= share <= above + 0.01, (share, tokens)
    assert drawn.max() <= expected[-1]
    assert drawn.min() >= expected[0]


@pytest.mark.parametrize(
    ("name", "mean"), [("azure-conv", 1154.7), ("azure-code", 2047.8), ("mooncake-conversation", 12035)]
)
def test_interpolating_on_a_log_axis_keeps_the_mean_within_a_tenth(name: str, mean: float) -> None:
    drawn = parse_lengths(name, field="x", output=False).draw(200_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [("512", 512, 0), ("1.5k", 1500, 0), ("uniform:100:900", 500, 231), ("normal:1200", 1200, 360),
     ("normal:1200:0.1", 1200, 120), ("lognormal:5:0.5", 168.2, 89.6)],
)  # fmt: skip
def test_each_law_of_lengths_has_its_mean_and_deviation(text: str, mean: float, deviation: float) -> None:
    drawn = parse_lengths(text, field="x", output=False).draw(100_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert drawn.std() == pytest.approx(deviation, rel=0.02)
    assert drawn.min() >= 1


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "uniform:9:2", "normal", "normal:0", "lognormal:1", "azure", "512:3", "normal:5:x"]
)
def test_a_bad_law_of_lengths_names_the_flag_and_what_would_do(text: str) -> None:
    with pytest.raises(BadInput, match="--input-tokens") as caught:
        parse_lengths(text, field="--input-tokens", output=False)
    assert "azure-conv" in caught.value.remedy


def test_drawing_rows_keeps_input_and_output_together() -> None:
    trace = Trace("t", tuple(TraceRequest(0.0, i, 1000 - i) for i in range(1, 100)))
    drawn = Workload(rows=Bootstrap(trace)).requests(500, seed=3)
    assert all(r.prompt_tokens + r.output_tokens == 1000 for r in drawn)
    assert len({r.prompt_tokens for r in drawn}) > 50


def test_prompt_output_and_arrival_generators_do_not_disturb_one_another() -> None:
    fixed, wide = parse_lengths("8", field="x", output=False), parse_lengths("uniform:1:99", field="x", output=True)
    law = Gamma(1.0, 2.0)
    plain = open_loop(Workload(prompt=fixed, output=wide).requests(50, seed=1), law, seed=1)
    other = open_loop(Workload(prompt=wide, output=wide).requests(50, seed=1), law, seed=1)
    assert [(r.output_tokens, r.arrival_s) for r in plain] == [(r.output_tokens, r.arrival_s) for r in other]


def test_a_generated_workload_is_cut_to_the_context() -> None:
    law = parse_lengths("uniform:1:500", field="x", output=False)
    for request in Workload(prompt=law, output=law, context_tokens=300).requests(200, seed=0):
        assert request.prompt_tokens >= 1
        assert request.prompt_tokens + request.output_tokens <= 300


def test_a_turn_of_a_conversation_carries_all_that_was_said_before() -> None:
    single = tuple(TraceRequest(0.0, 10, 5) for _ in range(6))
    made = conversations(single, turns=3, context_tokens=None)
    assert [r.prompt_tokens for r in made] == [10, 25, 40, 10, 25, 40]
    assert [r.session for r in made] == [0, 0, 0, 1, 1, 1]
    assert [r.prompt_tokens for r in conversations(single, turns=3, context_tokens=40)] == [10, 25, 10, 25]
