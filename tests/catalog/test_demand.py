"""FLOP and bytes against counts made the long way, and against numbers of the field."""

from __future__ import annotations

import doctest
import importlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.catalog import architectures, model_shape
from penstock.catalog.demand import (
    attention_flop,
    decode_bytes,
    kv_bytes,
    kv_bytes_per_token,
    matrix_flop,
    prompt_flop,
    read_kv_bytes,
    touched_experts,
    weight_bytes,
)
from penstock.catalog.shape import DTYPE_BYTES
from penstock.cli.inspect_model import inspect_model, list_models, model_facts
from penstock.errors import BadInput

NAMES = st.sampled_from(sorted(architectures()))
MODULES = (
    "catalog.shape", "catalog.config", "catalog.checkpoint_dtype", "catalog.demand", "catalog.models_by_name",
    "cli.inspect_model", "twin.memory",
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"penstock.{module}"))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("llama-3-8b", "bfloat16", 131_072),  # 2 x 32 layers x 8 heads x 128 x 2 B
        ("llama-2-7b", "float16", 524_288),  # every head its own
        ("llama-3-70b", "bfloat16", 327_680),
        ("yi-34b-200k", "bfloat16", 245_760),  # arXiv 2405.08944: 22.9 GiB at 100K
        ("deepseek-v3", "bfloat16", 70_272),  # arXiv 2412.19437: 61 layers x (512 + 64) x 2 B
        ("deepseek-v3", "fp8", 35_136),
        ("gpt-3-175b", "float16", 4_718_592),  # 4.7 MB, as FlexGen and others have it
        ("opt-13b", "float16", 819_200),  # 800 KB: PagedAttention, SOSP 2023, section 3
        ("qwen3.5-397b-a17b", "bfloat16", 30_720),  # 15 of its 60 layers keep KV
    ],
)
def test_kv_bytes_per_token(name: str, dtype: str, expected: int) -> None:
    assert kv_bytes_per_token(model_shape(name), dtype) == expected


@given(NAMES, st.integers(1, 300))
def test_a_prompt_costs_the_sum_of_its_tokens(name: str, tokens: int) -> None:
    shape = model_shape(name)
    one_by_one = sum(attention_flop(shape, context) for context in range(1, tokens + 1))
    matrices = tokens * matrix_flop(shape, head=False) + 2 * shape.vocab * shape.hidden
    assert prompt_flop(shape, tokens) == pytest.approx(matrices + one_by_one, rel=1e-12)


@pytest.mark.parametrize("name", ["gpt-oss-20b", "deepseek-v3.2", "gemma-3-4b", "qwen3-next-80b-a3b", "glm-5"])
def test_a_long_prompt_costs_the_sum_of_its_tokens_past_windows_too(name: str) -> None:
    shape, tokens = model_shape(name), 5000
    one_by_one = sum(attention_flop(shape, context) for context in range(1, tokens + 1))
    matrices = tokens * matrix_flop(shape, head=False) + 2 * shape.vocab * shape.hidden
    assert prompt_flop(shape, tokens) == pytest.approx(matrices + one_by_one, rel=1e-12)


@given(NAMES, st.integers(1, 4000), st.integers(0, 4000))
def test_bytes_and_flop_never_fall_with_context(name: str, context: int, more: int) -> None:
    shape = model_shape(name)
    assert kv_bytes(shape, context + more) >= kv_bytes(shape, context)
    assert read_kv_bytes(shape, context) <= kv_bytes(shape, context)
    for absorbed in (False, True):
        longer, shorter = (attention_flop(shape, c, absorbed=absorbed) for c in (context + more, context))
        assert longer >= shorter
    state = sum(group.count * group.attention.state_elements * 4.0 for group in shape.groups)
    assert kv_bytes(shape, context) <= context * kv_bytes_per_token(shape) + state


@given(NAMES, st.integers(1, 512))
def test_a_decode_step_reads_no_more_than_all_weights_and_all_kv(name: str, batch: int) -> None:
    shape = model_shape(name)
    read = decode_bytes(shape, batch, 1000)
    rows = 2.0 * batch * shape.hidden
    assert read <= weight_bytes(shape) + rows + batch * kv_bytes(shape, 1000) + 1
    assert read >= 2.0 * (shape.active_parameters - shape.vocab * shape.hidden)
    assert decode_bytes(shape, batch + 1, 1000) > read


@given(NAMES, st.sampled_from(sorted(DTYPE_BYTES)))
def test_weight_bytes_lie_between_the_type_and_its_wide_rest(name: str, dtype: str) -> None:
    shape = model_shape(name)
    narrow, wide = DTYPE_BYTES[dtype] * shape.parameters, max(2.0, DTYPE_BYTES[dtype]) * shape.parameters
    assert narrow - 1 <= weight_bytes(shape, dtype) <= wide + 1


def test_experts_in_a_type_of_their_own() -> None:
    """gpt-oss-120b is published as 60.8 GiB: experts in MXFP4, the rest in bf16 (model card, table 1)."""
    assert weight_bytes(model_shape("gpt-oss-120b"), "bfloat16", experts="mxfp4") / 2**30 == pytest.approx(
        60.8, rel=5e-3
    )
    assert weight_bytes(model_shape("gpt-oss-20b"), "bfloat16", experts="mxfp4") / 2**30 == pytest.approx(
        12.8, rel=5e-3
    )


def test_touched_experts() -> None:
    (group,) = model_shape("mixtral-8x7b").groups
    assert touched_experts(group, 1) == pytest.approx(2 / 8)
    assert touched_experts(group, 2) == pytest.approx(1 - (6 / 8) ** 2)
    assert touched_experts(group, 1000) == pytest.approx(1)


def test_two_flop_per_parameter_at_short_context() -> None:
    shape = model_shape("opt-13b")
    assert matrix_flop(shape) == pytest.approx(2 * shape.parameters, rel=2e-3)


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3", "qwen3-next-80b-a3b", "gpt2", "glm-5"])
def test_inspect_prints_a_table_or_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shape = model_shape(name)
    inspect_model(shape, context=999)
    shown = capsys.readouterr().out
    assert f"{shape.parameters:,}" in shown
    assert "999" in shown
    inspect_model(shape, context=999, dtype="fp8", kv_dtype="fp8", as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts.pop("checkpoint") is None
    assert facts == json.loads(json.dumps(model_facts(shape, context=999, dtype="fp8", kv_dtype="fp8")))
    assert sum(group["count"] for group in facts["groups"]) == shape.layers
    assert facts["kv_bytes_per_token"] == kv_bytes_per_token(shape, "fp8")
    assert 999 in [row["context"] for row in facts["by_context"]]


def test_inspect_lists_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    list_models(as_json=True)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(architectures())
    list_models()
    assert "llama-3-8b" in capsys.readouterr().out


def test_inspect_refuses_what_cannot_be() -> None:
    shape = model_shape("gpt2")
    with pytest.raises(BadInput, match="kv_dtype"):
        model_facts(shape, kv_dtype="fp7")
    with pytest.raises(BadInput, match="context"):
        model_facts(shape, context=0)
