"""The learned price: what it promises of any data (bounds, monotony, honesty), and how well it learns."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.catalog.device import Device, Figure, Link
from penstock.errors import BadInput
from penstock.twin.boosted import Growth, Trees, grow
from penstock.twin.learned import Learned, Limits, Point, family_of, shape_of, train, validate
from penstock.twin.operators import Collective, DecodeAttention, Elementwise, Gemm, Operator, PrefillAttention
from penstock.twin.price import Estimate

H100_GEMM = (
    Path(__file__).parents[2].parent / "shared/data/aiconfigurator/data/h100_sxm/gemm/vllm/0.24.0/gemm_perf.parquet"
)
SMALL = Growth(trees=60, depth=5)


class Fallback:
    name = "other"

    def price(self, operator: Operator) -> Estimate:
        return Estimate(1.0, self.name, "assumed")


def figure(value: float) -> Figure:
    return Figure(value, "datasheet", "test")


DEVICE = Device(
    name="d", title="D", kind="gpu", matrix_flop_per_s={"bfloat16": figure(989.4e12), "fp8": figure(1979e12)},
    memory_bytes=figure(80e9), memory_bytes_per_s=figure(3.35e12),
    scale_up=Link(name="l", bytes_per_s=figure(450e9), latency_s=figure(1e-6)),
)  # fmt: skip
LIMITS = Limits.of(DEVICE)
WIDTHS = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096)


def synthetic(operator: Operator) -> float:
    """A device with launches, waves of tiles, and efficiencies that grow with size."""
    compute, memory, link = LIMITS.parts(operator)
    if isinstance(operator, Gemm):
        waves = -(-operator.rows // 128) * -(-operator.columns // 128) / 132
        compute *= -(-waves // 1) / max(waves, 1e-9) if waves > 1 else 1.0
        compute *= 1.3 + 40 / operator.inner**0.5
    return 4e-6 + max(compute, 1.2 * memory) + 1.1 * link


@cache
def points() -> tuple[Point, ...]:
    gemms = [Gemm("down", rows, n, k, "bfloat16") for n in WIDTHS for k in WIDTHS for rows in ROWS]
    decodes = [
        DecodeAttention(batch, batch * mean, heads, kv, 128)
        for heads, kv in ((32, 8), (64, 8), (32, 32), (16, 2), (40, 10))
        for batch in (1, 4, 16, 64) for mean in (16, 256, 1024, 4096)
    ]  # fmt: skip
    prefills = [
        PrefillAttention(tokens, past, heads, 8, 128)
        for heads in (16, 32, 48, 64, 96) for tokens in (16, 128, 512, 2048) for past in (0, 512, 4096)
    ]  # fmt: skip
    rings = [Collective("all_reduce", float(2**size), ranks) for ranks in (2, 4, 8) for size in range(10, 28, 2)]
    return tuple((operator, synthetic(operator)) for operator in (*gemms, *decodes, *prefills, *rings))


@cache
def learned() -> Learned:
    return train(points(), DEVICE, Fallback(), growth=SMALL, folds=0)


GEMMS = st.builds(
    Gemm, st.just("qkv"), st.integers(1, 20_000), st.integers(1, 40_000), st.integers(1, 40_000), st.just("bfloat16")
)
DECODES = st.builds(
    lambda batch, mean: DecodeAttention(batch, batch * mean, 32, 8, 128), st.integers(1, 300), st.integers(1, 50_000)
)
PREFILLS = st.builds(
    PrefillAttention, st.integers(1, 9000), st.integers(0, 90_000), st.just(32), st.just(8), st.just(128)
)
RINGS = st.builds(Collective, st.just("all_reduce"), st.floats(1.0, 1e10), st.integers(2, 8))


@settings(deadline=None, max_examples=60)
@given(st.one_of(GEMMS, DECODES, PREFILLS, RINGS))
def test_never_below_the_roofline(operator: Operator) -> None:
    estimate = learned().price(operator)
    assert estimate.model == "learned"
    assert estimate.seconds >= max(LIMITS.parts(operator))


@settings(deadline=None, max_examples=40)
@given(GEMMS, st.sampled_from(["rows", "inner"]))
@example(Gemm("qkv", 1, 1, 2, "bfloat16"), "inner")
def test_a_product_twice_the_size_is_never_cheaper(operator: Gemm, size: str) -> None:
    from dataclasses import replace

    twice = replace(operator, **{size: 2 * getattr(operator, size)})  # type: ignore[arg-type]
    assert learned().price(twice).seconds >= learned().price(operator).seconds


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 20_000))
def test_attention_over_twice_the_context_is_never_cheaper(batch: int, mean: int) -> None:
    short, long = (DecodeAttention(batch, batch * mean * factor, 32, 8, 128) for factor in (1, 2))
    assert learned().price(long).seconds >= learned().price(short).seconds
    chunk, later = PrefillAttention(64, mean, 32, 8, 128), PrefillAttention(64, 2 * mean, 32, 8, 128)
    assert learned().price(later).seconds >= learned().price(chunk).seconds


def test_shapes_between_those_seen_are_close() -> None:
    unseen = [
        Gemm("qkv", rows, n, k, "bfloat16") for rows in (3, 24, 100, 700, 3000) for n, k in ((2560, 5120), (5120, 3584))
    ]
    errors = [abs(learned().price(operator).seconds / synthetic(operator) - 1) for operator in unseen]
    assert float(np.median(errors)) < 0.10


def test_far_outside_it_goes_on_as_the_limits_do() -> None:
    big, bigger = (Gemm("qkv", 8192, 8192 * factor, 8192, "bfloat16") for factor in (8, 16))
    assert learned().price(bigger).seconds / learned().price(big).seconds == pytest.approx(2.0, rel=0.15)


def test_basis_tells_what_was_measured() -> None:
    assert learned().price(Gemm("qkv", 64, 4096, 4096, "bfloat16")).basis == "measured"  # trained as `down`: the same
    assert learned().price(Gemm("qkv", 65, 4096, 4096, "bfloat16")).basis == "extrapolated"


def test_what_it_has_no_data_for_falls_back_under_the_others_name() -> None:
    for operator in (Gemm("qkv", 8, 8, 8, "fp8"), Elementwise("norm", 1.0, 1.0), Collective("send", 1.0, 2)):
        assert learned().price(operator) == Estimate(1.0, "other", "assumed")


def test_same_points_same_bits() -> None:
    again = train(reversed(points()), DEVICE, Fallback(), growth=SMALL, folds=0)
    for operator, _ in points()[::97]:
        assert again.price(operator).seconds == pytest.approx(learned().price(operator).seconds, rel=1e-9)
    same = train(points(), DEVICE, Fallback(), growth=SMALL, folds=0)
    assert all(same.price(operator) == learned().price(operator) for operator, _ in points()[::97])


def test_repeats_of_an_operator_are_averaged() -> None:
    one, two = Gemm("qkv", 8, 512, 512, "bfloat16"), Gemm("down", 8, 512, 512, "bfloat16")
    model = train([(one, 1e-5), (two, 3e-5)] * 4, DEVICE, Fallback(), folds=0)
    assert model.price(one).seconds == pytest.approx(2e-5, rel=0.05)


def test_a_random_split_flatters_where_rows_share_shapes() -> None:
    """GPPerf's lesson: each shape has a time of its own, and repeats of it differ by a little."""
    chance = np.random.default_rng(3)
    repeated = []
    for n in (512, 1024, 2048, 4096, 8192):
        for k in (512, 1024, 2048, 4096):
            own = chance.uniform(1.0, 6.0)
            repeated += [(Gemm("qkv", rows, n, k, "bfloat16"), own * synthetic(Gemm("qkv", 1024, n, k, "bfloat16")))
                         for rows in range(1000, 1020)]  # fmt: skip
    (scores,) = validate(repeated, DEVICE, growth=Growth(trees=40, depth=4), folds=5).values()
    assert (scores.points, scores.shapes) == (400, 20)
    assert scores.random_r2 > 0.95 > scores.grouped_r2
    assert scores.random_error < scores.grouped_error


