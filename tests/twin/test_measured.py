"""Prices from operator databases: exact at measured points, between neighbours elsewhere, and honest about which."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidDeployment
from penstock.twin.measured import Database, Measured
from penstock.twin.measured.curves import Curve, Products, Surface
from penstock.twin.operators import (
    Collective,
    DecodeAttention,
    Elementwise,
    Experts,
    Gemm,
    Operator,
    PrefillAttention,
)
from penstock.twin.price import Estimate

pyarrow = pytest.importorskip("pyarrow")

DATA = Path(__file__).parents[3] / "shared" / "data" / "aiconfigurator"


class Assumed:
    """A fallback that is easy to recognise."""

    name = "assumed"

    def price(self, operator: Operator) -> Estimate:
        return Estimate(123.0, self.name, "assumed")


def write(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    """One operator file in the layout of the databases."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    pq.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up GPU whose products take 1 us a row plus 1 ns per weight, and whose attention takes 1 ns a token."""
    root = tmp_path_factory.mktemp("systems")
    card = root / "data" / "card"
    write(
        card / "gemm" / "vllm" / "1.0", "gemm_perf",
        [
            {"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": (m * 1e-6 + n * k * 1e-9) * 1e3}
            for m, n, k in itertools.product((1, 2, 8, 64), (64, 128, 1024), (64, 256))
        ],
    )  # fmt: skip
    base = {"num_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "window_size": 0, "attn_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16"}  # fmt: skip
    write(
        card / "attention" / "vllm" / "1.0", "generation_attention_perf",
        [
            {**base, "batch_size": b, "isl": 1, "step": step, "latency": b * (step + 1) * 1e-9 * 1e3}
            for b, step in itertools.product((1, 4, 16), (15, 255, 4095))
        ],
    )  # fmt: skip
    write(
        card / "moe" / "vllm" / "0.9", "moe_perf",
        [
            {"moe_dtype": "bfloat16", "num_tokens": t, "hidden_size": 64, "inter_size": 32, "topk": 2,
             "num_experts": 8, "moe_tp_size": 1, "moe_ep_size": 1, "distribution": d, "latency": t * scale}
            for t, (d, scale) in itertools.product((1, 16, 256), (("balanced", 1e-3), ("power_law_1.2", 2e-3)))
        ],
    )  # fmt: skip
    write(
        card / "comm" / "vllm" / "1.0", "custom_allreduce_perf",
        [
            {"num_gpus": 2, "message_size": size, "latency": size * 1e-6 * slow, "backend": f"vllm_{how}"}
            for size, (how, slow) in itertools.product((128, 1024, 65536), (("eager", 5), ("graph", 1)))
        ],
    )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def price(folder: Path) -> Measured:
    return Measured(Database("card", "vllm", folder=folder), Assumed())


@given(
    st.dictionaries(st.integers(1, 10**6), st.floats(1e-7, 1.0), min_size=1, max_size=20),
    st.floats(0.5, 2e6),
    st.booleans(),
)
def test_a_curve_passes_its_points_and_stays_between_neighbours(points: dict[int, float], x: float, log: bool) -> None:
    curve = Curve([(float(key), value) for key, value in points.items()], log=log)
    for key, value in points.items():
        assert curve.at(key) == (pytest.approx(value), True)
    seconds, inside = curve.at(x)
    xs = sorted(points)
    if xs[0] <= x <= xs[-1]:
        below, above = max(k for k in xs if k <= x), min(k for k in xs if k >= x)
        assert inside
        assert min(points[below], points[above]) * 0.999 <= seconds <= max(points[below], points[above]) * 1.001
    else:
        assert not inside
        assert seconds >= (points[xs[0]] if x < xs[0] else points[xs[-1]]) * 0.999


def test_a_steep_curve_stays_a_number_far_beyond_its_points() -> None:
    steep = Curve([(1.0, 1e-9), (1.0001, 1.0)], log=True)
    seconds, inside = steep.at(1e6)
    assert 1.0 < seconds < float("inf")
    assert not inside


def test_of_two_kernels_for_one_point_the_faster_counts() -> None:
    assert Curve([(1, 3.0), (1, 2.0)]).at(1) == (2.0, True)


@given(st.floats(1, 16), st.floats(16, 4096))
def test_a_surface_is_exact_for_what_is_linear_in_each_axis(first: float, second: float) -> None:
    surface = Surface([(a, b, 1e-6 + a * b * 1e-9) for a in (1, 4, 16) for b in (16, 256, 4096)])
    assert surface.at(first, second) == (pytest.approx(1e-6 + first * second * 1e-9), True)


def test_a_product_that_did_not_fit_counts_as_its_nearest_in_proportion() -> None:
    products = Products({(n, k): Curve([(1, n * k * 1e-9)]) for n, k in ((64, 64), (64, 128), (128, 64))})
    assert products.at(1, 128, 128) == (pytest.approx(128 * 128e-9), False)
    assert products.at(1, 64, 96) == (pytest.approx(64 * 96e-9), True)


def test_products_are_exact_where_measured_and_bilinear_between(price: Measured) -> None:
    for rows, columns, inner in ((8, 128, 64), (5, 500, 100), (64, 1024, 256)):
        found = price.price(Gemm("qkv", rows, columns, inner, "bfloat16"))
        assert found == Estimate(pytest.approx(rows * 1e-6 + columns * inner * 1e-9), "measured", "measured")


def test_outside_the_points_or_in_another_type_it_is_an_extrapolation(price: Measured) -> None:
    assert price.price(Gemm("lm_head", 8, 4096, 256, "bfloat16")).basis == "extrapolated"
    assert price.price(Gemm("qkv", 128, 128, 64, "bfloat16")).basis == "extrapolated"
    assert price.price(DecodeAttention(4, 4 * 100, 8, 2, 64, kv_dtype="bfloat16")).basis == "measured"
    assert price.price(DecodeAttention(4, 4 * 10000, 8, 2, 64)).basis == "extrapolated"
    other = price.price(DecodeAttention(4, 4 * 100, 16, 4, 64))
    assert (other.basis, other.seconds) == ("extrapolated", pytest.approx(2 * 400e-9))


def test_what_is_in_no_file_goes_to_the_fallback(price: Measured) -> None:
    for operator in (
        Elementwise("norm", 1e3, 1e3),
        PrefillAttention(64, 0, 8, 2, 64),
        Collective("all_reduce", 1e3, 16),
        Collective("all_reduce", 1e3, 2, nodes=2),
        Gemm("qkv", 8, 128, 64, "nvfp4"),
    ):
        assert price.price(operator) == Estimate(123.0, "assumed", "assumed")


def test_experts_have_the_skew_of_real_routing_and_scale_from_the_nearest_shape(price: Measured) -> None:
    assert price.price(Experts(16, 64, 32, 8, 2)) == Estimate(pytest.approx(16 * 2e-6), "measured", "measured")
    for tokens in (1, 16, 200):  # the same factor whatever is asked first
        wider = price.price(Experts(tokens, 64, 64, 8, 2))
        assert wider == Estimate(pytest.approx(2 * tokens * 2e-6), "measured", "extrapolated")


def test_collectives_are_those_of_captured_graphs_by_bytes(price: Measured) -> None:
    found = price.price(Collective("all_reduce", 2 * 1024, 2))
    assert found == Estimate(pytest.approx(1024e-9), "measured", "measured")


def test_an_unknown_system_or_engine_names_those_there_are(folder: Path) -> None:
    with pytest.raises(InvalidDeployment, match="one of card"):
        Database("cart", "vllm", folder=folder)
    with pytest.raises(InvalidDeployment, match="vllm, sglang, trtllm"):
        Database("card", "tgi", folder=folder)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidDeployment, match=r"pip install 'penstock\[measured\]'"):
        Database("h100_sxm")


