"""The roofline: by hand on known devices, types that a device lacks, floors, and never faster than the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.catalog.hardware_load import device, devices
from penstock.catalog.shape import DTYPE_BYTES
from penstock.twin.operators import Collective, DecodeAttention, Elementwise, Experts, Gemm, PrefillAttention
from penstock.twin.price import OperatorPrice
from penstock.twin.roofline import Roofline, matrix_rate, ridge_point


def test_bound_by_compute_and_bound_by_memory() -> None:
    ideal = Roofline(device("h100"), ideal=True)
    big = Gemm("gate_up", rows=8192, columns=8192, inner=8192, dtype="bfloat16")
    assert ideal.price(big).seconds == pytest.approx(2 * 8192**3 / 989.4e12)
    row = Gemm("gate_up", rows=1, columns=8192, inner=8192, dtype="bfloat16")
    assert ideal.price(row).seconds == pytest.approx(row.work().bytes / 3.35e12)
    real = Roofline(device("h100"))
    assert real.price(big).seconds == pytest.approx(2 * 8192**3 / (989.4e12 * 0.86))
    assert real.price(row).seconds == pytest.approx(row.work().bytes / (3.35e12 * 0.897))
    assert real.price(row).basis == "assumed"
    assert real.price(row).model == "roofline"


def test_measured_rates_of_a_type_replace_peak_times_efficiency() -> None:
    assert matrix_rate(device("h100"), "fp8") == 1248e12
    assert matrix_rate(device("h100"), "fp8", ideal=True) == 1978.9e12


@pytest.mark.parametrize(
    ("name", "dtype", "as_if"),
    [
        ("v100-sxm-32", "bfloat16", "float16"), ("a100", "fp8", "bfloat16"), ("h100", "nvfp4", "bfloat16"),
        ("h100", "int4", "bfloat16"), ("a100", "int4", "bfloat16"), ("rtx-4090", "fp8_block", "fp8"),
        ("b300", "nvfp4", "nvfp4"), ("t4", "fp8", "float16"), ("tpu-v5e", "fp8", "bfloat16"),
    ],
)  # fmt: skip
def test_a_type_that_is_missing_runs_as_a_wider_one(name: str, dtype: str, as_if: str) -> None:
    peak = device(name).matrix_flop_per_s[as_if].value
    assert matrix_rate(device(name), dtype, ideal=True) == peak


def test_kernels_for_older_instructions_reach_less() -> None:
    """Hopper dissection, table of tensor cores: mma gives 0.68 of wgmma in FP16 on an H800 PCIe."""
    paths = device("h800-pcie").kernel_paths
    ratio = paths["mma"]["float16"].value / paths["wgmma"]["float16"].value
    assert ratio == pytest.approx(0.678, abs=0.001)
    assert matrix_rate(device("h800-pcie"), "bfloat16", kernel_path="mma") == 494.4e12
    assert matrix_rate(device("h800-pcie"), "bfloat16", kernel_path="wgmma") < 729.3e12  # the power limit first


def test_almost_no_work_takes_a_kernel() -> None:
    price = Roofline(device("h100"))
    tiny = Elementwise("norm", read_bytes=64, written_bytes=64)
    assert price.price(tiny).seconds == 2.45e-6
    assert price.price(Elementwise("norm", 0, 0)).seconds == 0.0
    assert Roofline(device("h100"), ideal=True).price(tiny).seconds == pytest.approx(128 / 3.35e12)


def test_swaps_go_over_the_host_link_once() -> None:
    swap = Elementwise("swap", read_bytes=1e9, written_bytes=1e9)
    assert Roofline(device("h100")).price(swap).seconds == pytest.approx(10e-6 + 1e9 / (63.015e9 * 0.85))


def test_collectives_go_over_links() -> None:
    price = Roofline(device("h100"))
    assert price.price(Collective("all_reduce", 1e6, 1)).seconds == 0.0
    assert price.price(Collective("send", 1e8, 2, nodes=2)).seconds == pytest.approx(5e-6 + 1e8 / (50e9 * 0.9))
    assert price.price(Collective("send", 1e8, 2)).seconds == pytest.approx(0.8e-6 + 1e8 / (450e9 * 0.78))


operators = st.one_of(
    st.builds(
        Gemm, kind=st.just("qkv"), rows=st.integers(1, 8192), columns=st.integers(1, 16384),
        inner=st.integers(1, 16384), dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    ),
    st.builds(
        PrefillAttention, tokens=st.integers(1, 8192), past=st.integers(0, 8192), heads=st.just(32),
        kv_heads=st.sampled_from([1, 8, 32]), head_dim=st.just(128),
    ),
    st.builds(
        DecodeAttention, sequences=st.integers(1, 256), context=st.integers(256, 10**6), heads=st.just(32),
        kv_heads=st.sampled_from([1, 8, 32]), head_dim=st.just(128),
    ),
    st.builds(
        Experts, tokens=st.integers(1, 4096), hidden=st.just(4096), intermediate=st.just(1536), experts=st.just(128),
        experts_per_token=st.just(8), dtype=st.sampled_from(["bfloat16", "fp8", "nvfp4"]),
    ),
)  # fmt: skip


@given(operators, st.sampled_from(devices()))
def test_nothing_beats_the_limit(operator: Gemm, name: str) -> None:
    found = device(name)
    price: OperatorPrice = Roofline(found)
    limit = Roofline(found, ideal=True).price(operator).seconds
    assert price.price(operator).seconds >= limit > 0.0
    work = operator.work()
    fastest = max(figure.value for figure in found.matrix_flop_per_s.values())
    assert limit >= max(work.flop / fastest, work.bytes / found.memory_bytes_per_s.value) * (1 - 1e-12)


def test_ridge_points() -> None:
    assert ridge_point(device("h100"), "bfloat16") == pytest.approx(295.3, abs=0.1)
    assert ridge_point(device("tpu-v5e"), "bfloat16") == pytest.approx(240.5, abs=0.1)  # scaling-book: 240
