"""The decoder that Llama, Mistral, Qwen and the mixtures share: norm, attention, norm, MLP, with residuals.

A family's file says which tensors make a layer; this file says what is done with them. Queries, keys and values are
one matrix, and so are gate and up, stacked at load: fewer, larger products per layer. Each residual addition is part
of the norm after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from penstock.engine.architecture import Architecture
from penstock.engine.batch import Batch
from penstock.engine.checkpoint import Checkpoint
from penstock.engine.ops.kernels import Heads, Kernels, QkNorm
from penstock.engine.ops.rope import RopeAngles


class Mlp(Protocol):
    """What stands between a layer's second norm and its second residual: [T, D] to [T, D]."""

    def __call__(self, x: Tensor, kernels: Kernels) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """gate_up [2I, D] with gate above up, down [D, I]; `activation` None is silu, which is fused."""

    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: Callable[[Tensor], Tensor] | None

    def __call__(self, x: Tensor, kernels: Kernels) -> Tensor:
        gate_up = kernels.linear(x, self.gate_up, self.gate_up_bias)
        if self.activation is None:
            inner = kernels.silu_mul(gate_up)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            inner = self.activation(gate) * up
        return kernels.linear(inner, self.down, self.down_bias)


@dataclass(frozen=True, slots=True)
class Layer:
    """qkv [(N + 2K) * H, D], out [D, N * H], norms [D]."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: QkNorm | None
    out: Tensor
    out_bias: Tensor | None
    scale: float
    window: int | None
    mlp_norm: Tensor
    mlp: Mlp


class Decoder:
    """Weights and the forward pass. Stateless between steps: KV is the caller's."""

    def __init__(
        self, architecture: Architecture, embedding: Tensor, layers: list[Layer], norm: Tensor, head: Tensor
    ) -> None:
        """embedding and head are [V, D], the same tensor when tied."""
        self.architecture = architecture
        self._embedding, self._layers, self._norm, self._head = embedding, layers, norm, head
        self._heads = Heads(architecture.heads, architecture.kv_heads, architecture.head_dim)

    def hidden(self, batch: Batch, pool: Tensor, kernels: Kernels, rope: RopeAngles | None) -> Tensor:
        """The normed last hidden state [R, D] of the rows that yield a token; writes this step's KV to `pool`."""
        assert rope is not None
        eps, heads = self.architecture.norm_eps, self._heads
        angles = rope(batch.positions, batch.rope_lengths)
        x = self._embedding.index_select(0, batch.token_ids)
        delta: Tensor | None = None
        for number, layer in enumerate(self._layers):
            h = kernels.add_rms_norm(x, delta, layer.attention_norm, eps)
            qkv = kernels.linear(h, layer.qkv, layer.qkv_bias)
            kernels.rotate_and_store(qkv, heads, angles, layer.qk_norm, pool, number, batch.kv_index)
            h = kernels.attention(qkv, heads, pool, number, batch.segments, layer.scale, layer.window)
            delta = kernels.linear(h, layer.out, layer.out_bias)
            h = kernels.add_rms_norm(x, delta, layer.mlp_norm, eps)
            delta = layer.mlp(h, kernels)
        if batch.logit_rows is not None:
            x = x.index_select(0, batch.logit_rows)
            delta = delta.index_select(0, batch.logit_rows) if delta is not None else None
        return kernels.add_rms_norm(x, delta, self._norm, eps)

    def logits(self, hidden: Tensor, kernels: Kernels) -> Tensor:
        """[R, D] to [R, V], in float32."""
        return kernels.linear(hidden, self._head, None).float()


def load_decoder(
    architecture: Architecture, checkpoint: Checkpoint, mlp: Callable[[Architecture, Checkpoint, int], Mlp]
) -> Decoder:
    """Take all tensors of a Llama-like checkpoint; `mlp` takes those of layer i's MLP."""
    a = architecture
    embedding = checkpoint.take("model.embed_tokens.weight", a.vocab_size, a.hidden)
    layers = [_load_layer(a, checkpoint, i, mlp) for i in range(a.layers)]
    norm = checkpoint.take("model.norm.weight", a.hidden)
    head = embedding if a.tied_embeddings else checkpoint.take("lm_head.weight", a.vocab_size, a.hidden)
    checkpoint.finish(unused=("lm_head.weight",) if a.tied_embeddings else ())
    return Decoder(a, embedding, layers, norm, head)


def _load_layer(
    a: Architecture, checkpoint: Checkpoint, i: int, mlp: Callable[[Architecture, Checkpoint, int], Mlp]
) -> Layer:
    at = f"model.layers.{i}"
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    parts = (("q", queries), ("k", keys), ("v", keys))
    qkv = checkpoint.take_stacked((f"{at}.self_attn.{p}_proj.weight", (rows, a.hidden)) for p, rows in parts)
    bias = None
    if a.qkv_bias:
        bias = checkpoint.take_stacked((f"{at}.self_attn.{p}_proj.bias", (rows,)) for p, rows in parts)
    qk_norm = None
    if a.qk_norm:
        qk_norm = QkNorm(
            checkpoint.take(f"{at}.self_attn.q_norm.weight", a.head_dim),
            checkpoint.take(f"{at}.self_attn.k_norm.weight", a.head_dim),
            a.norm_eps,
        )
    return Layer(
        attention_norm=checkpoint.take(f"{at}.input_layernorm.weight", a.hidden),
        qkv=qkv,
        qkv_bias=bias,
        qk_norm=qk_norm,
        out=checkpoint.take(f"{at}.self_attn.o_proj.weight", a.hidden, queries),
        out_bias=checkpoint.take(f"{at}.self_attn.o_proj.bias", a.hidden) if a.output_bias else None,
        scale=a.attention_scales[i],
        window=a.windows[i],
        mlp_norm=checkpoint.take(f"{at}.post_attention_layernorm.weight", a.hidden),
        mlp=mlp(a, checkpoint, i),
    )


def load_dense_mlp(a: Architecture, checkpoint: Checkpoint, i: int) -> DenseMlp:
    """Layer i's gate, up and down projections."""
    at, inner = f"model.layers.{i}.mlp", a.intermediate
    gate_up = checkpoint.take_stacked((f"{at}.{p}_proj.weight", (inner, a.hidden)) for p in ("gate", "up"))
    bias = None
    if a.mlp_bias:
        bias = checkpoint.take_stacked((f"{at}.{p}_proj.bias", (inner,)) for p in ("gate", "up"))
    return DenseMlp(
        gate_up=gate_up,
        gate_up_bias=bias,
        down=checkpoint.take(f"{at}.down_proj.weight", a.hidden, inner),
        down_bias=checkpoint.take(f"{at}.down_proj.bias", a.hidden) if a.mlp_bias else None,
        activation=activation(a.activation),
    )


def activation(name: str) -> Callable[[Tensor], Tensor] | None:
    """By its name in config.json; None for silu, which the kernels fuse."""
    if name in ("silu", "swish"):
        return None
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        return _gelu_tanh
    return torch.relu if name == "relu" else functional.gelu


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")
