"""What each model family adds to the common decoder, and which defaults its config.json leaves unsaid.

Keyed by `model_type`. The facts are those of the reference implementations in `transformers` (Apache-2.0): its
configuration classes for defaults, its modules for norms and biases. A family that is not here is read as a Llama: RMS
norms, a gated MLP, no biases but those the config names. `tests/catalog` builds the real modules without memory and
compares the counts to the last parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Config = Mapping[str, Any]
Flag = bool | str
"""Yes, no, or the config key that says so (absent: no)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Small print of a family: all that is neither a width nor a count."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Keys that a config.json may leave out, and what they are then."""
    standard_keys: Callable[[Config], Mapping[str, Any]] | None = None
    """Keys of the common vocabulary, from a spelling or a meaning that is this family's own."""
    layer_norms: int = 2
    """Norms as wide as the hidden state in each layer."""
    norm_bias: bool = False
    """LayerNorm with a bias, not RMSNorm."""
    embedding_norm: bool = False
    qk_norm: Literal["head", "width"] | None = None
    """Norms on queries and keys: as wide as one head, or as all of them."""
    qkv_bias: Flag = "attention_bias"
    output_bias: Flag = "attention_bias"
    mlp_bias: Flag = "mlp_bias"
    head_bias: Flag = False
    sinks: bool = False
    """A learned logit per head (gpt-oss)."""
    gated_mlp: bool = True
    learned_positions: int | None = None
    """Extra rows of the table of positions; None: no table."""
    router_bias: bool = False
    """The router adds a bias, or a correction of the choice, per expert."""
    expert_bias: bool = False
    shared_gate: bool = False
    """The shared expert's output is scaled by a gate of one column."""


def _falcon(config: Config) -> Mapping[str, Any]:
    heads = config.get("num_attention_heads", config.get("n_head"))
    if config.get("new_decoder_architecture"):
        return {"num_key_value_heads": config.get("num_kv_heads") or heads}
    return {"num_key_value_heads": 1 if config.get("multi_query", True) else heads}


def _bigcode(config: Config) -> Mapping[str, Any]:
    return {"num_key_value_heads": 1 if config.get("multi_query", True) else config["n_head"]}


