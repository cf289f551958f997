"""products.c, products_int8.c and products_int4.c through ctypes: packing weights into panels, and products with them.

T rows, O outputs, I inputs. Tensors are contiguous and on the CPU; threads follow torch.get_num_threads().
"""

from __future__ import annotations

import ctypes
import functools
from typing import Final

import torch
from torch import Tensor

from penstock.engine.ops.build import load_library

PANEL: Final = 32
"""Outputs side by side; the last panel is filled up with zeros."""
KINDS: Final = {"float32": 0, "bfloat16": 1, "int8_weights": 2, "int8": 3, "int4": 4}
"""How team.h numbers the forms of packed weights."""

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


class Products:
    """The functions of the three files. Each raises MemoryError when its working memory cannot be had."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._pack = library.penstock_pack
        self._pack.argtypes, self._pack.restype = [_POINTER] * 2 + [_LONG] * 4, None
        self._product = _function(library.penstock_product, 5, 6)
        self._pack_int8 = _function(library.penstock_pack_int8, 4, 4)
        self._product_int8 = _function(library.penstock_product_int8, 6, 4)
        self._pack_int4 = _function(library.penstock_pack_int4, 2, 4)
        self._product_int4 = _function(library.penstock_product_int4, 4, 4)

    def pack(self, weight: Tensor) -> Tensor:
        """[O, I] to panels [O / 32, I, 32] of the same type, float32 or bfloat16."""
        outputs, inputs = weight.shape
        packed = weight.new_empty(-(-outputs // PANEL), inputs, PANEL)
        half = weight.dtype is torch.bfloat16
        self._pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs, half, torch.get_num_threads())
        return packed

    def product(
        self, x: Tensor, packed: Tensor, scales: Tensor | None, bias: Tensor | None, outputs: int, kind: int,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x [T, I] times panels of one of the first three KINDS; `scales` [O] go with int8, and x is float32 then.

        `out` [T, O], here and below: where the result goes; None: into memory of its own.
        """
        rows, inputs = x.shape
        x = x.contiguous()
        out = x.new_empty(rows, outputs) if out is None else out
        _check(
            self._product(
                x.data_ptr(), packed.data_ptr(), _address(scales), _address(bias), out.data_ptr(), rows, inputs,
                outputs, kind, x.dtype is torch.bfloat16, torch.get_num_threads(),
            )
        )  # fmt: skip
        return out

    def pack_int8(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[O, I] to panels [O / 32, I / 4, 32, 4] int8, scales [O] float32, and 128 times each output's sum [O]."""
        outputs, inputs = weight.shape
        packed = torch.empty(-(-outputs // PANEL), -(-inputs // 4), PANEL, 4, dtype=torch.int8)
        scales, sums = torch.empty(outputs), torch.empty(outputs, dtype=torch.int32)
        half = weight.dtype is torch.bfloat16
        _check(
            self._pack_int8(
                weight.data_ptr(), packed.data_ptr(), scales.data_ptr(), sums.data_ptr(), outputs, inputs, half,
                torch.get_num_threads(),
            )
        )  # fmt: skip
        return packed, scales, sums

    def product_int8(
        self, x: Tensor, packed: Tensor, scales: Tensor, sums: Tensor, bias: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        """x [T, I] float32, made int8 by row, times what pack_int8 gave."""
        (rows, inputs), outputs = x.shape, scales.shape[0]
        x = x.contiguous()
        out = x.new_empty(rows, outputs) if out is None else out
        _check(
            self._product_int8(
                x.data_ptr(), packed.data_ptr(), scales.data_ptr(), sums.data_ptr(), _address(bias), out.data_ptr(),
                rows, inputs, outputs, torch.get_num_threads(),
            )
        )  # fmt: skip
        return out

    def pack_int4(self, weight: Tensor) -> Tensor:
        """[O, I], I a multiple of 32, to panels [O / 32, I / 32, 576] uint8: 512 bytes of weights, 64 of scales."""
        outputs, inputs = weight.shape
        packed = torch.empty(-(-outputs // PANEL), inputs // 32, PANEL * 18, dtype=torch.uint8)
        half = weight.dtype is torch.bfloat16
        _check(
            self._pack_int4(
                weight.data_ptr(), packed.data_ptr(), outputs, inputs, half, torch.get_num_threads()
            )
        )  # fmt: skip
        return packed

    def product_int4(
        self, x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, out: Tensor | None = None
    ) -> Tensor:
        """x [T, I] float32, made int8 by row and group, times what pack_int4 gave."""
        rows, inputs = x.shape
        x = x.contiguous()
        out = x.new_empty(rows, outputs) if out is None else out
        _check(
            self._product_int4(
                x.data_ptr(), packed.data_ptr(), _address(bias), out.data_ptr(), rows, inputs, outputs,
                torch.get_num_threads(),
            )
        )  # fmt: skip
        return out


@functools.lru_cache(maxsize=1)
def load_products() -> Products:
    """Compiled if need be. Raises NativeUnavailable."""
    return Products(load_library())


def _function(function: ctypes._NamedFuncPointer, pointers: int, numbers: int) -> ctypes._NamedFuncPointer:
    function.argtypes, function.restype = [_POINTER] * pointers + [_LONG] * numbers, ctypes.c_int
    return function


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("a matrix product could not get its working memory")
