"""GPT-2: learned positions, LayerNorm, one head per KV head, a plain MLP, biases everywhere.

Its checkpoints store matrices transposed (transformers' Conv1D) and with or without the prefix "transformer.".
Source: Language Models are Unsupervised Multitask Learners, Radford et al., 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor
from torch.nn import functional

from penstock.engine.architecture import Architecture
from penstock.engine.batch import Batch
from penstock.engine.checkpoint import Checkpoint
from penstock.engine.models.decoder import activation, packed, packed_head
from penstock.engine.ops.kernels import Heads, Kernels
from penstock.engine.ops.rope import LayerAngles
from penstock.engine.weights import Matrix, Pack

PREFIX = "transformer."


@dataclass(frozen=True, slots=True)
class Linear:
    """weight [out, in], bias [out]."""

    weight: Matrix
    bias: Tensor

    def packed(self, how: Pack) -> Self:
        return replace(self, weight=packed(self.weight, how))

    def __call__(self, x: Tensor, kernels: Kernels) -> Tensor:
        return kernels.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """weight and bias [D]."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    attention_norm: Norm
    qkv: Linear
    out: Linear
    scale: float
    mlp_norm: Norm
    up: Linear
    down: Linear

    def packed(self, how: Pack) -> Self:
        return replace(
            self, qkv=self.qkv.packed(how), out=self.out.packed(how), up=self.up.packed(how), down=self.down.packed(how)
        )


class Gpt2:
    """Weights and the forward pass, as models/decoder.py's Decoder."""

    def __init__(
        self,
        architecture: Architecture,
        embedding: Tensor,
        positions: Tensor,
        layers: list[Layer],
        norm: Norm,
        head: Tensor,
    ) -> None:
        self.architecture = architecture
        self._embedding, self._positions, self._layers, self._norm = embedding, positions, layers, norm
        self._head: Matrix = head
        self._heads = Heads(architecture.heads, architecture.kv_heads, architecture.head_dim)
        self._activation = activation(architecture.activation) or functional.silu

    def pack(self, how: Pack, *, tied: bool = True) -> None:
        """As models/decoder.py's."""
        for number, layer in enumerate(self._layers):
            self._layers[number] = layer.packed(how)
        if tied or self._head is not self._embedding:
            self._head = packed_head(self._head, how)

    def hidden(self, batch: Batch, pool: Tensor, kernels: Kernels, rope: LayerAngles | None) -> Tensor:
        x = self._embedding.index_select(0, batch.token_ids)
        x += self._positions.index_select(0, batch.positions)
        for number, layer in enumerate(self._layers):
            adapters = None if batch.adapters is None else batch.adapters.of_layer(number)
            normed = layer.attention_norm(x)
            qkv = layer.qkv(normed, kernels)
            if adapters is not None:
                adapters.add("qkv", normed, qkv)
            kernels.rotate_and_store(qkv, self._heads, None, None, pool, number, batch.kv_index)
            h = kernels.attention(qkv, self._heads, pool, number, batch.segments, layer.scale, None)
            attended = layer.out(h, kernels)
            if adapters is not None:
                adapters.add("out", h, attended)
            x += attended
            normed = layer.mlp_norm(x)
            up = layer.up(normed, kernels)
            if adapters is not None:
                adapters.add("gate_up", normed, up)
            inner = self._activation(up)
            down = layer.down(inner, kernels)
            if adapters is not None:
                adapters.add("down", inner, down)
            x += down
        if batch.logit_rows is not None:
            x = x.index_select(0, batch.logit_rows)
        return self._norm(x)

    def logits(self, hidden: Tensor, kernels: Kernels) -> Tensor:
        """[R, D] to [R, V], in float32; the next call may write over them."""
        return kernels.linear(hidden, self._head, None).float()


def load(architecture: Architecture, checkpoint: Checkpoint, pack: Pack | None) -> Gpt2:
    a = architecture
    embedding = checkpoint.take("transformer.wte.weight", a.vocab_size, a.hidden)
    positions = checkpoint.take("transformer.wpe.weight", a.max_positions, a.hidden)

    def norm(name: str) -> Norm:
        return Norm(checkpoint.take(f"{name}.weight", a.hidden), checkpoint.take(f"{name}.bias", a.hidden), a.norm_eps)

    def conv1d(name: str, inputs: int, outputs: int) -> Linear:
        weight: Matrix = checkpoint.take(f"{name}.weight", inputs, outputs).t().contiguous()
        return Linear(weight if pack is None else packed(weight, pack), checkpoint.take(f"{name}.bias", outputs))

    layers = [
        Layer(
            attention_norm=norm(f"transformer.h.{i}.ln_1"),
            qkv=conv1d(f"transformer.h.{i}.attn.c_attn", a.hidden, 3 * a.hidden),
            out=conv1d(f"transformer.h.{i}.attn.c_proj", a.hidden, a.hidden),
            scale=a.attention_scales[i],
            mlp_norm=norm(f"transformer.h.{i}.ln_2"),
            up=conv1d(f"transformer.h.{i}.mlp.c_fc", a.hidden, a.intermediate),
            down=conv1d(f"transformer.h.{i}.mlp.c_proj", a.intermediate, a.hidden),
        )
        for i in range(a.layers)
    ]
    final = norm("transformer.ln_f")
    head = embedding if a.tied_embeddings else checkpoint.take("lm_head.weight", a.vocab_size, a.hidden)
    checkpoint.finish(unused=("lm_head.weight",) if a.tied_embeddings else ())
    return Gpt2(a, embedding, positions, layers, final, head)
