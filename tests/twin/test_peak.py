"""The four limits of long-context serving: the paper's numbers, and what must hold of any ceiling."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.catalog import architectures, model_shape
from penstock.catalog.hardware_load import device
from penstock.catalog.shape import Attention, FeedForward, LayerGroup, ModelShape
from penstock.errors import BadInput
from penstock.reproduce.long_context_peak import A100_80, YI_34B
from penstock.twin.host import HostTime
from penstock.twin.layout import Layout, Precision
from penstock.twin.load import StepLoad
from penstock.twin.peak import Compression, Limits, Peak, Session
from penstock.twin.roofline import Roofline
from penstock.twin.step_graph import StepGraph
from penstock.twin.step_price import StepPrice

PEAK = Peak(shape=YI_34B, limits=A100_80)


def test_kv_of_one_token_is_the_papers_formula() -> None:
    assert PEAK.kv_bytes(1) == 2 * 60 * 8 * 128 * 2 == 245_760
    assert PEAK.kv_bytes(50_000) == 245_760 * 50_000


@pytest.mark.parametrize(("context", "gib"), [(4_000, 0.916), (50_000, 11.44), (100_000, 22.89)])
def test_kv_per_user(context: int, gib: float) -> None:
    assert PEAK.kv_bytes(context) / 2**30 == pytest.approx(gib, rel=1e-3)


def test_twenty_users_become_one() -> None:
    assert PEAK.users(4096) == pytest.approx(20, rel=0.30)
    assert PEAK.users(50_000) == 1
    assert PEAK.users(200_000) == 0


@pytest.mark.parametrize(("context", "paper"), [(4_000, 0.89), (50_000, 14.1)])
def test_prefill_with_the_papers_c(context: int, paper: float) -> None:
    assert Peak(shape=YI_34B, limits=A100_80, causal=1.0).prefill_s(context) == pytest.approx(paper, rel=0.05)


def test_prefill_with_the_exact_causal_count() -> None:
    """17.8 s: the card's own count of c = 2."""
    assert PEAK.prefill_s(50_000) == pytest.approx(17.8, rel=0.02)


@pytest.mark.parametrize(("context", "paper"), [(4_000, 8.5), (50_000, 9.8)])
def test_decode_of_a_turn(context: int, paper: float) -> None:
    assert PEAK.decode_s(250, context) == pytest.approx(paper, rel=0.03)


def test_decode_is_affine_in_the_sum_of_contexts() -> None:
    one, two, three = (PEAK.decode_s(10, 10_000, users) for users in (1, 2, 3))
    assert three - two == pytest.approx(two - one)
    assert PEAK.decode_s(10, 20_000, 1) == pytest.approx(two)


def test_switching_is_symmetric_and_free_while_all_fit() -> None:
    assert PEAK.switch_s(50_000, 50_000) == pytest.approx(1.2, rel=0.03)
    assert PEAK.switch_s(1_000, 9_000) == PEAK.switch_s(9_000, 1_000)
    assert PEAK.switch_needed_s(1, 50_000) == 0.0
    assert PEAK.switch_needed_s(2, 50_000) == PEAK.switch_s(50_000, 50_000)


def test_critical_intensity_of_an_a100() -> None:
    assert PEAK.critical_tokens == 156


@settings(deadline=None)
@given(axis=st.sampled_from(["layer", "head", "token", "hidden"]), factor=st.floats(1.0, 64.0))
def test_compression_divides_what_the_paper_says(axis: str, factor: float) -> None:
    squeezed = Peak(shape=YI_34B, limits=A100_80, compression=Compression(**{axis: factor}))
    assert squeezed.kv_bytes(50_000) == pytest.approx(PEAK.kv_bytes(50_000) / factor)
    assert squeezed.switch_s(50_000, 0) == pytest.approx(PEAK.switch_s(50_000, 0) / factor)
    assert squeezed.users(50_000) >= PEAK.users(50_000)
    spared = factor if axis == "layer" else 1.0
    assert squeezed.prefill_s(50_000) == pytest.approx(PEAK.prefill_s(50_000) / spared)


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(BadInput, match=r"kv_compress\.token"):
        Compression(token=0.5)


@settings(deadline=None)
@given(context=st.integers(1, 60_000), more=st.integers(0, 60_000), devices=st.integers(1, 16))
def test_longer_contexts_never_help(context: int, more: int, devices: int) -> None:
    limits = Limits(
        flop_per_s=devices * 312e12, memory_bytes=devices * 80e9, memory_bytes_per_s=devices * 2e12,
        host_bytes_per_s=devices * 20e9,
    )  # fmt: skip
    peak = Peak(shape=YI_34B, limits=limits)
    short, long = Session(context=context, turns=3, think_s=5), Session(context=context + more, turns=3, think_s=5)
    assert peak.users(context + more) <= peak.users(context)
    assert peak.prefill_s(context + more) >= peak.prefill_s(context)
    assert peak.step_s(2, context + more) >= peak.step_s(2, context)
    assert peak.requests_per_s(context + more, 50)[0] <= peak.requests_per_s(context, 50)[0] * (1 + 1e-9)
    assert peak.sessions(long).per_s <= peak.sessions(short).per_s * (1 + 1e-9)


