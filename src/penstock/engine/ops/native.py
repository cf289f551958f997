"""The operations in C on the CPU, called through ctypes; build.py compiles and loads them."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor
from torch.nn import functional

from penstock.engine.ops.build import load_library
from penstock.engine.ops.kernels import Heads, QkNorm, Segments
from penstock.engine.weights import Matrix

_POINTER, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_double


class NativeKernels:
    """See `Kernels` for what each does. Threads follow torch.get_num_threads()."""

    name = "native"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._attention = library.penstock_attention
        self._attention.argtypes = [_POINTER] * 10 + [_LONG] * 10 + [_DOUBLE, _DOUBLE, _LONG, _LONG]
        self._attention.restype = ctypes.c_int
        self._linear = library.penstock_linear
        self._linear.argtypes = [_POINTER] * 4 + [_LONG] * 5
        self._linear.restype = ctypes.c_int
        self._add_rms_norm = library.penstock_add_rms_norm
        self._add_rms_norm.argtypes = [_POINTER] * 4 + [_LONG] * 2 + [_DOUBLE, _LONG, _LONG]
        self._add_rms_norm.restype = None
        self._silu_mul = library.penstock_silu_mul
        self._silu_mul.argtypes = [_POINTER] * 2 + [_LONG] * 4
        self._silu_mul.restype = None
        self._rotate_and_store = library.penstock_rotate_and_store
        self._rotate_and_store.argtypes = [_POINTER] * 7 + [_LONG] * 7 + [_DOUBLE, _LONG, _LONG]
        self._rotate_and_store.restype = None

    def max_threads(self) -> int:
        """What the OpenMP runtime these kernels use would start."""
        return int(self._library.penstock_max_threads())

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        if not isinstance(weight, Tensor):
            return weight.product(x, bias)
        rows, inputs = x.shape
        outputs = weight.shape[0]
        half = x.dtype is torch.bfloat16
        if rows > _few_rows(half, outputs * inputs):
            return functional.linear(x, weight, bias)
        out = x.new_empty(rows, outputs)
        failed = self._linear(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            outputs,
            half,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("a matrix product could not get its working memory")
        return out

    def add_rms_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        rows, width = x.shape
        self._add_rms_norm(
            x.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            rows,
            width,
            eps,
            x.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        half = gate_up.dtype is torch.bfloat16
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width, half, torch.get_num_threads())
        return out

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: Heads,
        angles: tuple[Tensor, Tensor] | None,
        norm: QkNorm | None,
        pool: Tensor,
        layer: int,
        kv_index: Tensor,
    ) -> None:
        self._rotate_and_store(
            qkv.data_ptr(),
            _at_layer(pool, layer),
            None if angles is None else angles[0].data_ptr(),
            None if angles is None else angles[1].data_ptr(),
            None if norm is None else norm.query.data_ptr(),
            None if norm is None else norm.key.data_ptr(),
            kv_index.data_ptr(),
            qkv.shape[0],
            heads.query,
            heads.kv,
            heads.width,
            0 if angles is None else 2 * angles[0].shape[1],
            pool.shape[4],
            pool.stride(0),
            0.0 if norm is None else norm.eps,
            qkv.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )

    def attention(
        self,
        qkv: Tensor,
        heads: Heads,
        pool: Tensor,
        layer: int,
        segments: Segments,
        scale: float,
        window: int | None,
        softcap: float | None = None,
    ) -> Tensor:
        out = qkv.new_empty(qkv.shape[0], heads.query * heads.width)
        # A window hides the beginning, and from each row another part of it.
        shared = segments.prefixes if window is None else None
        failed = self._attention(
            qkv.data_ptr(),
            _at_layer(pool, layer),
            out.data_ptr(),
            segments.first_row.data_ptr(),
            segments.lengths.data_ptr(),
            segments.table_rows.data_ptr(),
            segments.tables.data_ptr(),
            None if shared is None else shared.first.data_ptr(),
            None if shared is None else shared.members.data_ptr(),
            None if shared is None else shared.blocks.data_ptr(),
            qkv.stride(0),
            pool.stride(0),
            segments.tables.stride(0),
            segments.lengths.shape[0],
            0 if shared is None else shared.blocks.shape[0],
            heads.query,
            heads.kv,
            heads.width,
            pool.shape[4],
            window or 0,
            scale,
            softcap or 0.0,
            qkv.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("attention could not get its working memory")
        return out


@functools.lru_cache(maxsize=1)
def load_native() -> NativeKernels:
    """The kernels, compiled if need be. Raises NativeUnavailable."""
    return NativeKernels(load_library())


def _few_rows(half: bool, weight_elements: int) -> int:
    """Up to how many rows native.c multiplies faster than torch.

    There the time goes into reading the weights, which torch's libraries do at a third to all of its speed (measured
    on Zen 4, 2026, 256 x 768 to 4096 x 4096 elements); in bfloat16 they catch up sooner.
    """
    if not half:
        return 8
    return 2 if weight_elements <= 1 << 22 else 0


def _at_layer(pool: Tensor, layer: int) -> int:
    """Address of the layer's keys in block 0."""
    return pool.data_ptr() + layer * pool.stride(1) * pool.element_size()
