"""One model's shape, whatever its family calls things: what config.json says, as numbers and switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]
"""A config.json."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: the type, its base, and the type's own parameters as the checkpoint names them."""

    type: str
    theta: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    """Leading elements of a head that turn; None: all."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: `sparse_layers[i]` says whether layer i has one instead of a dense MLP."""

    count: int
    per_token: int
    intermediate: int
    normalize: bool
    """Whether the weights of the chosen experts are scaled to sum to 1."""
    sparse_layers: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model's shape. Widths in elements, `windows[i]` in tokens (None: layer i sees everything before it)."""

    name: str
    """architectures[0], e.g. LlamaForCausalLM."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    activation: str
    tied_embeddings: bool
    windows: tuple[int | None, ...]
    attention_scales: tuple[float, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: Rope | None = None
    window_rope: Rope | None = None
    """RoPE of the layers with a window, where it is another than that of the others."""
    experts: Experts | None = None
    attention_softcap: float | None = None
    """Scores s become c * tanh(s / c) before the softmax."""
    logit_softcap: float | None = None
    """The same for the logits."""
    embedding_scale: float | None = None
    """Factor on the embeddings."""
    offset_norms: bool = False
    """Norm weights are stored less 1."""
    output_norms: bool = False
    """What attention and MLP give is normed before it is added to the residual."""
    fused: bool = False
    """The checkpoint holds queries, keys and values as one tensor, and gate and up as one."""
    head: bool = True
    """Whether the model has logits; without, it can only embed."""

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens the model is made for: max_positions, stretched where RoPE scaling is what stretches it.

        Checkpoints with linear, dynamic or yarn scaling keep the original length in config.json more often than not;
        llama3 and longrope ones, and Gemma 3's, hold the stretched one.
        """
        if self.rope is None or self.window_rope is not None or self.rope.type not in ("linear", "dynamic", "yarn"):
            return self.max_positions
        original = self.rope.parameters.get("original_max_position_embeddings", self.max_positions)
        return max(self.max_positions, int(original * self.rope.parameters["factor"]))

    @property
    def kv_elements_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim
