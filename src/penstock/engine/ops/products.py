"""products.c and products_*.c through ctypes: packing weights into panels, and products with them.

T rows, O outputs, I inputs. Tensors are contiguous and on the CPU; threads follow torch.get_num_threads().
"""

from __future__ import annotations

import ctypes
import functools
from typing import Final

import torch
from torch import Tensor

from penstock.engine.ops.build import load_library
from penstock.engine.ops.large_pages import LargePages

PANEL: Final = 32
"""Outputs side by side; the last panel is filled up with zeros."""
KINDS: Final = {"float32": 0, "bfloat16": 1, "int8_weights": 2, "int8": 3, "int4": 4, "float32_compressed": 5}
"""How team.h numbers the forms of packed weights."""

WHOLE_BYTES: Final = 8
"""Of a float32 that does not fit into 28 bits."""

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


def float28_bytes(outputs: int, inputs: int) -> int:
    """Of the panels: 64 bytes each, and 448 for four inputs."""
    return -(-outputs // PANEL) * (64 + -(-inputs // 4) * 448)


class Products:
    """The functions of these files. Each raises MemoryError when its working memory cannot be had."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._pages = LargePages()
        self._pack = library.penstock_pack
        self._pack.argtypes, self._pack.restype = [_POINTER] * 2 + [_LONG] * 4, None
        self._product = _function(library.penstock_product, 5, 6)
        self._heads_float28 = library.penstock_float28_heads
        self._heads_float28.argtypes, self._heads_float28.restype = [_POINTER] * 2 + [_LONG] * 3, _LONG
        self._pack_float28 = library.penstock_pack_float28
        self._pack_float28.argtypes, self._pack_float28.restype = [_POINTER] * 3 + [_LONG] * 3, None
        self._pack_int8 = _function(library.penstock_pack_int8, 4, 4)
        self._product_int8 = _function(library.penstock_product_int8, 6, 4)
        self._pack_int4 = _function(library.penstock_pack_int4, 2, 4)
        self._product_int4 = _function(library.penstock_product_int4, 4, 4)

    def pack(self, weight: Tensor) -> Tensor:
        """[O, I] to panels [O / 32, I, 32] of the same type, float32 or bfloat16."""
        outputs, inputs = weight.shape
        packed = self._pages.empty((-(-outputs // PANEL), inputs, PANEL), weight.dtype)
        half = weight.dtype is torch.bfloat16
        self._pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs, half, torch.get_num_threads())
        return packed

    def product(
        self, x: Tensor, packed: Tensor, scales: Tensor | None, bias: Tensor | None, outputs: int, kind: int,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x [T, I] times panels of a float kind or of int8_weights, where `scales` [O] go with them and x is float32.

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

    def float28_heads(self, weight: Tensor) -> tuple[Tensor, int]:
        """The heads [O / 32, 3] int32 of what pack_float28 makes of [O, I] float32, and how many it keeps whole."""
        outputs, inputs = weight.shape
        heads = torch.empty(-(-outputs // PANEL), 3, dtype=torch.int32)
        threads = torch.get_num_threads()
        return heads, self._heads_float28(weight.data_ptr(), heads.data_ptr(), outputs, inputs, threads)

    def pack_float28(self, weight: Tensor, heads: Tensor, whole: int) -> Tensor:
        """[O, I] float32 and what float28_heads said of it to a blob of panels and list (products_float28.h)."""
        (outputs, inputs), threads = weight.shape, torch.get_num_threads()
        size = float28_bytes(outputs, inputs) + whole * WHOLE_BYTES
        packed = self._pages.empty((size,), torch.uint8)
        self._pack_float28(weight.data_ptr(), heads.data_ptr(), packed.data_ptr(), outputs, inputs, threads)
        return packed

    def pack_int8(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[O, I] to panels [O / 32, I / 4, 32, 4] int8, scales [O] float32, and 128 times each output's sum [O]."""
        outputs, inputs = weight.shape
        packed = self._pages.empty((-(-outputs // PANEL), -(-inputs // 4), PANEL, 4), torch.int8)
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
        packed = self._pages.empty((-(-outputs // PANEL), inputs // 32, PANEL * 18), torch.uint8)
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
