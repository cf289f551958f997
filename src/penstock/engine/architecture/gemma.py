"""Gemma 2 and Gemma 3 (text): norms on both sides, scaled embeddings, soft caps, windows on most layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from penstock.engine.architecture.common import decoder, layer_windows, size
from penstock.engine.architecture.rope import read_rope
from penstock.engine.architecture.shape import Architecture, Config
from penstock.errors import UnsupportedModel

_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
}
"""What a config.json of either leaves out."""


def gemma2(name: str, config: Config) -> Architecture:
    config = {
        **_DEFAULTS,
        "vocab_size": 256000,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        **config,
    }
    return _gemma(name, config, max_positions=8192, pattern=2)


def gemma3(name: str, config: Config) -> Architecture:
    """Windowed layers have a RoPE of their own, which no scaling touches unless it is given for them."""
    config = {**_DEFAULTS, "vocab_size": 262208, **config}
    given = config.get("rope_parameters") or {}
    full, windowed = dict(given.get("full_attention") or {}), dict(given.get("sliding_attention") or {})
    full.setdefault("rope_theta", config.get("rope_theta", 1_000_000.0))
    windowed.setdefault("rope_theta", config.get("rope_local_base_freq", 10_000.0))
    full |= config.get("rope_scaling") or {}
    config = {**config, "rope_parameters": full, "rope_scaling": None}
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    whole = _gemma(name, config, max_positions=131072, pattern=pattern)
    local = read_rope({"rope_parameters": windowed}, 10_000.0, whole.max_positions, types=("default", "linear"))
    return replace(whole, qk_norm=True, window_rope=local)


def _gemma(name: str, config: Config, *, max_positions: int, pattern: int) -> Architecture:
    """`pattern`: every so many layers one has no window."""
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModel(
            field="use_bidirectional_attention",
            value=True,
            why="every token would see those after it, and nothing could be kept in a cache",
            remedy="a causal checkpoint",
        )
    layers = size(config, "num_hidden_layers", 26)
    kinds = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    bias = bool(config.get("attention_bias", False))
    whole = decoder(
        name,
        config,
        norm_eps=1e-6,
        max_positions=max_positions,
        windows=layer_windows(config, layers, config["sliding_window"], kinds),
        rope_types=("default", "linear"),
        qkv_bias=bias,
        output_bias=bias,
    )
    return replace(
        whole,
        activation=config.get("hidden_activation") or "gelu_pytorch_tanh",
        attention_scales=(float(config["query_pre_attn_scalar"]) ** -0.5,) * layers,
        attention_softcap=_cap(config, "attn_logit_softcapping"),
        logit_softcap=_cap(config, "final_logit_softcapping"),
        embedding_scale=float(whole.hidden) ** 0.5,
        offset_norms=True,
        output_norms=True,
    )


def _cap(config: Config, key: str) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or value <= 0:
        raise UnsupportedModel(field=key, value=value, why="it must be more than 0", remedy="the original config.json")
    return float(value)
