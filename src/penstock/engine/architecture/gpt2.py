"""GPT-2, which names everything in its own way."""

from __future__ import annotations

from penstock.engine.architecture.common import size
from penstock.engine.architecture.shape import Architecture, Config
from penstock.errors import UnsupportedModel


def gpt2(name: str, config: Config) -> Architecture:
    for option in ("add_cross_attention",):
        if config.get(option):
            raise UnsupportedModel(
                field=option, value=True, why="cross-attention is not implemented", remedy="a decoder-only checkpoint"
            )
    layers, hidden, heads = size(config, "n_layer", 12), size(config, "n_embd", 768), size(config, "n_head", 12)
    head_dim = hidden // heads
    scale = head_dim**-0.5 if config.get("scale_attn_weights", True) else 1.0
    by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    return Architecture(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate=config.get("n_inner") or 4 * hidden,
        vocab_size=size(config, "vocab_size", 50257),
        max_positions=size(config, "n_positions", 1024),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        activation=config.get("activation_function", "gelu_new"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        windows=(None,) * layers,
        attention_scales=tuple(scale / (i + 1) if by_layer else scale for i in range(layers)),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )
