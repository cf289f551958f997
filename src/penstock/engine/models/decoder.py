"""The decoder that all families but GPT-2 share: norm, attention, norm, MLP, with residuals.

A family's file says which tensors make a layer; this file says what is done with them. Queries, keys and values are
one matrix, and so are gate and up, stacked at load: fewer, larger products per layer. Each residual addition is part
of the norm after it. What adapters add (engine/lora/) comes right after the product it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

from penstock.engine.architecture import Architecture
from penstock.engine.batch import Batch
from penstock.engine.checkpoint import Checkpoint
from penstock.engine.lora.step import LayerAdapters
from penstock.engine.ops.kernels import Heads, Kernels, QkNorm
from penstock.engine.ops.layers import MOST_KINDS, LayerParts, NativeLayers
from penstock.engine.ops.native import NativeKernels
from penstock.engine.ops.rope import Angles, LayerAngles
from penstock.engine.scratch import Scratch
from penstock.engine.weights import Matrix, Pack
from penstock.engine.weights.panels import Panels


class Mlp(Protocol):
    """What stands between a layer's second norm and its second residual: [T, D] to [T, D]."""

    def __call__(self, x: Tensor, kernels: Kernels, adapters: LayerAdapters | None) -> Tensor: ...

    def packed(self, how: Pack) -> Self:
        """The same MLP with the matrices of its products packed."""


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """gate_up [2I, D] with gate above up, down [D, I]; `activation` None is silu, which is fused."""

    gate_up: Matrix
    gate_up_bias: Tensor | None
    down: Matrix
    down_bias: Tensor | None
    activation: Callable[[Tensor], Tensor] | None

    def packed(self, how: Pack) -> Self:
        return replace(self, gate_up=packed(self.gate_up, how), down=packed(self.down, how))

    def __call__(self, x: Tensor, kernels: Kernels, adapters: LayerAdapters | None) -> Tensor:
        gate_up = kernels.linear(x, self.gate_up, self.gate_up_bias)
        if adapters is not None:
            adapters.add("gate_up", x, gate_up)
        if self.activation is None:
            inner = kernels.silu_mul(gate_up)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            inner = self.activation(gate) * up
        down = kernels.linear(inner, self.down, self.down_bias)
        if adapters is not None:
            adapters.add("down", inner, down)
        return down


@dataclass(frozen=True, slots=True)
class Layer:
    """qkv [(N + 2K) * H, D], out [D, N * H], norms [D]. Output norms: see Architecture."""

    attention_norm: Tensor
    qkv: Matrix
    qkv_bias: Tensor | None
    qk_norm: QkNorm | None
    out: Matrix
    out_bias: Tensor | None
    scale: float
    window: int | None
    mlp_norm: Tensor
    mlp: Mlp
    attention_output_norm: Tensor | None
    mlp_output_norm: Tensor | None

    def packed(self, how: Pack) -> Self:
        return replace(self, qkv=packed(self.qkv, how), out=packed(self.out, how), mlp=self.mlp.packed(how))

    def parts(self) -> LayerParts | None:
        """For NativeLayers; None where they have no code for it."""
        mlp = self.mlp
        if not isinstance(mlp, DenseMlp) or mlp.activation is not None:
            return None
        matrices = (
            (self.qkv, self.qkv_bias), (self.out, self.out_bias),
            (mlp.gate_up, mlp.gate_up_bias), (mlp.down, mlp.down_bias),
        )  # fmt: skip
        panels = [(matrix, bias) for matrix, bias in matrices if isinstance(matrix, Panels)]
        if len(panels) < len(matrices):
            return None
        return LayerParts(
            self.attention_norm, self.mlp_norm, self.attention_output_norm, self.mlp_output_norm, self.qk_norm, panels,
            self.scale, self.window,
        )  # fmt: skip


