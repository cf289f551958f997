"""A model as arithmetic sees it: widths, layers and experts, from which parameters, FLOP and bytes follow.

Knows no weights, no hardware and no precision: those are arguments. Layers that are alike stand in one `LayerGroup`, so
that an 80-layer model is one or two entries. Widths are in elements, contexts in tokens, memory in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Dtype = Literal["float32", "bfloat16", "float16", "fp8", "fp8_block", "int8", "int4", "nvfp4", "mxfp4"]

DTYPE_BYTES: Final[dict[str, float]] = {
    "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0,
    "int4": 0.5, "nvfp4": 0.5625, "mxfp4": 0.53125,
}  # fmt: skip
"""Bytes of one element, scales included: nvfp4 has an 8-bit scale for 16 elements, mxfp4 for 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): what is cached is one latent and one RoPE key."""

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int | None = None
    """None: queries are projected in one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One layer's attention. MHA has kv_heads = heads, MQA 1, GQA something between."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    """Tokens each position sees, itself included; None: all before it."""
    latent: Latent | None = None
    state_elements: int = 0
    """Linear or recurrent attention: elements of state per sequence; it keeps no KV per token then."""
    gated_output: bool = False
    """An extra projection of the width of the output (Qwen3-Next)."""

    def kv_elements(self) -> int:
        """Elements cached per token in this layer."""
        if self.state_elements:
            return 0
        if self.latent is not None:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """One layer's MLP, dense (experts 0) or a mixture of experts of `intermediate` each."""

    intermediate: int
    gated: bool = True
    """Three matrices (SwiGLU, GeGLU) and not two."""
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0
    """Width of the MLP that every token also goes through beside its experts; 0: none."""

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """`count` layers of one kind. Groups say how many, not in which order they interleave."""

    count: int
    attention: Attention
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """One decoder-only language model."""

    name: str
    hidden: int
    vocab: int
    groups: tuple[LayerGroup, ...]
    tied_embeddings: bool = False
    max_context: int = 0
    """Tokens it was made for; 0: not stated."""
    dtype: Dtype = "bfloat16"
    """In which its weights are published."""
    other_parameters: int = 0
    """Norms, biases, learned positions: what no matrix product counts."""
    source: str = ""
    """Where the numbers are from."""

    @property
    def layers(self) -> int:
        return sum(group.count for group in self.groups)