def test_scores_are_kept_with_the_model() -> None:
    few = [point for point in points() if isinstance(point[0], DecodeAttention)]
    model = train(few, DEVICE, Fallback(), growth=Growth(trees=20, depth=3), folds=5)
    (scores,) = model.scores.values()
    assert scores.shapes == 5
    assert 0 <= scores.random_error < 0.5


def test_a_stored_model_prices_the_same(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    learned().save(path)
    again = Learned.load(path, Fallback())
    for operator, _ in (*points()[::53], (Gemm("qkv", 77, 777, 777, "bfloat16"), 0.0)):
        assert again.price(operator) == learned().price(operator)
    assert again.limits == learned().limits


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    with pytest.raises(BadInput, match="no learned price"):
        Learned.load(path, Fallback())
    path.write_text('{"format": "other"}')
    with pytest.raises(BadInput, match="format"):
        Learned.load(path, Fallback())
    learned().save(path)
    data = json.loads(path.read_text())
    data["families"]["Gemm/bfloat16/bfloat16"]["trees"]["feature"][0][0] = 99
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match="complete binary trees"):
        Learned.load(path, Fallback())


def test_points_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadInput, match="nothing to learn"):
        train([], DEVICE, Fallback())
    with pytest.raises(BadInput, match="positive"):
        train([(Gemm("qkv", 1, 1, 1, "bfloat16"), 0.0)], DEVICE, Fallback())
    with pytest.raises(BadInput, match="too few"):
        validate([(Gemm("qkv", 1, 1, 1, "bfloat16"), 1.0)], DEVICE)