def test_two_devices_hold_more_than_twice_the_users() -> None:
    """Weights are held once: concurrency grows super-linearly."""
    two = Limits(flop_per_s=624e12, memory_bytes=160 * 2**30, memory_bytes_per_s=4e12)
    assert Peak(shape=YI_34B, limits=two).users(4096) > 2 * PEAK.users(4096)


def test_windows_cap_the_cache_and_the_square() -> None:
    def shaped(window: int | None) -> Peak:
        attention = Attention(heads=8, kv_heads=8, head_dim=64, window=window)
        group = LayerGroup(count=2, attention=attention, feed_forward=FeedForward(intermediate=1024))
        return Peak(shape=ModelShape(name="", hidden=512, vocab=1000, groups=(group,)), limits=A100_80)

    assert shaped(100).kv_bytes(5_000) == shaped(None).kv_bytes(100)
    assert shaped(100).prefill_s(100) == shaped(None).prefill_s(100)
    assert shaped(100).prefill_s(5_000) < shaped(None).prefill_s(5_000)
    step = shaped(100).prefill_s(5_001) - shaped(100).prefill_s(5_000)
    assert step == pytest.approx(shaped(100).prefill_s(9_001) - shaped(100).prefill_s(9_000), rel=1e-6)


def test_a_mixture_is_read_by_its_chosen_experts_and_held_whole() -> None:
    mlp = FeedForward(intermediate=14_336, experts=8, experts_per_token=2)
    group = LayerGroup(count=32, attention=Attention(heads=32, kv_heads=8, head_dim=128), feed_forward=mlp)
    shape = ModelShape(name="", hidden=4096, vocab=32_000, groups=(group,))
    half = Peak(shape=shape, limits=A100_80, experts="int8")
    whole = Peak(shape=shape, limits=A100_80)
    assert whole.weight_bytes == 2 * shape.parameters
    assert whole.active_bytes == 2 * shape.active_parameters
    assert whole.weight_bytes - half.weight_bytes == shape.expert_parameters
    assert whole.active_bytes - half.active_bytes == shape.expert_parameters * 2 / 8


def test_limits_of_devices_are_their_datasheets_times_their_number() -> None:
    one, eight = (Limits.of(device("h100-sxm"), "fp8", devices=count) for count in (1, 8))
    assert one.flop_per_s == device("h100-sxm").matrix_flop_per_s["fp8"].value
    assert eight.flop_per_s == 8 * one.flop_per_s
    assert eight.memory_bytes == 8 * one.memory_bytes
    assert one.host_bytes_per_s is not None
    assert eight.host_bytes_per_s == 8 * one.host_bytes_per_s


PRICED = [name for name in architectures() if all(g.attention.indexer is None for g in model_shape(name).groups)]
"""The step graph leaves out the indexer of sparse attention, whose weights the ceiling counts."""


@pytest.mark.parametrize("name", PRICED)
def test_nothing_the_ideal_roofline_prices_is_faster(name: str) -> None:
    """The ceiling holds for every architecture of the catalogue, prefill and decode, whatever the batch."""
    part, shape = device("h100-sxm"), model_shape(name)
    steps = StepPrice(StepGraph(shape, Layout(), Precision()), Roofline(part, ideal=True), HostTime())
    peak = Peak(shape=shape, limits=Limits.of(part))
    for tokens in (64, 1000, 9000):
        whole = steps.seconds(StepLoad(chunks=((0, tokens),), sampled=1))
        assert peak.prefill_s(tokens) <= whole * (1 + 1e-9), tokens
        later = steps.seconds(StepLoad(chunks=((tokens, 640),), sampled=1))
        assert peak.prefill_s(tokens + 640, cached=tokens) <= later * (1 + 1e-9), tokens
    for batch in (1, 7, 64):
        for context in (10, 1000, 20_000):
            load = StepLoad(decoding=batch, decode_context=batch * (context - 1), sampled=batch)
            assert peak.step_s(batch, context) <= steps.seconds(load) * (1 + 5e-3), (batch, context)


def test_sparse_attention_holds_its_whole_cache_and_reads_its_index_and_the_best() -> None:
    peak = Peak(shape=model_shape("deepseek-v3.2"), limits=A100_80)
    index = peak.shape.groups[0].attention.indexer
    assert index is not None
    assert peak.read_bytes(index.top_k) == peak.kv_bytes(index.top_k)
    grown = peak.read_bytes(index.top_k + 100) - peak.read_bytes(index.top_k)
    assert grown == pytest.approx(100 * 2 * index.head_dim * peak.shape.layers)
    assert peak.kv_bytes(50_000) > peak.read_bytes(50_000)