def _qwen1(config: Config) -> Mapping[str, Any]:
    # The first Qwen states the width of its two input matrices together.
    return {"intermediate_size": config["intermediate_size"] // 2, "num_key_value_heads": config["num_attention_heads"]}


def _dbrx(config: Config) -> Mapping[str, Any]:
    attention, experts = config.get("attn_config", {}), config.get("ffn_config", {})
    return {
        "num_key_value_heads": attention.get("kv_n_heads"),
        "intermediate_size": experts.get("ffn_hidden_size"),
        "num_local_experts": experts.get("moe_num_experts"),
        "num_experts_per_tok": experts.get("moe_top_k"),
    }


def _llama4(config: Config) -> Mapping[str, Any]:
    # Its "intermediate_size" is that of an expert and of the shared expert; a dense layer's has a key of its own.
    width, dense = config.get("intermediate_size"), config.get("intermediate_size_mlp")
    return {"moe_intermediate_size": width, "intermediate_size": dense, "shared_expert_intermediate_size": width}


def _glm_dsa(config: Config) -> Mapping[str, Any]:
    return {"head_dim": None}  # its head_dim is the RoPE part; what counts are qk_nope_head_dim and v_head_dim


_LLAMA: Final = Family()
_QWEN2: Final = Family(qkv_bias=True, output_bias=False, mlp_bias=False)
_QWEN3: Final = Family(qk_norm="head")
_QWEN3_NEXT: Final = Family(
    qk_norm="head", shared_gate=True, defaults={"attn_output_gate": True, "full_attention_interval": 4}
)
_GEMMA: Final = Family(defaults={"tie_word_embeddings": True, "head_dim": 256})
_GEMMA3: Final = Family(
    layer_norms=4, qk_norm="head",
    defaults={
        "tie_word_embeddings": True, "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": 262_208, "sliding_window": 4096, "sliding_window_pattern": 6, "max_position_embeddings": 131_072,
    },
)  # fmt: skip
_GPT2: Final = Family(
    defaults={"tie_word_embeddings": True}, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True,
    gated_mlp=False, learned_positions=0,
)  # fmt: skip
_DEEPSEEK_V3: Final = Family(router_bias=True)
_GLM4_MOE: Final = Family(output_bias=False, router_bias=True)

FAMILIES: Final[Mapping[str, Family]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "yi": _LLAMA,
    "baichuan": _LLAMA,
    "granite": _LLAMA,
    "internlm": Family(qkv_bias="bias", output_bias="bias"),
    "internlm2": Family(qkv_bias="bias", output_bias="bias"),
    "llama4_text": Family(
        standard_keys=_llama4,
        defaults={"attention_chunk_size": 8192, "no_rope_layer_interval": 4, "interleave_moe_layer_step": 1},
    ),
    "qwen": Family(standard_keys=_qwen1, qkv_bias=True, output_bias=False, mlp_bias=False),
    "qwen2": _QWEN2,
    "qwen2_moe": Family(qkv_bias=True, output_bias=False, mlp_bias=False, shared_gate=True),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "deepseek_v2": _LLAMA,
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm_moe_dsa": Family(router_bias=True, standard_keys=_glm_dsa),
    "glm4_moe": _GLM4_MOE,
    "glm4": Family(layer_norms=4, output_bias=False),
    "glm": Family(output_bias=False),
    "chatglm": Family(qkv_bias="add_qkv_bias", output_bias=False),
    "minimax_m2": Family(qk_norm="width", router_bias=True),
    "gpt_oss": Family(
        sinks=True, router_bias=True, expert_bias=True, defaults={"sliding_window_pattern": 2, "attention_bias": True}
    ),
    "gemma": _GEMMA,
    "gemma2": Family(
        layer_norms=4,
        defaults={
            "tie_word_embeddings": True, "head_dim": 256, "sliding_window": 4096, "sliding_window_pattern": 2,
        },
    ),
    "gemma3_text": _GEMMA3,
    "phi": Family(
        layer_norms=1, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True, head_bias=True, gated_mlp=False
    ),
    "phi3": _LLAMA,
    "phimoe": Family(norm_bias=True, head_bias="lm_head_bias"),
    "olmo2": Family(qk_norm="width"),
    "olmoe": Family(qk_norm="width"),
    "cohere": Family(layer_norms=1, defaults={"tie_word_embeddings": True}),
    "cohere2": Family(layer_norms=1, defaults={"tie_word_embeddings": True, "sliding_window_pattern": 4}),
    "dbrx": Family(standard_keys=_dbrx),
    "gpt2": _GPT2,
    "gpt_bigcode": Family(
        defaults={"tie_word_embeddings": True}, standard_keys=_bigcode, norm_bias=True, qkv_bias=True,
        output_bias=True, mlp_bias=True, gated_mlp=False, learned_positions=0,
    ),
    "starcoder2": Family(
        defaults={"tie_word_embeddings": True, "use_bias": True}, norm_bias=True, qkv_bias="use_bias",
        output_bias="use_bias", mlp_bias="use_bias", gated_mlp=False,
    ),
    "gptj": Family(
        layer_norms=1, norm_bias=True, qkv_bias=False, output_bias=False, mlp_bias=True, head_bias=True,
        gated_mlp=False,
    ),
    "gpt_neox": Family(norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True, gated_mlp=False),
    "opt": Family(
        defaults={"tie_word_embeddings": True}, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True,
        gated_mlp=False, learned_positions=2,
    ),
    "bloom": Family(
        defaults={"tie_word_embeddings": True}, norm_bias=True, embedding_norm=True, qkv_bias=True, output_bias=True,
        mlp_bias=True, gated_mlp=False,
    ),
    "falcon": Family(
        defaults={"tie_word_embeddings": True}, standard_keys=_falcon, norm_bias=True, qkv_bias="bias",
        output_bias="bias", mlp_bias="bias", gated_mlp=False,
    ),
    "mpt": Family(defaults={"tie_word_embeddings": True}, gated_mlp=False),
}  # fmt: skip


def family_of(config: Config) -> Family:
    """The family that `config["model_type"]` names; the common decoder where it is not known."""
    family = FAMILIES.get(str(config.get("model_type", "")).lower(), _LLAMA)
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        # One norm before attention and MLP, which run side by side; the later Falcons have one for each.
        return _FALCON_PARALLEL if config.get("parallel_attn", True) else family
    if config.get("use_qk_norm") and config.get("model_type") == "glm4_moe":
        return _GLM4_MOE_NORMED
    return family


_FALCON_PARALLEL: Final = Family(
    defaults={"tie_word_embeddings": True}, standard_keys=_falcon, norm_bias=True, qkv_bias="bias", output_bias="bias",
    mlp_bias="bias", gated_mlp=False, layer_norms=1,
)  # fmt: skip
_GLM4_MOE_NORMED: Final = Family(output_bias=False, router_bias=True, qk_norm="head")
