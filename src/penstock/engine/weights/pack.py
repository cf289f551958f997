"""Which form the matrices of a model get: by dtype, device, and whether the C kernels are there."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.engine.ops.build import NativeUnavailable
from penstock.engine.ops.products import Products, load_products
from penstock.engine.weights import Matrix, Pack
from penstock.engine.weights.formats import GROUP, format_of
from penstock.engine.weights.fp8 import fp8
from penstock.engine.weights.panels import CompressedPanels, FloatPanels, Int4Panels, Int8Panels, Int8WeightPanels
from penstock.engine.weights.plain import PlainInt4, PlainInt8
from penstock.errors import UnsupportedModel


def packing(dtype: str, device: torch.device) -> Pack | None:
    """How to pack for `dtype` on `device`; None where plain tensors serve best.

    Raises: UnsupportedModel: `dtype` is not for this device, or needs kernels that are not here.
    """
    if dtype == "fp8":
        return fp8(device)
    if device.type != "cpu":
        if format_of(dtype).device == "cpu":
            raise UnsupportedModel(
                field="dtype", value=dtype, why=f"its products are written for CPUs, not for {device.type}",
                remedy="float32, bfloat16 or fp8",
            )  # fmt: skip
        return None
    try:
        return _panels(dtype, load_products())
    except NativeUnavailable as error:
        if dtype == "float32_compressed":
            raise UnsupportedModel(
                field="dtype", value=dtype, why=f"only the compiled kernels multiply it, and there are none: {error}",
                remedy="float32, or install a C compiler",
            ) from error  # fmt: skip
        return _plain(dtype)


def _panels(dtype: str, products: Products) -> Pack:
    def pack(weight: Tensor) -> Matrix:
        if dtype == "int8_weights":
            return Int8WeightPanels.of(weight, products)
        if dtype == "int4" and weight.shape[1] % GROUP == 0:
            return Int4Panels.of(weight, products)
        if dtype in ("int8", "int4"):
            return Int8Panels.of(weight, products)
        compressed = CompressedPanels.of(weight, products) if dtype == "float32_compressed" else None
        return compressed or FloatPanels.of(weight, products)

    return pack


def _plain(dtype: str) -> Pack | None:
    if not format_of(dtype).narrow:
        return None

    def pack(weight: Tensor) -> Matrix:
        if dtype == "int4" and weight.shape[1] % GROUP == 0:
            return PlainInt4.of(weight)
        return PlainInt8.of(weight, rounds=dtype != "int8_weights")

    return pack
