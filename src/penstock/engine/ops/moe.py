"""Mixture of experts: each row goes through the few experts its router prefers, each expert sees its rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from penstock.engine.lora.step import LayerAdapters
from penstock.engine.ops.kernels import Kernels
from penstock.engine.weights import Matrix, Pack


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """E experts: router [E, D], gate_up [E, 2I, D] with gate above up, down [E, D, I]; packed, a sequence of E."""

    router: Tensor
    gate_up: Tensor | Sequence[Matrix]
    down: Tensor | Sequence[Matrix]
    per_token: int
    normalize: bool

    def packed(self, how: Pack) -> Self:
        """The same experts with their matrices packed. The router stays: it is small, and its choice is delicate."""
        return replace(self, gate_up=_each(self.gate_up, how), down=_each(self.down, how))

    def __call__(self, x: Tensor, kernels: Kernels, adapters: LayerAdapters | None) -> Tensor:
        """[T, D] to [T, D]: the weighted sum of each row's experts, added in the order of their numbers.

        No adapter changes experts (lora/targets.py refuses those that would), so `adapters` is left alone.
        """
        probabilities = torch.softmax(kernels.linear(x, self.router, None), dim=-1, dtype=torch.float32)
        weight, expert = torch.topk(probabilities, self.per_token, dim=-1)
        if self.normalize:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        order = torch.argsort(expert.flatten(), stable=True)
        rows = order // self.per_token
        weight = weight.to(x.dtype).flatten()[order, None]
        counts = torch.bincount(expert.flatten(), minlength=self.router.shape[0]).tolist()
        out = torch.zeros_like(x)
        first = 0
        for number, count in enumerate(counts):
            if count == 0:
                continue
            mine = rows[first : first + count]
            inner = kernels.silu_mul(kernels.linear(x[mine], self.gate_up[number], None))
            out.index_add_(0, mine, kernels.linear(inner, self.down[number], None) * weight[first : first + count])
            first += count
        return out


def _each(experts: Tensor | Sequence[Matrix], how: Pack) -> Sequence[Matrix]:
    return [how(one) for one in experts] if isinstance(experts, Tensor) else experts
