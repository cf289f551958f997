"""A config.json read: each family's spelling, layers of several kinds, types, and refusals that name the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.catalog import model_shape
from penstock.catalog.checkpoint_dtype import published_dtypes
from penstock.catalog.config import attention_kinds, shape_from_config, sparse_layers
from penstock.errors import InvalidDeployment, UnsupportedModel

PLAIN: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 128,
}  # fmt: skip
MIXTURE = {**PLAIN, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@given(
    heads=st.integers(1, 8), groups=st.integers(1, 4), width=st.sampled_from([8, 16, 64]), layers=st.integers(1, 5),
    vocab=st.integers(1, 500), inner=st.integers(1, 300), tied=st.booleans(), bias=st.booleans(),
)  # fmt: skip
def test_a_plain_decoder_is_the_sum_of_its_matrices(
    heads: int, groups: int, width: int, layers: int, vocab: int, inner: int, tied: bool, bias: bool
) -> None:
    queries, hidden = heads * groups, 48
    shape = shape_from_config(
        {
            "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": queries, "head_dim": width,
            "num_key_value_heads": heads, "intermediate_size": inner, "vocab_size": vocab,
            "tie_word_embeddings": tied, "attention_bias": bias,
        }
    )  # fmt: skip
    matrices = [(hidden, queries * width), (hidden, heads * width), (hidden, heads * width), (queries * width, hidden)]
    matrices += [(hidden, inner), (hidden, inner), (inner, hidden)]
    biases = (queries + 2 * heads) * width + hidden if bias else 0
    layer = sum(rows * columns for rows, columns in matrices) + 2 * hidden + biases
    assert shape.parameters == (1 if tied else 2) * vocab * hidden + layers * layer + hidden
    assert shape.active_parameters == shape.parameters - (0 if tied else vocab * hidden)
    assert sum(group.count for group in shape.groups) == layers


def test_other_spellings_are_the_same_model() -> None:
    other = {
        "n_embd": 64, "n_layer": 4, "n_head": 4, "num_kv_heads": 2, "ffn_hidden_size": 96, "padded_vocab_size": 128,
    }  # fmt: skip
    assert shape_from_config(other, "x") == shape_from_config({**PLAIN, "model_type": None}, "x")


def test_a_multimodal_config_is_its_language_model() -> None:
    nested = {
        "model_type": "mistral3", "torch_dtype": "float16", "tie_word_embeddings": True,
        "text_config": {**PLAIN, "torch_dtype": None}, "vision_config": {"hidden_size": 1024},
    }  # fmt: skip
    shape = shape_from_config(nested, "x")
    assert shape == shape_from_config({**PLAIN, "torch_dtype": "float16", "tie_word_embeddings": True}, "x")


def test_gemma_3_leaves_most_of_itself_to_defaults() -> None:
    """The repository's config.json of google/gemma-3-4b states no heads and no vocabulary."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **text}, "torch_dtype": "bfloat16"}
    shape, known = shape_from_config(config), model_shape("gemma-3-4b")
    assert (shape.groups, shape.parameters) == (known.groups, known.parameters)
    assert [(group.count, group.attention.window) for group in shape.groups] == [(29, 1024), (5, None)]


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ({}, "ffffff"),
        ({"sliding_window": 8}, "ssssss"),
        ({"sliding_window": 8, "use_sliding_window": False}, "ffffff"),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4}, "ffffss"),
        ({"sliding_window": 8, "sliding_window_pattern": 3}, "ssfssf"),
        ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 3}, "sfsfsf"),
        ({"attention_chunk_size": 8}, "cccfcc"),
        ({"attention_chunk_size": 8, "no_rope_layers": [1, 0, 1, 0, 1, 0]}, "cfcfcf"),
        ({"linear_num_value_heads": 4, "full_attention_interval": 2}, "lflflf"),
    ],
)
def test_kinds_of_attention_by_layer(keys: dict[str, Any], kinds: str) -> None:
    assert "".join(kind[0] for kind in attention_kinds(keys, 6)) == kinds


