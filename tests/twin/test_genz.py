"""GenZ's price: its public golden numbers to the last digit, and what must hold of any of its kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.catalog import model_shape
from penstock.catalog.device import Device, Figure, Link
from penstock.errors import BadInput
from penstock.reproduce.genz import DECODE_MS, GOLDEN, GPT2_MS, PREFILL_MS, operator_ms
from penstock.twin.genz import Cost, Genz, HeadProduct, Platform
from penstock.twin.genz_pass import Cut, chunked, decode, expected_tokens, micro_batch, nodes_needed, prefill
from penstock.twin.operators import (
    Collective,
    DecodeAttention,
    Elementwise,
    Experts,
    Gemm,
    LatentDecode,
    LatentPrefill,
    PrefillAttention,
)

LLAMA = model_shape("llama-2-7b")
MIXTRAL = model_shape("mixtral-8x7b")
GH200 = Genz(Platform.table(2000, 1e9, 4900, 25, compute_efficiency=0.8, memory_efficiency=0.8))


@pytest.mark.parametrize(("name", "golden"), PREFILL_MS.items())
def test_golden_prefill(name: str, golden: float) -> None:
    assert operator_ms(prefill(LLAMA, 1024), GOLDEN)[name] == pytest.approx(golden, rel=1e-9)


@pytest.mark.parametrize(("name", "golden"), DECODE_MS.items())
def test_golden_decode(name: str, golden: float) -> None:
    assert operator_ms(decode(LLAMA, 1024, 32), GOLDEN)[name] == pytest.approx(golden, rel=1e-9)


@pytest.mark.parametrize(("tp", "golden"), GPT2_MS.items())
def test_golden_gpt2(tp: int, golden: float) -> None:
    one = prefill(model_shape("gpt2"), 4096, cut=Cut(tp=tp), embeddings=False)
    assert 1e3 * one.seconds(GOLDEN) == pytest.approx(golden, rel=1e-12)
    if tp == 4:
        assert 1e3 * one.link_seconds(GOLDEN) == pytest.approx(4.48275, rel=1e-12)


def test_golden_mixtral() -> None:
    """tests/golden/mixtral_8x7b_*_on_GH200.csv: 2,000 TFLOP/s, 4,900 GiB/s."""
    ours = operator_ms(prefill(MIXTRAL, 1024), GH200)
    assert ours["up+gate"] == pytest.approx(0.47482860331632654, rel=1e-12)
    assert ours["down"] == pytest.approx(0.23766342474489796, rel=1e-12)
    assert ours["gate"] == pytest.approx(0.002012447435028699, rel=1e-12)
    assert ours["logit"] == pytest.approx(0.006831508645124717, rel=1e-12)
    ours = operator_ms(decode(MIXTRAL, 1024, 32), GH200)
    assert ours["up+gate"] == pytest.approx(0.1116150901431129, rel=1e-12)
    assert ours["down"] == pytest.approx(0.055807809981088786, rel=1e-12)
    assert ours["logit suf"] == pytest.approx(1.623246675175604e-05, rel=1e-12)


def test_golden_all_reduce() -> None:
    ring = Genz(Platform.table(1, 1, 1, 450))
    assert 1e6 * ring.collective(Collective("all_reduce", 8 * 2**20, 8)).seconds == pytest.approx(49.38, abs=0.01)


def test_other_collectives_follow_their_forms() -> None:
    ring, size, bandwidth = Genz(Platform.table(1, 1, 1, 100)), 1e6, 100 * 2**30
    for kind in ("all_gather", "all_to_all", "reduce_scatter"):
        assert ring.collective(Collective(kind, size, 4)).seconds == pytest.approx(
            5e-6 + 3e-6 + 0.75 * size / bandwidth
        )
    assert ring.collective(Collective("send", size, 2)).seconds == pytest.approx(1e-6 + size / bandwidth)
    assert ring.collective(Collective("all_reduce", size, 1)) == Cost()
    assert ring.collective(Collective("all_reduce", 0.0, 8)) == Cost()


@settings(deadline=None)
@given(faster=st.floats(1.0, 50.0), batch=st.integers(1, 64), which=st.sampled_from(["flop_per_s", "memory_bytes_per_s",
                                                                                     "link_bytes_per_s"]))  # fmt: skip
def test_faster_hardware_is_never_slower(faster: float, batch: int, which: str) -> None:
    base = Platform.table(300, 80, 1200, 50)
    better = replace(base, **{which: faster * getattr(base, which)})
    for one in (prefill(LLAMA, 256, batch, Cut(tp=4)), decode(LLAMA, 512, 8, batch, Cut(tp=4))):
        assert one.seconds(Genz(better)) <= one.seconds(Genz(base)) * (1 + 1e-12)


@pytest.mark.parametrize("name", ["llama-2-7b", "mixtral-8x7b", "llama-3.1-70b"])
def test_one_chip_talks_to_nobody(name: str) -> None:
    shape = model_shape(name)
    for one in (prefill(shape, 128), decode(shape, 128), chunked(shape, [(0, 64)], [100])):
        assert one.link_seconds(GOLDEN) == 0.0


@pytest.mark.parametrize("cut", [Cut(tp=2), Cut(tp=8), Cut(tp=4, ep=2), Cut(ep=8), Cut(tp=2, pp=4)])
def test_shards_add_up_to_the_model(cut: Cut) -> None:
    alone = decode(MIXTRAL, 1024)
    cut_up = decode(MIXTRAL, 1024, cut=cut)
    gates = 32 * MIXTRAL.hidden * 8 * 2  # held by all experts' chips, cut over tp only
    assert cut_up.weight_bytes * cut.tp * cut.ep - gates * (cut.ep - 1) == pytest.approx(alone.weight_bytes)
    assert cut_up.kv_bytes * min(8, cut.tp * cut.ep) == pytest.approx(alone.kv_bytes)


def test_weights_of_a_dense_model_are_its_matrices() -> None:
    norms = LLAMA.other_parameters
    assert prefill(LLAMA, 16).weight_bytes == 2 * (LLAMA.parameters - norms)


def test_a_pipeline_takes_the_sum_of_its_stages() -> None:
    whole, piped = prefill(LLAMA, 512), prefill(LLAMA, 512, cut=Cut(pp=4))
    sends = 3 * GOLDEN.collective(Collective("send", 512 * 4096 * 2.0, 2)).seconds
    assert piped.seconds(GOLDEN) == pytest.approx(whole.seconds(GOLDEN) + sends)
    assert micro_batch(10, Cut(pp=4)) == 2
    assert micro_batch(2, Cut(pp=4)) == 1
    assert micro_batch(10, Cut()) == 10


def test_a_chunk_of_everything_costs_what_prefill_does_but_for_residency() -> None:
    """Same products; a chunk's QKV and output rows stay on the chip."""
    macs = {line.name: one.cost(line, GOLDEN).compute_s for one in (prefill(LLAMA, 256),) for line in one.lines}
    chunk = chunked(LLAMA, [(0, 256)])
    assert chunk.cost(chunk.lines[1], GOLDEN).compute_s == macs["QKV"]
    named = {line.name: chunk.cost(line, GOLDEN).compute_s for line in chunk.lines}
    assert named["logit pre"] == macs["logit"]


