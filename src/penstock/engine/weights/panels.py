"""Weights for the C kernels: panels that a product reads once and in order (ops/products.c, ops/products_int.c).

In each form a row's result is the same to the bit whatever rows stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from penstock.engine.ops.products import Products


@dataclass(frozen=True, slots=True)
class FloatPanels:
    """float32 or bfloat16 as they are; sums in float32, up the inputs in one chain."""

    packed: Tensor
    shape: tuple[int, int]
    products: Products

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self:
        return cls(products.pack(weight.contiguous()), (weight.shape[0], weight.shape[1]), products)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product(x, self.packed, None, bias, self.shape[0])


@dataclass(frozen=True, slots=True)
class Int8Panels:
    """int8 with a scale for each output. Activations become int8 with a scale for each row; sums are exact."""

    packed: Tensor
    scales: Tensor
    sums: Tensor
    shape: tuple[int, int]
    products: Products

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self:
        return cls(*products.pack_int8(weight.contiguous()), (weight.shape[0], weight.shape[1]), products)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes + self.sums.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product_int8(x, self.packed, self.scales, self.sums, bias)


@dataclass(frozen=True, slots=True)
class Int8WeightPanels:
    """The same int8 weights; activations and sums stay float32."""

    packed: Tensor
    scales: Tensor
    shape: tuple[int, int]
    products: Products

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self:
        packed, scales, _ = products.pack_int8(weight.contiguous())
        return cls(packed, scales, (weight.shape[0], weight.shape[1]), products)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product(x, self.packed, self.scales, bias, self.shape[0])


@dataclass(frozen=True, slots=True)
class Int4Panels:
    """int4 in groups of 32 with a scale each. Activations become int8 in the same groups; sums are exact in a group."""

    packed: Tensor
    shape: tuple[int, int]
    products: Products

    @classmethod
    def of(cls, weight: Tensor, products: Products) -> Self:
        return cls(products.pack_int4(weight.contiguous()), (weight.shape[0], weight.shape[1]), products)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.products.product_int4(x, self.packed, bias, self.shape[0])
