"""Llama, Mistral, Qwen2 and Qwen3: one decoder, with biases, norms and windows here and there."""

from __future__ import annotations

from penstock.engine.architecture.common import decoder, layer_windows, size
from penstock.engine.architecture.shape import Architecture, Config


def llama(name: str, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return decoder(
        name,
        config,
        norm_eps=1e-6,
        max_positions=2048,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def mistral(name: str, config: Config) -> Architecture:
    # The default of a missing key is 4096 in Mistral's config class; checkpoints without a window say null.
    window = config.get("sliding_window", 4096)
    return decoder(name, config, norm_eps=1e-6, max_positions=131072, window=window, kv_heads=8)


def qwen2(name: str, config: Config) -> Architecture:
    return decoder(name, config, norm_eps=1e-6, max_positions=32768, windows=_qwen_windows(config), qkv_bias=True)


def qwen3(name: str, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return decoder(
        name,
        config,
        norm_eps=1e-6,
        max_positions=32768,
        head_dim=128,
        windows=_qwen_windows(config),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )


def _qwen_windows(config: Config) -> tuple[int | None, ...]:
    """Qwen2 and Qwen3: layers from max_window_layers on have the window, unless layer_types says it one by one."""
    layers = size(config, "num_hidden_layers", 32)
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28)
    default = ["sliding_attention" if window and i >= first else "full_attention" for i in range(layers)]
    return layer_windows(config, layers, window, default)
