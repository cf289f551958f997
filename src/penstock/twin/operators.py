"""The operators of a step, and the work of each: FLOP, bytes through memory, bytes over links. Knows no hardware.

An operator is immutable and hashable, so prices can cache by it. Shapes are those of one device: already divided by
the parallel layout. 1 multiply-add is 2 FLOP.

    T tokens (rows), D hidden, H heads, K KV heads, W head width, C context (tokens whose KV is read), S sequences
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.catalog.shape import DTYPE_BYTES

Kind = Literal[
    "embedding", "norm", "qkv", "rope", "kv_write", "attention_prefill", "attention_decode", "attention_linear",
    "attention_index", "out_proj", "router", "gate_up", "activation", "down", "experts", "lm_head", "sampler",
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send", "swap", "host",
]  # fmt: skip
CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]


@dataclass(frozen=True, slots=True)
class Work:
    """What an operator takes from each resource."""

    flop: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    link_bytes: float = 0.0

    @property
    def bytes(self) -> float:
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, slots=True)
class Gemm:
    """[rows, inner] x [inner, columns]; weights in `dtype`, activations in `activation_dtype`."""

    kind: Kind
    rows: int
    columns: int
    inner: int
    dtype: str
    activation_dtype: str = "bfloat16"

    def work(self) -> Work:
        element = DTYPE_BYTES[self.activation_dtype]
        return Work(
            flop=2.0 * self.rows * self.columns * self.inner,
            read_bytes=DTYPE_BYTES[self.dtype] * self.columns * self.inner + element * self.rows * self.inner,
            written_bytes=element * self.rows * self.columns,
        )


@dataclass(frozen=True, slots=True)
class PrefillAttention:
    """Causal attention of one chunk: `tokens` queries over `past` cached tokens and themselves."""

    tokens: int
    past: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    value_dim: int | None = None
    """Width of a value head if it differs from that of keys (MLA computed as plain attention)."""
    kind: Kind = "attention_prefill"

    def pairs(self) -> float:
        """Query-key pairs that the causal mask and the window leave."""
        full = self.tokens * self.past + self.tokens * (self.tokens + 1) / 2
        if self.window is None or self.past + self.tokens <= self.window:
            return full
        # Position p (from 0) sees min(p + 1, window) keys.
        below = max(0, min(self.tokens, self.window - self.past))
        return below * self.past + below * (below + 1) / 2 + (self.tokens - below) * self.window

    def work(self) -> Work:
        value_dim = self.head_dim if self.value_dim is None else self.value_dim
        seen = (
            self.past + self.tokens if self.window is None else min(self.past + self.tokens, self.window + self.tokens)
        )
        return Work(
            flop=2.0 * self.heads * (self.head_dim + value_dim) * self.pairs(),
            read_bytes=DTYPE_BYTES[self.kv_dtype] * self.kv_heads * (self.head_dim + value_dim) * seen
            + DTYPE_BYTES[self.dtype] * self.heads * self.head_dim * self.tokens,
            written_bytes=DTYPE_BYTES[self.dtype] * self.heads * value_dim * self.tokens,
        )


@dataclass(frozen=True, slots=True)
class DecodeAttention:
    """One query for each of `sequences`, over `context` cached tokens in all (their sum; windows already applied)."""

    sequences: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    spread: float = 0.0
    """Standard deviation of the sequences' lengths over their mean; 0: all alike."""
    kind: Kind = "attention_decode"

    def work(self) -> Work:
        return Work(
            flop=4.0 * self.heads * self.head_dim * self.context,
            read_bytes=2 * DTYPE_BYTES[self.kv_dtype] * self.kv_heads * self.head_dim * self.context
            + DTYPE_BYTES[self.dtype] * self.heads * self.head_dim * self.sequences,
            written_bytes=DTYPE_BYTES[self.dtype] * self.heads * self.head_dim * self.sequences,
        )