class Decoder:
    """Weights and the forward pass. Stateless between steps: KV is the caller's."""

    def __init__(
        self, architecture: Architecture, embedding: Tensor, layers: list[Layer], norm: Tensor, head: Tensor
    ) -> None:
        """embedding and head are [V, D], the same tensor when tied."""
        self.architecture = architecture
        self._embedding, self._layers, self._norm = embedding, layers, norm
        self._head: Matrix = head
        self._heads = Heads(architecture.heads, architecture.kv_heads, architecture.head_dim)
        self._whole: NativeLayers | None = None
        self._looked = False
        self._scale: float | None = None
        if architecture.embedding_scale is not None:
            # As precise as the embeddings are: models are trained with the rounded factor.
            self._scale = float(torch.tensor(architecture.embedding_scale, dtype=embedding.dtype))

    def pack(self, how: Pack, *, tied: bool = True) -> None:
        """Replace the matrices of all products that are not packed yet.

        Embeddings, norms and routers stay as they are. `tied`: whether a tied head becomes a matrix of its own.
        """
        self._whole, self._looked = None, False
        for number, layer in enumerate(self._layers):
            self._layers[number] = layer.packed(how)
        if tied or self._head is not self._embedding:
            self._head = packed_head(self._head, how)

    def hidden(self, batch: Batch, pool: Tensor, kernels: Kernels, rope: LayerAngles | None) -> Tensor:
        """The normed last hidden state [R, D] of the rows that yield a token; writes this step's KV to `pool`."""
        assert rope is not None
        angles, windowed = rope(batch.positions, batch.rope_lengths)
        x = self._embedding.index_select(0, batch.token_ids)
        if self._scale is not None:
            x *= self._scale
        whole = self.whole(kernels) if batch.adapters is None else None
        if whole is not None:
            delta: Tensor | None = whole.run(x, batch, pool, angles, windowed)
        else:
            delta = self._layer_by_layer(x, batch, pool, kernels, angles, windowed)
        if batch.logit_rows is not None:
            x = x.index_select(0, batch.logit_rows)
            delta = delta.index_select(0, batch.logit_rows) if delta is not None else None
        return kernels.add_rms_norm(x, delta, self._norm, self.architecture.norm_eps)

    def whole(self, kernels: Kernels) -> NativeLayers | None:
        """All layers as one call of `kernels`, or of the `plain` ones that they wrap; None: there is no such thing."""
        if not isinstance(getattr(kernels, "plain", kernels), NativeKernels):
            return None
        if not self._looked:
            self._looked = True
            parts = [part for part in (layer.parts() for layer in self._layers) if part is not None]
            fits = len(parts) == len(self._layers) and len({part.window for part in parts}) <= MOST_KINDS
            if fits:
                a = self.architecture
                self._whole = NativeLayers(parts, self._heads, a.norm_eps, a.attention_softcap)
        return self._whole

    def _layer_by_layer(
        self, x: Tensor, batch: Batch, pool: Tensor, kernels: Kernels, angles: Angles, windowed: Angles
    ) -> Tensor | None:
        """x [T, D] through all layers, in place, but for the last sum, which is returned."""
        eps, heads, softcap = self.architecture.norm_eps, self._heads, self.architecture.attention_softcap
        adapters: LayerAdapters | None = None
        delta: Tensor | None = None
        for number, layer in enumerate(self._layers):
            if batch.adapters is not None:
                adapters = batch.adapters.of_layer(number)
            h = kernels.add_rms_norm(x, delta, layer.attention_norm, eps)
            qkv = kernels.linear(h, layer.qkv, layer.qkv_bias)
            if adapters is not None:
                adapters.add("qkv", h, qkv)
            turn = angles if layer.window is None else windowed
            kernels.rotate_and_store(qkv, heads, turn, layer.qk_norm, pool, number, batch.kv_index)
            h = kernels.attention(qkv, heads, pool, number, batch.segments, layer.scale, layer.window, softcap)
            delta = kernels.linear(h, layer.out, layer.out_bias)
            if adapters is not None:
                adapters.add("out", h, delta)
            if layer.attention_output_norm is not None:
                delta = kernels.add_rms_norm(delta, None, layer.attention_output_norm, eps)
            h = kernels.add_rms_norm(x, delta, layer.mlp_norm, eps)
            delta = layer.mlp(h, kernels, adapters)
            if layer.mlp_output_norm is not None:
                delta = kernels.add_rms_norm(delta, None, layer.mlp_output_norm, eps)
        return delta

    def logits(self, hidden: Tensor, kernels: Kernels) -> Tensor:
        """[R, D] to [R, V], in float32; the next call may write over them."""
        logits = kernels.linear(hidden, self._head, None).float()
        cap = self.architecture.logit_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def load_decoder(
    architecture: Architecture,
    checkpoint: Checkpoint,
    mlp: Callable[[Architecture, Checkpoint, int], Mlp],
    pack: Pack | None,
) -> Decoder:
    """Take all tensors of a Llama-like checkpoint, `mlp` those of layer i's MLP; pack each layer as it comes."""
    a = architecture
    embedding = checkpoint.take("model.embed_tokens.weight", a.vocab_size, a.hidden)
    layers = []
    for i in range(a.layers):
        layer = _load_layer(a, checkpoint, i, mlp)
        layers.append(layer if pack is None else layer.packed(pack))
    norm = _norm(a, checkpoint, "model.norm", a.hidden)
    head = embedding if a.tied_embeddings else checkpoint.take("lm_head.weight", a.vocab_size, a.hidden)
    checkpoint.finish(unused=("lm_head.weight",) if a.tied_embeddings else ())
    return Decoder(a, embedding, layers, norm, head)


