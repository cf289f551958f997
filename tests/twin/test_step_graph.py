"""A step's operators: their work adds up to the model's, however the model is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.catalog import architectures, model_shape
from penstock.catalog.demand import attention_flop, matrix_flop
from penstock.twin.layout import Layout, Precision
from penstock.twin.operators import Collective, Elementwise, Experts
from penstock.twin.step_graph import Placed, StepGraph

MODELS = (
    "llama-3-8b",
    "llama-2-70b",
    "mixtral-8x7b",
    "deepseek-v3",
    "gpt-oss-120b",
    "qwen3-next-80b-a3b",
    "gemma-2-9b",
)


def flop(placed: list[Placed]) -> float:
    return sum(one.operator.work().flop * one.times for one in placed if not isinstance(one.operator, Elementwise))


@pytest.mark.parametrize("name", MODELS)
def test_one_token_takes_the_matrix_work_of_the_model(name: str) -> None:
    shape = model_shape(name)
    graph = StepGraph(shape, Layout(), Precision())
    # With an empty context attention itself is nothing, but MLA's absorbed projections stand in its part.
    latent = [one for one in graph.decode(1, 1) if one.operator.kind in ("qkv", "out_proj")]
    found = flop(graph.rows(1)) + flop(graph.head(1)) + flop(latent)
    assert found == pytest.approx(matrix_flop(shape), rel=0.01)


@pytest.mark.parametrize("name", ["llama-3-8b", "llama-2-70b", "mixtral-8x7b"])
def test_attention_takes_the_work_of_the_context(name: str) -> None:
    shape = model_shape(name)
    graph = StepGraph(shape, Layout(), Precision())
    assert flop(graph.decode(4, 4 * 2000)) == pytest.approx(4 * attention_flop(shape, 2000), rel=1e-3)


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "deepseek-v3"])
@given(tokens=st.integers(1, 4096), parts=st.sampled_from([2, 4, 8]))
def test_the_devices_of_a_layout_share_the_work(name: str, tokens: int, parts: int) -> None:
    """No device does less than its share, and only what is copied to all of them is done more than once."""
    shape = model_shape(name)
    whole = flop(StepGraph(shape, Layout(), Precision()).rows(tokens))
    cut = StepGraph(shape, Layout(tensor_parallel=parts, moe_tensor_parallel=parts), Precision()).rows(tokens)
    each = flop([one for one in cut if not isinstance(one.operator, Collective)])
    assert whole / parts * 0.999 <= each <= whole / parts * 1.25
    assert any(isinstance(one.operator, Collective) for one in cut)


@given(tokens=st.integers(1, 8192))
def test_one_device_sends_nothing(tokens: int) -> None:
    graph = StepGraph(model_shape("mixtral-8x7b"), Layout(), Precision())
    assert not [one for one in graph.rows(tokens) + graph.head(1) if isinstance(one.operator, Collective)]


def test_expert_parallel_groups_send_tokens_and_hold_fewer_experts() -> None:
    shape = model_shape("deepseek-v3")
    cut = StepGraph(shape, Layout(attention_dp=8, expert_parallel=8), Precision()).rows(800)
    experts = next(one.operator for one in cut if isinstance(one.operator, Experts))
    assert (experts.tokens, experts.expert_parallel) == (800, 8)
    sent = [one for one in cut if isinstance(one.operator, Collective) and one.operator.kind == "all_to_all"]
    assert sum(one.times for one in sent) == 2 * 58, "there and back in each of 58 layers of experts"


def test_a_window_bounds_what_decode_reads() -> None:
    graph = StepGraph(model_shape("mistral-7b-v0.1"), Layout(), Precision())
    assert flop(graph.decode(2, 2 * 4096)) == flop(graph.decode(2, 2 * 9000))


def test_sparse_attention_attends_to_its_best_keys_and_scans_all() -> None:
    graph = StepGraph(model_shape("deepseek-v3.2"), Layout(), Precision())
    near, far = graph.decode(1, 2048), graph.decode(1, 100_000)
    latent = [[one for one in part if one.operator.kind == "attention_decode"] for part in (near, far)]
    assert flop(latent[0]) == flop(latent[1])
    scans = [
        sum(one.operator.work().flop for one in part if one.operator.kind == "attention_index") for part in (near, far)
    ]
    assert scans[1] > 40 * scans[0]


@pytest.mark.parametrize("name", sorted(architectures()))
def test_every_architecture_has_a_graph_with_work_in_all_parts(name: str) -> None:
    graph = StepGraph(model_shape(name), Layout(), Precision())
    for part in (graph.rows(7), graph.head(3), graph.decode(3, 300), graph.prefill([(0, 64), (64, 100)])):
        assert part
        assert all(one.times > 0 and one.operator.work().bytes > 0 for one in part)
