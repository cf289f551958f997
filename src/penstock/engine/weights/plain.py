"""The narrow forms in plain torch, for a machine without a C compiler; what each computes is defined here.

They take the memory they promise and the time they can: each product widens the weights first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor
from torch.nn import functional

from penstock.engine.weights.formats import GROUP

LEVELS: Final = (-8.0, -8.5, -7.5, -7.0, -6.5, 7.0)
"""What the value of the largest magnitude in a group of int4 may become; the scale of the least squared error wins."""


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., N] to whole numbers from -127 to 127 in float32 and scales [..., 1]: the largest magnitude is 127."""
    high = x.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(high > 0, 127.0 / high, 0.0)
    return (x * inverse).round(), high / 127.0


def quantize4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[O, I] to whole numbers [O, I / 32, 32] from -8 to 7 in float32, and scales [O, I / 32, 1], bfloat16's."""
    groups = _grouped(weight.float())
    extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    best, scales = torch.full_like(extreme, torch.inf), torch.zeros_like(extreme)
    for level in LEVELS:
        scale = (extreme / level).bfloat16().float()
        error = ((_whole4(groups, scale) * scale - groups) ** 2).sum(dim=2, keepdim=True)
        scales = torch.where(error < best, scale, scales)
        best = torch.minimum(error, best)
    return _whole4(groups, scales), scales


def _grouped(matrix: Tensor) -> Tensor:
    return matrix.view(matrix.shape[0], -1, GROUP)


def _whole4(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups * torch.where(scale != 0, 1.0 / scale, 0.0)).round().clamp(-8, 7)


@dataclass(frozen=True, slots=True)
class PlainInt8:
    """As panels.Int8Panels; with `rounds` False as Int8WeightPanels. q [O, I] int8, scales [O, 1]."""

    q: Tensor
    scales: Tensor
    rounds: bool

    @classmethod
    def of(cls, weight: Tensor, *, rounds: bool) -> Self:
        q, scales = quantize(weight.float())
        return cls(q.to(torch.int8), scales, rounds)

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scales.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.rounds:
            whole, row_scales = quantize(x)
            # In float64 these sums are exact, as they are in whole numbers.
            out = (whole.double() @ self.q.double().t()).float() * self.scales.t() * row_scales
        else:
            out = functional.linear(x, self.q.to(x.dtype)) * self.scales.t()
        return out if bias is None else out + bias


@dataclass(frozen=True, slots=True)
class PlainInt4:
    """As panels.Int4Panels. pairs [O, I / 2] uint8: q + 8 of an even input below, of the next one above."""

    pairs: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        q, scales = quantize4(weight)
        q = (q + 8).to(torch.uint8).flatten(1)
        return cls(q[:, ::2] | q[:, 1::2] << 4, scales.bfloat16())

    @property
    def shape(self) -> tuple[int, int]:
        return self.pairs.shape[0], 2 * self.pairs.shape[1]

    @property
    def nbytes(self) -> int:
        return self.pairs.nbytes + self.scales.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q = torch.stack((self.pairs & 15, self.pairs >> 4), dim=2).flatten(1).float() - 8
        weight = (_grouped(q) * self.scales.float()).flatten(1)
        whole, scales = quantize(_grouped(x))
        return functional.linear((whole * scales).flatten(1), weight, bias)
