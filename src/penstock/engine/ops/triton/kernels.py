"""`Kernels` on a CUDA device: launches, shapes and tile sizes. What is computed stands in attention.py and rows.py."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn import functional

from penstock.engine.ops.kernels import Heads, PlacedSegments, QkNorm, Segments
from penstock.engine.ops.triton import attention as attention_kernels
from penstock.engine.ops.triton import rows as row_kernels
from penstock.engine.weights import Matrix

INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"
MOST_SPLITS: Final = 64
SPLIT_TOKENS: Final = 256
"""A part of a row is not shorter than this: below, merging costs what the part saves."""
PART_TOKENS: Final = 8192
"""Nor longer, if the row is cut at all: one long sequence must not keep a large batch waiting."""
PROGRAMS_PER_PROCESSOR: Final = 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """BLOCK_M rows by BLOCK_N keys, and how a program is run."""

    rows: int
    keys: int
    warps: int
    stages: int


class TritonKernels:
    """See `Kernels` for what each does. Strides of the pool are free; rows of everything else are contiguous."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        """`device`: a CUDA device; the CPU in the interpreter."""
        self.device = device
        self.processors = 8
        if device.type == "cuda":
            self.processors = int(torch.cuda.get_device_properties(device).multi_processor_count)

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        if isinstance(weight, Tensor):
            return functional.linear(x, weight, bias)
        return weight.product(x, bias)

    def add_rms_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        rows, width = x.shape
        if rows:
            padded = _padded(width)
            row_kernels.add_rms_norm[(rows,)](
                x, x if delta is None else delta, weight, out, eps, WIDTH=width, PADDED=padded, ADDS=delta is not None,
                num_warps=_warps(padded),
            )  # fmt: skip
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        if rows:
            block = min(1024, _padded(width))
            row_kernels.silu_mul[(triton.cdiv(width, block), rows)](gate_up, out, width, BLOCK=block, num_warps=4)
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
        if not len(qkv):
            return
        half = 0 if angles is None else angles[0].shape[1]
        # Heads without a turning half have one all the same, of nothing: their elements are all in the rest.
        tile = 16
        cos, sin = (qkv, qkv) if angles is None else angles
        query, key = (qkv, qkv) if norm is None else (norm.query, norm.key)
        grid = (len(qkv), triton.cdiv(heads.query + heads.kv, tile) + 1)
        row_kernels.rotate_and_store[grid](
            qkv, pool, cos, sin, query, key, kv_index, layer * pool.stride(1), pool.stride(0), pool.stride(2),
            pool.stride(3), pool.stride(4), 0.0 if norm is None else norm.eps,
            QUERY=heads.query, KV=heads.kv, WIDTH=heads.width, HALF=half, BLOCK_TOKENS=pool.shape[4], HEADS=tile,
            PADDED_HALF=_padded(half), PADDED_REST=_padded(heads.width - 2 * half), PADDED=_padded(heads.width),
            TURNS=angles is not None, NORMS=norm is not None, num_warps=4,
        )  # fmt: skip

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
        placed = segments.placed
        if placed is None:
            placed = place(segments, qkv.device)
        if placed.decodes:
            splits = self.splits(placed.decodes * heads.kv, placed.longest_decode)
            self._attend(qkv, heads, pool, layer, placed, scale, window, softcap, out, 0, placed.decodes, splits)
        chunks = placed.segments - placed.decodes
        if chunks:
            self._attend(qkv, heads, pool, layer, placed, scale, window, softcap, out, placed.decodes, chunks, 0)
        return out

    def splits(self, programs: int, longest: int) -> int:
        """Into how many parts the keys of a decode are cut, when there are so many programs without that."""
        wanted = -(-PROGRAMS_PER_PROCESSOR * self.processors // programs)
        wanted = min(wanted, max(1, longest // SPLIT_TOKENS))
        wanted = max(wanted, longest // PART_TOKENS)
        return min(MOST_SPLITS, 1 << (wanted - 1).bit_length())

    def _attend(
        self, qkv: Tensor, heads: Heads, pool: Tensor, layer: int, placed: PlacedSegments, scale: float,
        window: int | None, softcap: float | None, out: Tensor, first: int, count: int, splits: int,
    ) -> None:  # fmt: skip
        """Segments first to first + count; `splits` 0: they have more than one row each."""
        group = heads.query // heads.kv
        padded = _padded(heads.width)
        tiling = _tiling(padded, group, qkv.dtype is torch.float32, decodes=splits > 0)
        tiles = 1 if splits else triton.cdiv(placed.longest_rows, tiling.rows // group)
        splits = max(1, splits)
        partial = lse = out
        if splits > 1:
            partial = torch.empty((count, heads.query, splits, heads.width), dtype=torch.float32, device=qkv.device)
            lse = torch.empty((count, heads.query, splits), dtype=torch.float32, device=qkv.device)
        attention_kernels.attend[(heads.kv, tiles * splits, count)](
            qkv, pool, out, partial, lse, placed.tables, placed.table_rows, placed.first_row, placed.lengths,
            qkv.stride(0), layer * pool.stride(1), pool.stride(0), pool.stride(2), pool.stride(3), pool.stride(4),
            placed.tables.stride(0), first, scale, window or 0, softcap or 0.0,
            KV_HEADS=heads.kv, GROUP=group, WIDTH=heads.width, PADDED=padded, BLOCK_TOKENS=pool.shape[4],
            BLOCK_M=tiling.rows, BLOCK_N=tiling.keys, SPLITS=splits, WINDOWED=bool(window), CAPPED=softcap is not None,
            IEEE=INTERPRETED or qkv.dtype is torch.float32, num_warps=tiling.warps, num_stages=tiling.stages,
        )  # fmt: skip
        if splits > 1:
            attention_kernels.merge[(heads.query, count)](
                partial, lse, out, placed.first_row, first, HEADS=heads.query, WIDTH=heads.width, PADDED=padded,
                SPLITS=splits, PADDED_SPLITS=_padded(splits), num_warps=4,
            )  # fmt: skip


def place(segments: Segments, device: torch.device) -> PlacedSegments:
    """Segments and their tables on the device, copied one by one: what the engine does better (device_engine.py)."""
    counts = np.diff(segments.first_row.numpy())
    several = np.flatnonzero(counts != 1)
    decodes = int(several[0]) if len(several) else len(counts)
    lengths = segments.lengths
    return PlacedSegments(
        first_row=segments.first_row.to(device),
        lengths=lengths.to(device),
        table_rows=segments.table_rows.to(device),
        tables=segments.tables.to(device),
        decodes=decodes,
        longest_decode=int(lengths[:decodes].max()) if decodes else 0,
        longest_rows=segments.longest_rows,
    )


@functools.lru_cache(maxsize=64)
def _tiling(padded: int, group: int, ieee: bool, *, decodes: bool) -> Tiling:
    """Measured on an H100: see benchmarks/RESULTS.md."""
    if INTERPRETED:
        return Tiling(max(16, _padded(group)), 32, 4, 1)
    if decodes and not ieee:
        return Tiling(max(16, _padded(group)), 32 if padded > 128 else 64, 4, 3 if padded > 128 else 5)
    if ieee:
        return Tiling(max(16, _padded(group)), 32 if padded <= 128 else 16, 4, 1)
    if padded > 128:
        return Tiling(max(64, _padded(group)), 32, 4, 2)
    return Tiling(max(128, _padded(group)), 64, 8, 3)


def _padded(width: int) -> int:
    """Powers of two are what tiles are made of, and 16 the least that the matrix units take."""
    return max(16, 1 << max(0, width - 1).bit_length())


def _warps(padded: int) -> int:
    return min(8, max(1, padded // 512))


def unavailable(device: torch.device) -> str | None:
    """Why these kernels cannot run on `device`, in words that follow "no Triton kernels"; None: they can."""
    if device.type != "cuda":
        return None if INTERPRETED else f"they run on CUDA devices, not on {device.type}"
    capability: Any = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 0) else f"compute capability {capability[0]}.{capability[1]}, and 8.0 is needed"
