"""A model as arithmetic sees it: widths, layers and experts, from which parameters, FLOP and bytes follow.

Knows no weights, no hardware and no precision: those are arguments. Layers that are alike stand in one `LayerGroup`, so
that an 80-layer model is one or two entries. Widths are in elements, contexts in tokens, memory in bytes.
Parameters are counted here, exactly; `demand.py` turns them into FLOP and bytes, `config.py` reads a config.json.
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
class Linear:
    """Gated DeltaNet (arXiv 2412.06464) as in Qwen3-Next: a state of key_dim x value_dim per value head instead of KV,
    and a short causal convolution over queries, keys and values before it."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int

    @property
    def key_width(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_width(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def conv_channels(self) -> int:
        return 2 * self.key_width + self.value_width

    @property
    def state_elements(self) -> int:
        """Recurrent state and the convolution's last inputs, per sequence and layer."""
        return self.value_width * self.key_dim + self.conv_channels * (self.conv_width - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """DeepSeek sparse attention (V3.2): light heads score the whole context, the `top_k` best are attended to."""

    heads: int
    head_dim: int
    top_k: int


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
    value_dim: int | None = None
    """Width of a value head where it is not `head_dim`."""
    linear: Linear | None = None
    """What `state_elements` is made of, where that is known."""
    indexer: Indexer | None = None

    @property
    def value_width(self) -> int:
        """Width of one value head."""
        return self.head_dim if self.value_dim is None else self.value_dim

    def kv_elements(self) -> int:
        """Elements cached per token in this layer.

        >>> Attention(heads=32, kv_heads=8, head_dim=128).kv_elements()
        2048
        """
        if self.state_elements:
            return 0
        index = self.indexer.head_dim if self.indexer is not None else 0
        if self.latent is not None:
            return self.latent.kv_rank + self.latent.rope_dim + index
        return self.kv_heads * (self.head_dim + self.value_width) + index

    def input_parameters(self, hidden: int) -> int:
        """What makes queries, keys and values (and the output gate, the indexer) of the hidden state."""
        if self.linear is not None:
            wide = self.linear.conv_channels + self.linear.value_width + 2 * self.linear.value_heads
            return hidden * wide + self.linear.conv_channels * self.linear.conv_width
        index = self._indexer_parameters(hidden)
        if self.latent is not None:
            mla = self.latent
            query = self.heads * (mla.nope_dim + mla.rope_dim)
            queries = hidden * query if mla.query_rank is None else (hidden + query) * mla.query_rank
            keys = hidden * (mla.kv_rank + mla.rope_dim) + mla.kv_rank * self.heads * (mla.nope_dim + mla.value_dim)
            return queries + keys + index
        gate = self.heads * self.value_width if self.gated_output else 0
        return hidden * (self.heads * self.head_dim + gate + self.kv_heads * (self.head_dim + self.value_width)) + index

    def output_parameters(self, hidden: int) -> int:
        """What takes the heads' outputs back to the hidden state."""
        if self.linear is not None:
            return hidden * self.linear.value_width
        width = self.latent.value_dim if self.latent is not None else self.value_width
        return hidden * self.heads * width

    def parameters(self, hidden: int) -> int:
        """Matrices only.

        >>> Attention(heads=32, kv_heads=8, head_dim=128).parameters(4096)    # 4096 x (4096 + 2 x 1024 + 4096)
        41943040
        """
        return self.input_parameters(hidden) + self.output_parameters(hidden)

    def _indexer_parameters(self, hidden: int) -> int:
        if self.indexer is None:
            return 0
        index, rank = self.indexer, self.latent.query_rank if self.latent is not None else None
        return (rank or hidden) * index.heads * index.head_dim + hidden * (index.head_dim + index.heads)


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
    expert_bias: bool = False
    """Each expert's matrices add a bias (gpt-oss)."""

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2

    def expert_parameters(self, hidden: int) -> int:
        """Of one expert; of the whole MLP where there are none."""
        return self.matrices * hidden * self.intermediate + self.bias_parameters(hidden)

    def bias_parameters(self, hidden: int) -> int:
        """Of one expert; those of dense MLPs are among `ModelShape.other_parameters`."""
        return (self.matrices - 1) * self.intermediate + hidden if self.expert_bias else 0

    def common_parameters(self, hidden: int) -> int:
        """Router and shared expert: what every token of a mixture goes through. 0 for a dense MLP."""
        return hidden * self.experts + self.matrices * hidden * self.shared_intermediate

    def parameters(self, hidden: int) -> int:
        return self.expert_parameters(hidden) * max(1, self.experts) + self.common_parameters(hidden)

    def active_parameters(self, hidden: int) -> int:
        """Those one token goes through.

        >>> mixtral = FeedForward(intermediate=14336, experts=8, experts_per_token=2)
        >>> mixtral.active_parameters(4096) == 2 * 3 * 4096 * 14336 + 8 * 4096    # two experts and the router
        True
        """
        chosen = self.experts_per_token if self.experts else 1
        return self.expert_parameters(hidden) * chosen + self.common_parameters(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """`count` layers of one kind. Groups say how many, not in which order they interleave."""

    count: int
    attention: Attention
    feed_forward: FeedForward

    def parameters(self, hidden: int) -> int:
        """Of the whole group: matrices only."""
        return self.count * (self.attention.parameters(hidden) + self.feed_forward.parameters(hidden))

    def active_parameters(self, hidden: int) -> int:
        """Those of the group that one token goes through."""
        return self.count * (self.attention.parameters(hidden) + self.feed_forward.active_parameters(hidden))

    def expert_parameters(self, hidden: int) -> int:
        """Routed experts of the group; 0 where its MLPs are dense."""
        return self.count * self.feed_forward.experts * self.feed_forward.expert_parameters(hidden)


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
    experts_dtype: Dtype | None = None
    """In which its routed experts are published; None: as the rest."""

    @property
    def layers(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def embedding_parameters(self) -> int:
        """The table of token embeddings."""
        return self.vocab * self.hidden

    @property
    def head_parameters(self) -> int:
        """The LM head's own matrix; 0 where it is the embedding table."""
        return 0 if self.tied_embeddings else self.vocab * self.hidden

    @property
    def expert_parameters(self) -> int:
        """All routed experts."""
        return sum(group.expert_parameters(self.hidden) for group in self.groups)

    @property
    def parameters(self) -> int:
        """Everything a checkpoint holds, next-token-prediction layers and vision towers aside.

        >>> dense = FeedForward(intermediate=14336)
        >>> layers = LayerGroup(count=32, attention=Attention(heads=32, kv_heads=8, head_dim=128), feed_forward=dense)
        >>> norms = 65 * 4096
        >>> ModelShape(name="", hidden=4096, vocab=128256, groups=(layers,), other_parameters=norms).parameters
        8030261248
        """
        layers = sum(group.parameters(self.hidden) for group in self.groups)
        return self.embedding_parameters + self.head_parameters + layers + self.other_parameters

    @property
    def active_parameters(self) -> int:
        """Those one token is computed with: chosen experts only, LM head included, embedding table left out (a row of
        it is looked up). The convention of the gpt-oss model card (OpenAI, 2025, table 1)."""
        layers = sum(group.active_parameters(self.hidden) for group in self.groups)
        return self.vocab * self.hidden + layers + self.other_parameters
