"""Phi-3 and Phi-3.5 (dense, text), and Phi-4, which is published under the same name: fused tensors, LongRoPE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from penstock.engine.architecture.common import decoder
from penstock.engine.architecture.rope import ROPE_TYPES
from penstock.engine.architecture.shape import Architecture, Config
from penstock.errors import UnsupportedModel

_DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "original_max_position_embeddings": 4096,
}
"""What a config.json leaves out."""


def phi3(name: str, config: Config) -> Architecture:
    config = {**_DEFAULTS, **config}
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    # Its first checkpoints call LongRoPE by other names.
    for key in ("rope_type", "type"):
        if scaling.get(key) in ("su", "yarn"):
            scaling[key] = "longrope"
    whole = decoder(
        name,
        {**config, "rope_parameters": scaling, "rope_scaling": None},
        norm_eps=1e-5,
        max_positions=4096,
        window=config.get("sliding_window"),
        rope_types=(*ROPE_TYPES, "longrope"),
        partial_rope=True,
    )
    rope = whole.rope
    if rope is not None and rope.type == "longrope":
        pairs = (rope.width or whole.head_dim) // 2
        for key in ("short_factor", "long_factor"):
            factors = rope.parameters[key]
            if not isinstance(factors, list) or len(factors) != pairs:
                raise UnsupportedModel(
                    field=f"rope_parameters.{key}",
                    value=factors,
                    why=f"a head turns in {pairs} pairs, and each needs a factor",
                    remedy="the checkpoint's original config.json",
                )
    return replace(whole, fused=True)