def test_chunked_decodes_in_their_three_forms() -> None:
    single = chunked(LLAMA, [], [1000, 1000])
    pair = chunked(LLAMA, [], [(2, 1000)])
    assert pair.kv_bytes == single.kv_bytes
    assert sum(line.operator.rows for line in pair.lines if line.name == "QKV") == 2
    beams = chunked(LLAMA, [], [(4, 4, 1000, 10)])
    assert beams.kv_bytes == pytest.approx(single.kv_bytes / 2 * 1010 / 1000)


def test_beams_share_the_prompt() -> None:
    alone, beams = decode(LLAMA, 1000, 10, batch=8), decode(LLAMA, 1000, 10, batch=8, beams=4)
    assert alone.kv_bytes / beams.kv_bytes == pytest.approx((8 * 1010) / (2 * 1000 + 8 * 10))


def test_the_papers_experts_against_the_expected_ones() -> None:
    """One token: alike. A large batch wakes all, and GenZ is low by experts / K on expert weights."""
    one = [decode(MIXTRAL, 128, experts=rule).seconds(GH200) for rule in ("paper", "expected")]
    assert one[0] == pytest.approx(one[1])
    many = [
        operator_ms(decode(MIXTRAL, 128, batch=256, experts=rule), GH200)["up+gate"] for rule in ("paper", "expected")
    ]
    assert 3.5 < many[1] / many[0] <= 4.0
    held = {rule: decode(MIXTRAL, 128, batch=9, experts=rule).weight_bytes for rule in ("paper", "expected", 1.5)}
    assert len({round(held[rule] / 1e7) for rule in held}) == 1


