"""What the families' readers share: sizes with their checks, windows per layer, and the Llama-like whole."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.engine.architecture.rope import ROPE_TYPES, read_rope
from penstock.engine.architecture.shape import Architecture, Config, Experts
from penstock.errors import UnsupportedModel


def decoder(
    name: str,
    config: Config,
    *,
    norm_eps: float,
    max_positions: int,
    theta: float = 10_000.0,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    window: int | None = None,
    windows: tuple[int | None, ...] | None = None,
    rope_types: Sequence[str] = ROPE_TYPES,
    partial_rope: bool = False,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    experts: Experts | None = None,
) -> Architecture:
    """What all but GPT-2 share; the keyword arguments are the family's defaults for keys its config.json leaves out.

    Families change what is special in them afterwards (`dataclasses.replace`).
    """
    layers = size(config, "num_hidden_layers", 32)
    hidden = size(config, "hidden_size", 4096)
    heads = size(config, "num_attention_heads", 32)
    width = config.get("head_dim") or head_dim or hidden // heads
    positions = size(config, "max_position_embeddings", max_positions)
    return Architecture(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads_of(config, heads, kv_heads),
        head_dim=width,
        intermediate=size(config, "intermediate_size", 11008),
        vocab_size=size(config, "vocab_size", 32000),
        max_positions=positions,
        norm_eps=float(config.get("rms_norm_eps", norm_eps)),
        activation=config.get("hidden_act", "silu"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        windows=windows if windows is not None else (window or None,) * layers,
        attention_scales=(width**-0.5,) * layers,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        rope=read_rope(config, theta, positions, rope_types, width if partial_rope else None),
        experts=experts,
    )


def kv_heads_of(config: Config, heads: int, default: int | None) -> int:
    """Heads of keys and values."""
    if "num_key_value_heads" in config:
        # null means as many as query heads, in every family.
        return config["num_key_value_heads"] or heads
    return default or heads


def layer_windows(config: Config, layers: int, window: int | None, default: Sequence[str]) -> tuple[int | None, ...]:
    """A window or None per layer, by layer_types or, where config.json has none, by `default`."""
    kinds = config.get("layer_types") or default
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown or len(kinds) != layers:
        raise UnsupportedModel(
            field="layer_types",
            value=kinds,
            why=f"expected {layers} entries, each full_attention or sliding_attention",
            remedy="the checkpoint's original config.json",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def size(config: Config, key: str, default: int) -> int:
    """A count, 1 or more. Raises UnsupportedModel."""
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(
            field=key, value=value, why="it must be a positive whole number", remedy="the original config.json"
        )
    return value