def test_the_newest_collection_answers_first(folder: Path) -> None:
    names = ["1.3.0rc20", "1.3.0rc23", "1.2.0", "1.3.0", "0.9"]
    for name in names:
        (folder / "data" / "card" / "gemm" / "trtllm" / name).mkdir(parents=True)
        (folder / "data" / "card" / "gemm" / "trtllm" / name / "gemm_perf.parquet").touch()
    found = [path.parent.name for path in Database("card", "trtllm", "1.2.0", folder).files("gemm_perf")]
    assert found == ["1.2.0", "1.3.0", "1.3.0rc23", "1.3.0rc20", "0.9"]


def test_another_engines_faster_kernels_count_only_for_batches_that_are_captured(tmp_path: Path) -> None:
    for engine, microseconds in (("vllm", 170.0), ("sglang", 10.0)):
        rows = [{"gemm_dtype": "bfloat16", "m": m, "n": 64, "k": 64, "latency": microseconds * 1e-3}
                for m in (1, 512, 1024)]  # fmt: skip
        write(tmp_path / "data" / "card" / "gemm" / engine / "1.0", "gemm_perf", rows)
    price = Measured(Database("card", "vllm", folder=tmp_path), Assumed())
    own = Measured(Database("card", "vllm", folder=tmp_path), Assumed(), kernels="own")
    assert price.price(Gemm("qkv", 512, 64, 64, "bfloat16")) == Estimate(
        pytest.approx(10e-6), "measured", "extrapolated"
    )
    assert own.price(Gemm("qkv", 512, 64, 64, "bfloat16")).seconds == pytest.approx(170e-6)
    assert price.price(Gemm("qkv", 1024, 64, 64, "bfloat16")) == Estimate(pytest.approx(170e-6), "measured", "measured")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the measured data beside the repository")
def test_real_measurements_lie_where_hardware_allows() -> None:
    """H100 SXM: 989 TFLOP/s in bf16, 3.35 TB/s."""
    price = Measured(Database("h100_sxm", "vllm", folder=DATA), Assumed())
    large = Gemm("gate_up", 8192, 8192, 8192, "bfloat16")
    assert 0.5 < large.work().flop / 989e12 / price.price(large).seconds < 1.0
    small = Gemm("gate_up", 16, 16384, 8192, "bfloat16")
    assert 0.5 < small.work().bytes / 3.35e12 / price.price(small).seconds < 1.0
    decode = DecodeAttention(64, 64 * 4096, 32, 8, 128)
    assert 0.5 < decode.work().bytes / 3.35e12 / price.price(decode).seconds < 1.0
