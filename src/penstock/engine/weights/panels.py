"""Weights for the C kernels: panels that a product reads once and in order (ops/products*.c).

In each form a row's result is the same to the bit whatever rows stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from penstock.engine.ops.products import KINDS, Products
from penstock.engine.scratch import Scratch

MOST_WHOLE: Final = 64
"""One weight in so many may be kept whole: then the lists take a quarter of what is saved."""


_AT_A_TIME: Final = 1 << 16
"""Weights that are looked at; in a matrix of float32, the first of them tell."""


@dataclass(frozen=True, slots=True)
class Panels:
    """What the forms have in common: `packed`, and where the form has them scales and sums of each output."""

    packed: Tensor
    scales: Tensor | None
    sums: Tensor | None
    shape: tuple[int, int]
    products: Products
    kind: int
    """As ops/team.h numbers the forms."""
    results: Scratch | None = None
    """Where products go, each over the last one; None: into memory of their own."""

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self.packed, self.scales, self.sums) if one is not None)

    def _out(self, x: Tensor) -> Tensor | None:
        if self.results is None:
            return None
        rows, outputs = x.shape[0], self.shape[0]
        return self.results.take(rows * outputs * x.element_size()).view(x.dtype).view(rows, outputs)


class FloatPanels(Panels):
    """float32 or bfloat16 as they are; sums in float32, up the inputs in one chain."""

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self:
        kind = KINDS["bfloat16" if weight.dtype is torch.bfloat16 else "float32"]
        return cls(products.pack(weight.contiguous()), None, None, _shape(weight), products, kind)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product(x, self.packed, None, bias, self.shape[0], self.kind, self._out(x))


class CompressedPanels(Panels):
    """float32 in fewer bits, to the bit what FloatPanels gives.

    16 where all weights are values of bfloat16, as in most published checkpoints, else 28 (ops/products_float28.h).
    """

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self | None:
        """None: more than one weight in `MOST_WHOLE` is too small beside its panel's largest, so nothing is gained."""
        half = _as_bfloat16(weight.contiguous())
        if half is not None:
            return cls(products.pack(half), None, None, _shape(weight), products, KINDS["bfloat16"])
        weight = weight.contiguous()
        heads, whole = products.float28_heads(weight)
        if whole * MOST_WHOLE > weight.numel():
            return None
        packed = products.pack_float28(weight, heads, whole)
        return cls(packed, None, None, _shape(weight), products, KINDS["float32_compressed"])

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product(x, self.packed, None, bias, self.shape[0], self.kind, self._out(x))


class Int8Panels(Panels):
    """int8 with a scale for each output. Activations become int8 with a scale for each row; sums are exact."""

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self:
        return cls(*products.pack_int8(weight.contiguous()), _shape(weight), products, KINDS["int8"])

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        assert self.scales is not None
        assert self.sums is not None
        return self.products.product_int8(x, self.packed, self.scales, self.sums, bias, self._out(x))


class Int8WeightPanels(Panels):
    """The same int8 weights; activations and sums stay float32."""

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self:
        packed, scales, _ = products.pack_int8(weight.contiguous())
        return cls(packed, scales, None, _shape(weight), products, KINDS["int8_weights"])

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product(x, self.packed, self.scales, bias, self.shape[0], self.kind, self._out(x))


class Int4Panels(Panels):
    """int4 in groups of 32 with a scale each. Activations become int8 in the same groups; sums are exact in a group."""

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self:
        return cls(products.pack_int4(weight.contiguous()), None, None, _shape(weight), products, KINDS["int4"])

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product_int4(x, self.packed, bias, self.shape[0], self._out(x))


def _as_bfloat16(weight: Tensor) -> Tensor | None:
    """float32 as bfloat16; None if a weight is none of its values."""
    bits = weight.view(torch.int32).flatten()
    half = torch.empty(bits.shape, dtype=torch.int16)
    for first in range(0, len(bits), _AT_A_TIME):
        some = bits[first : first + _AT_A_TIME]
        if (some & 0xFFFF).any():
            return None
        half[first : first + _AT_A_TIME] = some >> 16
    return half.view(torch.bfloat16).view(weight.shape)


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]