@pytest.mark.parametrize(
    ("keys", "sparse"),
    [
        ({}, "111111"),
        ({"first_k_dense_replace": 2}, "001111"),
        ({"decoder_sparse_step": 2}, "010101"),
        ({"interleave_moe_layer_step": 2}, "010101"),
        ({"mlp_only_layers": [1, 3]}, "101011"),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, "001010"),
        ({"moe_layer_freq": [0, 1, 1, 1, 1, 0]}, "011110"),
        ({"moe_layers": [5]}, "000001"),
        ({"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 3}, "000111"),
        ({"num_experts": 0}, "000000"),
    ],
)
def test_which_layers_have_experts(keys: dict[str, Any], sparse: str) -> None:
    assert "".join(str(int(flag)) for flag in sparse_layers({"num_experts": 8, **keys}, 6)) == sparse


def test_shared_experts_by_count_or_by_width() -> None:
    by_count = shape_from_config({**MIXTURE, "n_shared_experts": 2}).groups[0].feed_forward
    by_width = shape_from_config({**MIXTURE, "shared_expert_intermediate_size": 64}).groups[0].feed_forward
    assert by_count == by_width
    assert by_count.shared_intermediate == 64


def test_the_list_of_layers_and_the_rule_say_the_same() -> None:
    """Published configs of gpt-oss and Qwen3.5 list each layer; the catalogue keeps the rule."""
    oss = {**PLAIN, "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
    listed = {**oss, "layer_types": ["sliding_attention", "full_attention"] * 2}
    assert shape_from_config(oss) == shape_from_config(listed)


@pytest.mark.parametrize(
    ("quantisation", "dense", "experts"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", "fp8_block"),
        ({"quant_method": "fp8"}, "fp8", "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "int4", "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8", "int8"),
        ({"quant_method": "awq"}, "int4", "int4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4", "int4"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, "bfloat16", "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors", "ignore": ["lm_head", "re:.*self_attn.*"],
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            }, "bfloat16", "int4",
        ),
    ],
)  # fmt: skip
def test_types_of_quantised_checkpoints(quantisation: dict[str, Any], dense: str, experts: str) -> None:
    assert published_dtypes({"torch_dtype": "bfloat16", "quantization_config": quantisation}) == (dense, experts)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        shape_from_config({name: value for name, value in PLAIN.items() if name != key})
    assert caught.value.field == key
    assert key in caught.value.remedy


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"num_hidden_layers": 1e18}, "num_hidden_layers"),
        ({"quantization_config": True}, "config.json"),
        ({"num_attention_heads": 5}, "head_dim"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["quantum"] * 4}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_window"),
        ({"hybrid_override_pattern": "M*M*"}, "hybrid_override_pattern"),
        ({"attn_type_list": [0, 1, 1, 1]}, "attn_type_list"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"torch_dtype": "int3"}, "torch_dtype"),
        ({"quantization_config": {"quant_method": "magic"}}, "quantization_config.quant_method"),
        ({"num_experts": 8}, "num_experts_per_tok"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(keys: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        shape_from_config({**PLAIN, **keys})
    assert caught.value.field == field
    assert caught.value.why
    assert caught.value.remedy


KEYS = [
    *PLAIN, "head_dim", "num_experts", "num_experts_per_tok", "layer_types", "sliding_window", "kv_lora_rank",
    "index_topk", "text_config", "quantization_config", "torch_dtype", "linear_num_value_heads", "moe_layer_freq",
    "mlp_only_layers", "decoder_sparse_step", "max_window_layers", "sliding_window_pattern", "attention_chunk_size",
    "no_rope_layers", "attn_type_list", "v_head_dim",
]  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 64), st.floats(), st.just({}), st.lists(st.integers(0, 3), max_size=5),
    st.sampled_from(["", "x", "falcon", "dbrx", "qwen", "llama4_text", "gpt_oss", "bloom", "deepseek_v3"]),
)  # fmt: skip


@example({"num_experts": 1, "moe_layer_freq": 0.5})
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_no_config_does_worse_than_be_refused(keys: dict[str, Any]) -> None:
    try:
        shape = shape_from_config({**PLAIN, **keys})
    except UnsupportedModel:
        return
    assert shape.parameters > 0


def test_a_directory_and_its_config_are_read_with_the_quantisation_beside_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**PLAIN, "torch_dtype": "float16"}))
    assert model_shape(str(tmp_path)).dtype == "float16"
    assert model_shape(str(tmp_path / "config.json")) == model_shape(str(tmp_path))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert model_shape(str(tmp_path)).dtype == "fp8"


def test_a_directory_without_a_config_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDeployment, match=r"config\.json"):
        model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnsupportedModel, match="no JSON object"):
        model_shape(str(tmp_path))


def test_the_model_in_the_box_has_a_shape() -> None:
    shape = model_shape("millrace")
    assert (shape.name, shape.layers, shape.tied_embeddings) == ("millrace", 4, True)