def test_names_of_families_and_shapes() -> None:
    gemm = Gemm("qkv", 5, 6, 7, "fp8")
    assert family_of(gemm) == family_of(Gemm("down", 1, 1, 1, "fp8")) == "Gemm/fp8/bfloat16"
    assert shape_of(gemm) == (6.0, 7.0)
    assert family_of(Collective("all_reduce", 1.0, 2)) != family_of(Collective("all_gather", 1.0, 2))


def test_trees_learn_a_bent_function() -> None:
    chance = np.random.default_rng(0)
    rows = chance.uniform(0, 1, (1500, 3))
    target = np.sin(6 * rows[:, 0]) + rows[:, 1] * rows[:, 2]
    trees = grow(rows[:1000], target[:1000], Growth(trees=80, depth=5))
    held = target[1000:]
    assert 1 - ((trees.predict(rows[1000:]) - held) ** 2).sum() / ((held - held.mean()) ** 2).sum() > 0.98
    again = Trees.from_json(json.loads(json.dumps(trees.as_json())), 3)
    assert np.array_equal(again.predict(rows), trees.predict(rows))


def test_trees_of_a_constant_are_that_constant() -> None:
    assert grow(np.ones((10, 2)), np.full(10, 3.5), Growth(trees=3, depth=2)).predict(np.zeros((2, 2))).tolist() == [
        3.5,
        3.5,
    ]


@pytest.mark.skipif(not H100_GEMM.exists(), reason="the shared data sets are not here")
def test_measured_products_of_an_h100() -> None:
    """Shapes held out whole are predicted with a median error of a few percent."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(H100_GEMM, columns=["gemm_dtype", "m", "n", "k", "latency"]).to_pylist()
    measured = [
        (Gemm("qkv", row["m"], row["n"], row["k"], "bfloat16"), 1e-3 * row["latency"])
        for row in table
        if row["gemm_dtype"] == "bfloat16" and row["n"] in (1024, 4096, 8192) and row["k"] in WIDTHS
    ]
    (scores,) = validate(measured, DEVICE, growth=Growth(trees=50, depth=5), folds=4).values()
    assert scores.shapes >= 20
    assert scores.grouped_error < 0.10
    assert scores.grouped_r2 > 0.90