@dataclass(frozen=True, slots=True)
class LatentDecode:
    """MLA decode with absorbed projections: each query attends over latents of `kv_rank` + one RoPE key."""

    sequences: int
    context: int
    heads: int
    kv_rank: int
    rope_dim: int
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    spread: float = 0.0
    kind: Kind = "attention_decode"

    def work(self) -> Work:
        width = self.kv_rank + self.rope_dim
        return Work(
            flop=2.0 * self.heads * (width + self.kv_rank) * self.context,
            read_bytes=DTYPE_BYTES[self.kv_dtype] * width * self.context
            + DTYPE_BYTES[self.dtype] * self.heads * width * self.sequences,
            written_bytes=DTYPE_BYTES[self.dtype] * self.heads * self.kv_rank * self.sequences,
        )


@dataclass(frozen=True, slots=True)
class LatentPrefill:
    """MLA prefill of one chunk, keys and values of the whole context expanded from the latents."""

    tokens: int
    past: int
    heads: int
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    kind: Kind = "attention_prefill"

    def work(self) -> Work:
        pairs = self.tokens * self.past + self.tokens * (self.tokens + 1) / 2
        element, seen = DTYPE_BYTES[self.dtype], self.past + self.tokens
        query = self.rope_dim + self.nope_dim
        return Work(
            flop=2.0 * self.heads * (query + self.value_dim) * pairs,
            read_bytes=element * self.heads * (seen * (query + self.value_dim) + self.tokens * query),
            written_bytes=element * self.heads * self.value_dim * self.tokens,
        )


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of one layer on one device, both (or three) products and the activation between them.

    `tokens` are those of the whole expert-parallel group; `experts` is the whole model's count. A device holds
    experts / expert_parallel of them, each cut tensor_parallel ways.
    """

    tokens: int
    hidden: int
    intermediate: int
    experts: int
    experts_per_token: int
    tensor_parallel: int = 1
    expert_parallel: int = 1
    gated: bool = True
    dtype: str = "bfloat16"
    activation_dtype: str = "bfloat16"
    kind: Kind = "experts"

    def active_experts(self) -> float:
        """Experts of this device that get at least one token, expected, when routing is uniform."""
        share = self.experts_per_token / self.experts
        return self.experts / self.expert_parallel * (1.0 - (1.0 - share) ** self.tokens)

    def work(self) -> Work:
        rows = self.tokens * self.experts_per_token / self.expert_parallel
        matrices, width = 3 if self.gated else 2, self.intermediate / self.tensor_parallel
        element = DTYPE_BYTES[self.activation_dtype]
        return Work(
            flop=2.0 * matrices * rows * self.hidden * width,
            read_bytes=DTYPE_BYTES[self.dtype] * matrices * self.hidden * width * self.active_experts()
            + element * rows * (self.hidden + width),
            written_bytes=element * rows * (self.hidden + (matrices - 1) * width),
        )


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Norms, activations, RoPE, embedding look-ups, KV writes, copies, sampling: bound by bytes."""

    kind: Kind
    read_bytes: float
    written_bytes: float
    flop: float = 0.0
    rows: int = 0

    def work(self) -> Work:
        return Work(self.flop, self.read_bytes, self.written_bytes)


@dataclass(frozen=True, slots=True)
class Collective:
    """`bytes` is the message: what each rank holds before (all_reduce, reduce_scatter, all_to_all, send) or after
    (all_gather) it."""

    kind: CollectiveKind
    bytes: float
    ranks: int
    nodes: int = 1
    """How many nodes the ranks are spread over."""

    def work(self) -> Work:
        share = (self.ranks - 1) / self.ranks
        times = {"all_reduce": 2.0 * share, "send": 1.0}.get(self.kind, share)
        return Work(link_bytes=self.bytes * times)


Operator = Gemm | PrefillAttention | DecodeAttention | LatentPrefill | LatentDecode | Experts | Elementwise | Collective