def _load_layer(
    a: Architecture, checkpoint: Checkpoint, i: int, mlp: Callable[[Architecture, Checkpoint, int], Mlp]
) -> Layer:
    at = f"model.layers.{i}"
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    parts = (("q", queries), ("k", keys), ("v", keys))
    if a.fused:
        qkv = checkpoint.take(f"{at}.self_attn.qkv_proj.weight", queries + 2 * keys, a.hidden)
    else:
        qkv = checkpoint.take_stacked((f"{at}.self_attn.{p}_proj.weight", (rows, a.hidden)) for p, rows in parts)
    bias = None
    if a.qkv_bias:
        bias = checkpoint.take_stacked((f"{at}.self_attn.{p}_proj.bias", (rows,)) for p, rows in parts)
    qk_norm = None
    if a.qk_norm:
        qk_norm = QkNorm(
            _norm(a, checkpoint, f"{at}.self_attn.q_norm", a.head_dim),
            _norm(a, checkpoint, f"{at}.self_attn.k_norm", a.head_dim),
            a.norm_eps,
        )
    mlp_norm, output_norm = f"{at}.post_attention_layernorm", None
    if a.output_norms:
        mlp_norm, output_norm = f"{at}.pre_feedforward_layernorm", mlp_norm
    return Layer(
        attention_norm=_norm(a, checkpoint, f"{at}.input_layernorm", a.hidden),
        qkv=qkv,
        qkv_bias=bias,
        qk_norm=qk_norm,
        out=checkpoint.take(f"{at}.self_attn.o_proj.weight", a.hidden, queries),
        out_bias=checkpoint.take(f"{at}.self_attn.o_proj.bias", a.hidden) if a.output_bias else None,
        scale=a.attention_scales[i],
        window=a.windows[i],
        mlp_norm=_norm(a, checkpoint, mlp_norm, a.hidden),
        mlp=mlp(a, checkpoint, i),
        attention_output_norm=_norm(a, checkpoint, output_norm, a.hidden) if output_norm else None,
        mlp_output_norm=_norm(a, checkpoint, f"{at}.post_feedforward_layernorm", a.hidden) if a.output_norms else None,
    )


def _norm(a: Architecture, checkpoint: Checkpoint, name: str, width: int) -> Tensor:
    weight = checkpoint.take(f"{name}.weight", width)
    return (1.0 + weight.float()).to(weight.dtype) if a.offset_norms else weight


def load_dense_mlp(a: Architecture, checkpoint: Checkpoint, i: int) -> DenseMlp:
    """Layer i's gate, up and down projections."""
    at, inner = f"model.layers.{i}.mlp", a.intermediate
    if a.fused:
        gate_up = checkpoint.take(f"{at}.gate_up_proj.weight", 2 * inner, a.hidden)
    else:
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


def packed(matrix: Matrix, how: Pack) -> Matrix:
    """As `how` makes it; what is packed already stays."""
    return how(matrix) if isinstance(matrix, Tensor) else matrix


def packed_head(head: Matrix, how: Pack) -> Matrix:
    """The same for the matrix whose product are the logits: the largest result of a step by far, in one place."""
    made = packed(head, how)
    return replace(made, results=Scratch()) if isinstance(made, Panels) and made.results is None else made


def activation(name: str) -> Callable[[Tensor], Tensor] | None:
    """By its name in config.json; None for silu, which the kernels fuse."""
    if name in ("silu", "swish"):
        return None
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        return _gelu_tanh
    return torch.relu if name == "relu" else functional.gelu


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")
