"""What fits: conservation over devices, published and measured capacities, refusals with numbers that are right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.catalog import architectures, model_shape
from penstock.catalog.demand import kv_bytes_per_token, weight_bytes
from penstock.errors import InvalidDeployment
from penstock.twin.layout import Layout, Precision
from penstock.twin.memory import (
    Reserve,
    check_layout,
    fit,
    kv_bytes_per_token_per_device,
    weight_bytes_per_device,
)

VLLM_RUN = (
    Path(__file__).parents[3] / "shared/data/llmservingsim/bench/examples/RTX4090/Llama-3.1-8B/vllm/meta.json"
)  # fmt: skip
FP8 = Precision(weights="fp8", experts="fp8")
NAMES = st.sampled_from(sorted(architectures()))


def tensor_parallel(parts: int) -> Layout:
    return Layout(tensor_parallel=parts, moe_tensor_parallel=parts)


@given(NAMES)
def test_one_device_holds_the_model(name: str) -> None:
    shape = model_shape(name)
    assert weight_bytes_per_device(shape, Layout(), Precision()) == pytest.approx(weight_bytes(shape), rel=1e-12)
    assert kv_bytes_per_token_per_device(shape, Layout(), Precision()) == kv_bytes_per_token(shape)


@given(NAMES, st.sampled_from([2, 4, 8, 16]), st.sampled_from([1, 2, 4]))
def test_cutting_finer_never_holds_more_and_never_loses_any(name: str, parts: int, stages: int) -> None:
    shape = model_shape(name)
    assume(all(group.attention.heads % parts == 0 for group in shape.groups))
    layout = Layout(tensor_parallel=parts, moe_tensor_parallel=parts, pipeline_parallel=stages)
    coarse = Layout(tensor_parallel=parts // 2, moe_tensor_parallel=parts // 2, pipeline_parallel=stages)
    mine = weight_bytes_per_device(shape, layout, Precision())
    assert mine <= weight_bytes_per_device(shape, coarse, Precision())
    # The devices together hold each weight once at least.
    assert mine * layout.devices >= weight_bytes(shape) * (1 - 1e-12)
    token = kv_bytes_per_token_per_device(shape, layout, Precision())
    assert token * layout.devices >= kv_bytes_per_token(shape) * (1 - 1e-12)
    assert token <= kv_bytes_per_token_per_device(shape, coarse, Precision())


def test_kv_heads_are_copied_and_latents_too() -> None:
    llama, deepseek = model_shape("llama-3-70b"), model_shape("deepseek-v3")
    assert kv_bytes_per_token_per_device(llama, tensor_parallel(8), Precision()) == 327_680 / 8
    assert kv_bytes_per_token_per_device(llama, tensor_parallel(16), Precision()) == 327_680 / 8
    assert kv_bytes_per_token_per_device(deepseek, tensor_parallel(8), Precision()) == 70_272


def test_experts_are_spread_and_attention_is_copied_under_attention_dp() -> None:
    shape = model_shape("deepseek-v3")
    spread = Layout(attention_dp=8, expert_parallel=8)
    dense = weight_bytes(shape, "fp8") - shape.expert_parameters
    held = weight_bytes_per_device(shape, spread, FP8)
    assert held == pytest.approx(dense + shape.expert_parameters / 8, rel=1e-9)


def test_the_capacity_that_vllm_measured() -> None:
    """Llama-3.1-8B on an RTX 4090, vLLM 0.19: 2,588 blocks. Within 5 %."""
    if not VLLM_RUN.is_file():
        pytest.skip("the run is not here")
    run = json.loads(VLLM_RUN.read_text(encoding="utf-8"))
    cache, engine = run["kv_cache"], run["engine_kwargs"]
    reserve = Reserve(
        fraction=cache["gpu_memory_utilization"], step_tokens=engine["max_num_batched_tokens"],
        sampled=engine["max_num_seqs"],
    )  # fmt: skip
    room = fit(
        model_shape(run["model"]), Layout(), Precision(), run["hardware"]["device_total_memory_bytes"],
        block_tokens=cache["block_size"], reserve=reserve,
    )  # fmt: skip
    assert room.blocks == pytest.approx(cache["num_gpu_blocks"], rel=0.05)


def test_long_context_on_one_device() -> None:
    """Yi-34B-200K on 80 GB: one user at 50K with nothing reserved (arXiv 2405.08944), and seventeen to thirteen at 4K
    by how the weights are counted."""
    bare = Reserve(fraction=1.0, runtime_bytes=0, graph_bytes=0, step_tokens=1, sampled=0)
    room = fit(model_shape("yi-34b-200k"), Layout(), Precision(), 85e9, context=50_000, reserve=bare)
    assert room.sequences(50_000) == 1
    assert 13 <= room.sequences(4096) <= 17


@given(NAMES, st.sampled_from([1, 2, 8]), st.floats(20e9, 2e12), st.sampled_from(["bfloat16", "fp8"]))
def test_what_is_shared_out_is_what_there_is(name: str, parts: int, total: float, kv: str) -> None:
    shape = model_shape(name)
    assume(all(group.attention.heads % parts == 0 for group in shape.groups))
    try:
        room = fit(shape, tensor_parallel(parts), Precision(kv=kv), total)
    except InvalidDeployment:
        return
    used = room.weight_bytes + room.activation_bytes + room.runtime_bytes + room.kv_bytes
    assert used == pytest.approx(room.reserve.fraction * total)
    assert room.blocks * room.block_tokens * room.kv_bytes_per_token <= room.kv_bytes
    assert room.kv_tokens == room.blocks * room.block_tokens
    held = [room.sequences(context) for context in (1, 16, 17, 1000, 100_000)]
    assert held == sorted(held, reverse=True)
    assert held[0] == held[1] >= held[2] >= 0
    assert room.sequences(1000) * room.sequence_bytes(1000) <= room.kv_bytes


def test_windows_hold_more_sequences_than_their_blocks_say() -> None:
    room = fit(model_shape("gpt-oss-20b"), Layout(), Precision(experts="mxfp4"), 80e9)
    assert room.sequences(100_000) > 1.9 * room.kv_tokens / 100_000


def test_weights_that_do_not_fit_are_refused_with_numbers_and_a_remedy_that_works() -> None:
    shape = model_shape("llama-3-70b")
    with pytest.raises(InvalidDeployment) as caught:
        fit(shape, Layout(), Precision(), 80e9)
    assert caught.value.field == "layout"
    assert "131.4 GiB of weights" in caught.value.why
    found = re.search(r"tensor_parallel: (\d+)", caught.value.remedy)
    assert found is not None
    parts = int(found[1])
    assert fit(shape, tensor_parallel(parts), Precision(), 80e9).kv_bytes > 0
    with pytest.raises(InvalidDeployment):
        fit(shape, tensor_parallel(parts // 2), Precision(), 80e9)
    assert "fp8" in caught.value.remedy or "int4" in caught.value.remedy


def test_a_sequence_that_does_not_fit_is_refused_with_the_longest_that_does() -> None:
    shape, memory = model_shape("yi-34b-200k"), 80e9
    with pytest.raises(InvalidDeployment) as caught:
        fit(shape, Layout(), Precision(), memory, context=200_000)
    assert caught.value.field == "model.max_sequence_tokens"
    assert "245,760 B per token" in caught.value.why
    found = re.match(r"(\d+) or less", caught.value.remedy)
    assert found is not None
    longest = int(found[1])
    assert fit(shape, Layout(), Precision(), memory, context=longest).sequences(longest) >= 1
    with pytest.raises(InvalidDeployment):
        fit(shape, Layout(), Precision(), memory, context=longest + 1)


@pytest.mark.parametrize(
    ("name", "layout", "field"),
    [
        ("gpt2", Layout(pipeline_parallel=13), "layout.pipeline_parallel"),
        ("llama-3-8b", Layout(tensor_parallel=3), "layout.tensor_parallel"),
        ("deepseek-v3", Layout(tensor_parallel=8), "layout.expert_parallel"),
        ("mixtral-8x7b", Layout(attention_dp=16, expert_parallel=16), "layout.expert_parallel"),
    ],
)
def test_layouts_that_do_not_go_with_the_model(name: str, layout: Layout, field: str) -> None:
    with pytest.raises(InvalidDeployment) as caught:
        check_layout(model_shape(name), layout)
    assert caught.value.field == field
    assert caught.value.remedy


def test_recurrent_state_is_kept_back_from_the_blocks() -> None:
    shape = model_shape("qwen3-next-80b-a3b")
    layout = Layout(tensor_parallel=4, moe_tensor_parallel=4)
    few, many = (fit(shape, layout, Precision(), 80e9, reserve=Reserve(sampled=n)) for n in (64, 65))
    state = few.sequence_bytes(0)
    assert state > 0
    assert few.state_bytes == 64 * state
    assert many.state_bytes == 65 * state
    assert few.blocks * few.kv_bytes_per_token * few.block_tokens <= few.kv_bytes - few.state_bytes
    crowded = fit(shape, layout, Precision(), 80e9, reserve=Reserve(sampled=100_000, sampler_bytes_per_logit=0.0))
    assert crowded.blocks > 0
    plain = fit(model_shape("llama-3-8b"), Layout(), Precision(), 80e9)
    assert plain.state_bytes == 0