def test_memory_fits_or_says_what_is_missing_or_is_offloaded() -> None:
    small = Platform.table(312, 10, 1600, 150)
    one = decode(LLAMA, 1024)
    assert one.fitted(Platform.table(312, 40, 1600, 150)) == Platform.table(312, 40, 1600, 150)
    with pytest.raises(BadInput, match=r"need 13\.\d GB a chip.*2 chips, or offload"):
        one.fitted(small)
    need, have = one.weight_bytes + one.kv_bytes, small.memory_bytes
    slowed = one.fitted(small, offload=True)
    assert slowed.memory_bytes_per_s == need / ((need - have) / small.offload_bytes_per_s)
    assert nodes_needed(1.0, 10.0) == 1


@settings(deadline=None)
@given(accept=st.floats(0.0, 1.0), count=st.integers(1, 32))
def test_expected_tokens_equals_its_long_form(accept: float, count: int) -> None:
    """GenZ's own sum: 1 + sum over k < N of k x^k (1 - x) + N x^N."""
    long = 1 + sum(k * accept**k * (1 - accept) for k in range(count)) + count * accept**count
    assert expected_tokens(count, accept) == pytest.approx(min(count, long), rel=1e-9)


def test_energy_is_a_fraction_of_the_peak() -> None:
    platform = Platform.table(300, 80, 1200, 50)
    idle, busy = Genz(platform).joules(Cost()), Genz(platform).joules(Cost(1.0, 1.0, 0.0))
    assert (idle, busy) == (0.0, pytest.approx(900.0))
    one = prefill(LLAMA, 512)
    watts = one.joules(Genz(platform)) / one.seconds(Genz(platform))
    assert 300.0 < watts < 1000.0


def test_it_prices_the_operators_of_the_house() -> None:
    chunk = GOLDEN.price(PrefillAttention(1024, 0, 32, 32, 128))
    assert 1e3 * chunk.seconds == pytest.approx(2 * PREFILL_MS["logit"], rel=1e-9)
    step = GOLDEN.price(DecodeAttention(1, 1024, 32, 32, 128))
    assert 1e3 * step.seconds == pytest.approx(2 * DECODE_MS["logit pre"], rel=1e-9)
    gemm = GOLDEN.price(Gemm("qkv", 1024, 12288, 4096, "bfloat16"))
    assert 1e3 * gemm.seconds == pytest.approx(PREFILL_MS["QKV"], rel=1e-9)
    assert (gemm.model, gemm.basis) == ("genz", "assumed")
    assert GOLDEN.price(Elementwise("norm", 1e6, 1e6)).seconds == 0.0
    experts = Experts(64, 4096, 14336, 8, 2)
    assert GOLDEN.price(experts).seconds > GOLDEN.price(replace(experts, tokens=1)).seconds
    assert GOLDEN.price(LatentDecode(4, 4000, 128, 512, 64)).seconds > 0
    assert GOLDEN.price(LatentPrefill(100, 0, 128, 512, 64, 128, 128)).seconds > 0
    assert GOLDEN.price(Collective("all_reduce", 1e6, 4)).joules > 0


@settings(deadline=None)
@given(rows=st.integers(1, 500), keys=st.integers(1, 5000))
def test_both_halves_of_attention_do_the_same_work(rows: int, keys: int) -> None:
    logit, attend = (HeadProduct(part, 2, 8, 2, rows, keys, 64).product() for part in ("logit", "attend"))
    assert logit.macs == attend.macs == 2 * 8 * rows * keys * 64
    assert (logit.a, logit.w, logit.out) == (attend.out, attend.w, attend.a)


def test_a_device_of_the_catalogue_is_taken_in_si() -> None:
    def figure(value: float) -> Figure:
        return Figure(value, "datasheet", "test")

    parts = {"matrix_flop_per_s": {"bfloat16": figure(312e12)}, "memory_bytes": figure(80e9),
             "memory_bytes_per_s": figure(2e12)}  # fmt: skip
    bare = Platform.of(Device(name="d", title="D", kind="gpu", **parts))
    assert Genz(bare).collective(Collective("all_reduce", 1.0, 2)).seconds == float("inf")
    link = Link(name="x", bytes_per_s=figure(3e11), latency_s=figure(2e-6))
    linked = Device(name="d", title="D", kind="gpu", scale_up=link, **parts)
    assert Platform.of(linked, 0.5).link_latency_s == 2e-6
    assert Platform.of(linked, 0.5).memory_bytes_per_s == 2e12
