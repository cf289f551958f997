"""Mixtral and Qwen3-MoE: attention of their dense siblings, experts in place of some or all MLPs."""

from __future__ import annotations

from penstock.engine.architecture.common import decoder, size
from penstock.engine.architecture.shape import Architecture, Config, Experts


def mixtral(name: str, config: Config) -> Architecture:
    layers = size(config, "num_hidden_layers", 32)
    experts = Experts(
        count=size(config, "num_local_experts", 8),
        per_token=size(config, "num_experts_per_tok", 2),
        intermediate=size(config, "intermediate_size", 14336),
        normalize=True,
        sparse_layers=(True,) * layers,
    )
    return decoder(
        name,
        config,
        norm_eps=1e-5,
        max_positions=131072,
        window=config.get("sliding_window"),
        theta=1e6,
        kv_heads=8,
        experts=experts,
    )


def qwen3_moe(name: str, config: Config) -> Architecture:
    layers = size(config, "num_hidden_layers", 24)
    step = size(config, "decoder_sparse_step", 1)
    dense = set(config.get("mlp_only_layers") or ())
    count = config.get("num_experts", config.get("num_local_experts", 128))
    experts = Experts(
        count=count,
        per_token=size(config, "num_experts_per_tok", 8),
        intermediate=size(config, "moe_intermediate_size", 768),
        normalize=bool(config.get("norm_topk_prob", False)),
        sparse_layers=tuple(i not in dense and count > 0 and (i + 1) % step == 0 for i in range(layers)),
    )
    bias = bool(config.get("attention_bias", False))
    return decoder(
        name,
        config,
        norm_eps=1e-6,
        max_positions=32768,
        window=config.get("sliding_window") if config.get("use_sliding_window") else None,
        kv_heads=4,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        experts=experts,
    )
