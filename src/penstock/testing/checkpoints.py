"""Small random checkpoints of every family, for tests that compare with `transformers`.

The weights are large enough (std 0.3 rather than 0.02) that greedy output wanders instead of repeating one token, so
that a wrong position or a lost key shows within a few tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

_LLAMA_LIKE: Final[dict[str, Any]] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("Llama", _LLAMA_LIKE),
    "mistral": ("Mistral", {**_LLAMA_LIKE, "sliding_window": 16}),
    "qwen2": (
        "Qwen2",
        {**_LLAMA_LIKE, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {**_LLAMA_LIKE, "head_dim": 24}),
    "mixtral": ("Mixtral", {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **_LLAMA_LIKE,
            "head_dim": 24,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            **_LLAMA_LIKE,
            "head_dim": 24,
            "query_pre_attn_scalar": 40,
            "sliding_window": 16,
            "attn_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {**_LLAMA_LIKE, "head_dim": 24, "query_pre_attn_scalar": 40, "sliding_window": 16, "sliding_window_pattern": 3},
    ),
    "phi3": (
        "Phi3",
        {
            **_LLAMA_LIKE,
            "sliding_window": 40,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": 256,
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 512,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
}
"""Family to the stem of its `transformers` classes and its small configuration."""


def tiny_checkpoint(
    family: str,
    directory: Path | str,
    *,
    seed: int = 0,
    std: float = 0.3,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    **config_overrides: Any,
) -> Path:
    """Write a random checkpoint of `family` (a key of FAMILIES) to `directory`, through `transformers`.

    Same seed and overrides, same weights. Returns the directory, with config.json and safetensors in it.
    Raises KeyError for an unknown family; needs `transformers`, which is a development dependency.
    """
    import torch
    import transformers

    stem, config = FAMILIES[family]
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "gemma3" else f"{stem}Config")
    model_class = getattr(transformers, "GPT2LMHeadModel" if family == "gpt2" else f"{stem}ForCausalLM")
    generator = torch.Generator().manual_seed(seed)
    model = model_class(config_class(**{**config, **config_overrides}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Norms multiply by about 1, which Gemma stores as 0; everything else, biases too, is around 0.
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            gemma, size, around = family.startswith("gemma"), std, 1
            if gemma:
                # Its embeddings are scaled up and are the head too: unless they are small beside what the layers add,
                # the output is the last token again and again.
                around = 2 if "post_" in name else 0
                size = std / 6 if "embed_tokens" in name else std
            parameter.copy_(around + 0.1 * noise if is_norm else size * noise)
    path = Path(directory)
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=max_shard_size)
    return path
