"""`Kernels` on a CUDA device: launches, shapes and tile sizes. What is computed stands in attention.py and rows.py."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn import functional

from penstock.engine.ops.kernels import Heads, PlacedPrefixes, PlacedSegments, QkNorm, Segments, SharedPrefixes
from penstock.engine.ops.triton import LONG_CHUNK
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
SAVED_SHARE: Final = 0.25
"""A shared prefix is computed apart if that spares at least so much of all keys and values that decodes read."""


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
            if segments.prefixes is not None:
                arrays = self.prefix_arrays(
                    segments.prefixes, segments.lengths.numpy(), segments.table_rows.numpy(), heads, qkv.dtype,
                    pool.shape[4], placed.decodes,
                )  # fmt: skip
                if arrays is not None:
                    sent = {name: torch.from_numpy(array).to(qkv.device) for name, array in arrays.items()}
                    placed = replace(placed, prefixes=PlacedPrefixes(**sent))
        if placed.decodes:
            self._decodes(qkv, heads, pool, layer, placed, scale, window, softcap, out)
        if chunks := placed.segments - placed.decodes:
            tiling = self.chunk_tiling(heads, qkv.dtype, placed.longest_rows)
            tiles = triton.cdiv(placed.longest_rows, tiling.rows // (heads.query // heads.kv))
            self._attend(
                qkv, heads, pool, layer, placed, scale, window, softcap, out, (out, out), placed.decodes,
                (heads.kv, tiles, chunks), tiling, 1, 1,
            )  # fmt: skip
        return out

    def chunk_tiling(self, heads: Heads, dtype: torch.dtype, longest_rows: int) -> Tiling:
        """Of segments with several rows, and of groups that share a prefix."""
        few = longest_rows < LONG_CHUNK
        return _tiling(_padded(heads.width), heads.query // heads.kv, dtype is torch.float32, decodes=False, few=few)

    def prefix_arrays(
        self, prefixes: SharedPrefixes, lengths: np.ndarray, table_rows: np.ndarray, heads: Heads, dtype: torch.dtype,
        block_tokens: int, decodes: int,
    ) -> dict[str, np.ndarray] | None:  # fmt: skip
        """PlacedPrefixes on the host, for a step whose first `decodes` segments are decodes.

        None: they save so little reading that parts and merging would cost more.
        """
        most = self.chunk_tiling(heads, dtype, 1).rows // (heads.query // heads.kv)
        bounds, members = prefixes.first.tolist(), prefixes.members.numpy()
        tiles: list[tuple[int, int, int, int]] = []
        kept: list[np.ndarray] = []
        skips, saved, start = np.zeros(len(lengths), np.int32), 0, 0
        for group, blocks in enumerate(prefixes.blocks.tolist()):
            mine = members[bounds[group] : bounds[group + 1]]
            mine = mine[mine < decodes]
            if len(mine) < 2:
                continue
            tokens = blocks * block_tokens
            skips[mine] = tokens
            saved += (len(mine) - 1) * tokens
            for at in range(0, len(mine), most):
                tiles.append((start + at, min(most, len(mine) - at), int(table_rows[mine[0]]), tokens))
            kept.append(mine)
            start += len(mine)
        if not tiles or saved < SAVED_SHARE * int(lengths[:decodes].sum()):
            return None
        return {"tiles": np.array(tiles, np.int32), "members": np.concatenate(kept).astype(np.int32), "skips": skips}

    def splits(self, programs: int, longest: int) -> int:
        """Into how many parts the keys of a decode are cut, when there are so many programs without that."""
        wanted = -(-PROGRAMS_PER_PROCESSOR * self.processors // programs)
        wanted = min(wanted, max(1, longest // SPLIT_TOKENS))
        wanted = max(wanted, longest // PART_TOKENS)
        return min(MOST_SPLITS, 1 << (wanted - 1).bit_length())

    def _decodes(
        self, qkv: Tensor, heads: Heads, pool: Tensor, layer: int, placed: PlacedSegments, scale: float,
        window: int | None, softcap: float | None, out: Tensor,
    ) -> None:  # fmt: skip
        """Segments of one row: in as many parts as fill the GPU, and one part more or several for a shared prefix."""
        count, shared = placed.decodes, placed.prefixes
        splits = self.splits(count * heads.kv, placed.longest_decode)
        ieee = qkv.dtype is torch.float32
        parts = splits
        tiling = _tiling(_padded(heads.width), heads.query // heads.kv, ieee, decodes=True, few=True)
        if shared is not None:
            prefix_splits = self.splits(len(shared.tiles) * heads.kv, placed.longest_decode)
            parts += prefix_splits
        partial = lse = out
        if parts > 1:
            partial = torch.empty((count, heads.query, parts, heads.width), dtype=torch.float32, device=qkv.device)
            # What no group computes has no weight.
            lse = torch.full((count, heads.query, parts), -torch.inf, dtype=torch.float32, device=qkv.device)
        if shared is not None:
            wide = self.chunk_tiling(heads, qkv.dtype, 1)
            attention_kernels.attend_prefixes[(heads.kv, prefix_splits, len(shared.tiles))](
                qkv, pool, partial, lse, placed.tables, placed.first_row, placed.lengths, shared.tiles, shared.members,
                qkv.stride(0), layer * pool.stride(1), pool.stride(0), pool.stride(2), pool.stride(3), pool.stride(4),
                placed.tables.stride(0), scale, window or 0, softcap or 0.0,
                KV_HEADS=heads.kv, GROUP=heads.query // heads.kv, WIDTH=heads.width, PADDED=_padded(heads.width),
                BLOCK_TOKENS=pool.shape[4], BLOCK_M=wide.rows, BLOCK_N=wide.keys, SPLITS=prefix_splits, PARTS=parts,
                WINDOWED=bool(window), CAPPED=softcap is not None, IEEE=INTERPRETED or ieee, num_warps=wide.warps,
                num_stages=wide.stages,
            )  # fmt: skip
        self._attend(
            qkv, heads, pool, layer, placed, scale, window, softcap, out, (partial, lse), 0, (heads.kv, splits, count),
            tiling, splits, parts,
        )  # fmt: skip
        if parts > 1:
            attention_kernels.merge[(heads.query, count)](
                partial, lse, out, placed.first_row, 0, HEADS=heads.query, WIDTH=heads.width,
                PADDED=_padded(heads.width), PARTS=parts, PADDED_PARTS=_padded(parts), num_warps=4,
            )  # fmt: skip

    def _attend(
        self, qkv: Tensor, heads: Heads, pool: Tensor, layer: int, placed: PlacedSegments, scale: float,
        window: int | None, softcap: float | None, out: Tensor, parts_of: tuple[Tensor, Tensor], first: int,
        grid: tuple[int, int, int], tiling: Tiling, splits: int, parts: int,
    ) -> None:  # fmt: skip
        """Segments from `first` on. parts_of: where parts and their log-sum-exp go, if there are several."""
        shared = placed.prefixes if parts > 1 else None
        attention_kernels.attend[grid](
            qkv, pool, out, *parts_of, placed.tables, placed.table_rows, placed.first_row, placed.lengths,
            placed.lengths if shared is None else shared.skips,
            qkv.stride(0), layer * pool.stride(1), pool.stride(0), pool.stride(2), pool.stride(3), pool.stride(4),
            placed.tables.stride(0), first, scale, window or 0, softcap or 0.0,
            KV_HEADS=heads.kv, GROUP=heads.query // heads.kv, WIDTH=heads.width, PADDED=_padded(heads.width),
            BLOCK_TOKENS=pool.shape[4], BLOCK_M=tiling.rows, BLOCK_N=tiling.keys, SPLITS=splits, PARTS=parts,
            SKIPS=shared is not None, WINDOWED=bool(window), CAPPED=softcap is not None,
            IEEE=INTERPRETED or qkv.dtype is torch.float32, num_warps=tiling.warps, num_stages=tiling.stages,
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
def _tiling(padded: int, group: int, ieee: bool, *, decodes: bool, few: bool) -> Tiling:
    """Measured on an H100: see benchmarks/RESULTS.md. few: segments are short, so smaller tiles fill the GPU better."""
    if INTERPRETED:
        return Tiling(max(16, _padded(group)), 32, 4, 1)
    if decodes and not ieee:
        return Tiling(max(16, _padded(group)), 32 if padded > 128 else 64, 4, 3 if padded > 128 else 5)
    if ieee:
        return Tiling(max(16, _padded(group)), 32 if padded <= 128 else 16, 4, 1)
    if padded > 128:
        return Tiling(max(64, _padded(group)), 32, 4, 2)
    if few:
        return Tiling(max(64, _padded(group)), 64, 4, 5)
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
