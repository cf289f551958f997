"""The operations behind one interface, with implementations that tests hold against each other.

T rows of the step, D hidden width, N query heads, K KV heads, H head width, P blocks, L layers, B tokens per block,
S segments (the rows of one sequence in this step), M the most blocks of one sequence, I inner width of an MLP.

The KV pool is one tensor [P, L, 2, K, B, H], keys at 0 and values at 1: a block is one contiguous piece over all
layers, so that moving, swapping or sending a block is one copy.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from penstock.engine.weights import Matrix

logger = logging.getLogger("penstock.engine")


@dataclass(frozen=True, slots=True)
class PlacedPrefixes:
    """SharedPrefixes on a GPU, cut into tiles of a size that kernels chose. int32."""

    tiles: Tensor
    """[any, 4] first index in `members`, how many members, row in the tables, tokens in common."""
    members: Tensor
    """[any] segments, all of them decodes."""
    skips: Tensor
    """[S] tokens of each segment that a group computes; 0 for those of no group."""


@dataclass(frozen=True, slots=True)
class PlacedSegments:
    """Segments on a GPU, int32. The first `decodes` of them have one row each."""

    first_row: Tensor
    """[S + 1], as Segments.first_row."""
    lengths: Tensor
    """[S], as Segments.lengths."""
    table_rows: Tensor
    """[S], as Segments.table_rows."""
    tables: Tensor
    """[any, M], as Segments.tables."""
    decodes: int
    longest_decode: int
    """Tokens of the longest of them, by which its keys are cut into parts; any number would be correct."""
    longest_rows: int
    """As Segments.longest_rows."""
    prefixes: PlacedPrefixes | None = None

    @property
    def segments(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Segments of one row each whose tables begin with the same blocks. int32, on the CPU; no segment is in two groups.

    Attention over those blocks may be computed once for a whole group (Hydragen, Juravsky et al., 2024).
    """

    first: Tensor
    """[G + 1] members of group g are members[first[g]] to members[first[g + 1]]."""
    members: Tensor
    """[any] numbers of segments."""
    blocks: Tensor
    """[G] whole blocks in common, at least one; every member has tokens beyond them."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Which rows belong to which sequence, and where its KV lies. int32, on the CPU, contiguous."""

    first_row: Tensor
    """[S + 1] rows of segment s are first_row[s] to first_row[s + 1]."""
    lengths: Tensor
    """[S] tokens of the sequence with this step's rows, which are its last ones."""
    table_rows: Tensor
    """[S] the sequence's row in `tables`."""
    tables: Tensor
    """[any, M] block numbers; entries past a sequence's last block are never read."""
    longest_rows: int
    """Rows of the longest segment: 1 in a step that only decodes."""
    placed: PlacedSegments | None = None
    """The same on the GPU, where kernels read them; None: kernels that need it copy it themselves."""
    prefixes: SharedPrefixes | None = None
    """Whose use is left to the kernels: the result is the same but for rounding."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Head counts and width: columns of a fused qkv row are N*H queries, K*H keys, K*H values."""

    query: int
    kv: int
    width: int


@dataclass(frozen=True, slots=True)
class QkNorm:
    """RMS norms over the head width, applied to every query and key head before RoPE (Qwen3)."""

    query: Tensor
    key: Tensor
    eps: float


class Kernels(Protocol):
    """Each in float32 or bfloat16, softmax and norms in float32."""

    name: str

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        """x [T, I] times weight [O, I] transposed, plus bias [O]: [T, O]. A packed weight does it its own way."""

    def add_rms_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """x [T, D] += delta in place, then the RMS norm of x times weight [D] as a new tensor."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2I], gate left and up right, to silu(gate) * up [T, I]."""

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
        """Norm and rotate queries and keys, then write this step's keys and values to the pool.

        The queries are changed in place; the key columns of qkv are not to be read afterwards.

        qkv: [T, (N + 2K) * H]. angles: cosine and sine, float32 [T, R / 2] each; None: no RoPE. The first R elements
        of a head turn, R <= H; the others stay as they are.
        kv_index: int64 [T], block * B + offset of each row; no two rows share one.
        """

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
        """Causal attention of a ragged step over the pool: [T, N * H] in qkv's dtype.

        The keys and values of this step's own rows are already in the pool. A row at position p sees positions
        p - window + 1 to p (all up to p without a window). With a softcap c, a scaled score s becomes
        c * tanh(s / c).
        Source: PagedAttention, Kwon et al., SOSP 2023, 4.1; grouped heads, Ainslie et al., EMNLP 2023.
        """


_warned = False


def kernels_for(device: torch.device) -> Kernels:
    """The fastest implementation that works here; says so once when it has to be the portable one on a CPU."""
    from penstock.engine.ops.portable import PortableKernels

    if device.type != "cpu":
        return _gpu_kernels(device)
    from penstock.engine.ops.build import NativeUnavailable
    from penstock.engine.ops.native import load_native

    try:
        return load_native()
    except NativeUnavailable as error:
        global _warned
        if not _warned:
            _warned = True
            logger.warning("no native CPU kernels (%s): using the portable ones, which are several times slower", error)
        return PortableKernels()


def _gpu_kernels(device: torch.device) -> Kernels:
    from penstock.engine.ops.portable import PortableKernels

    try:
        from penstock.engine.ops.triton.kernels import TritonKernels, unavailable

        why = unavailable(device)
    except ImportError as error:
        why = f"{error}: install penstock[cuda]"
    if why is None:
        return TritonKernels(device)
    global _warned
    if not _warned:
        _warned = True
        logger.warning("no Triton kernels (%s): using the portable ones, which are many times slower", why)
    return PortableKernels()
