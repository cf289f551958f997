"""One step as ragged tensors: the rows of all decodes, then those of all chunks, back to back without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penstock.engine.lora.step import StepAdapters
from penstock.engine.ops.kernels import Segments, SharedPrefixes


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows. Everything but `segments` is on the model's device."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, 0 for a sequence's first token."""
    kv_index: Tensor
    """[T] int64: block * block_tokens + offset, where the row's key and value go."""
    rope_lengths: Tensor | None
    """[T] int64, for dynamic NTK and LongRoPE only: see ops/rope.py."""
    segments: Segments
    logit_rows: Tensor | None
    """[R] int64: the rows that yield a token; None: all of them."""
    adapters: StepAdapters | None = None
    """None: no row has one."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The same, in numpy and before it is known where KV goes: what the engine collects from its sequences."""

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    """[S] slot of each segment."""
    counts: np.ndarray
    """[S] rows of each segment."""
    lengths: np.ndarray
    """[S] tokens of each sequence, these rows included."""
    rope_floors: np.ndarray
    """[S] the length that RoPE counts with, at least: the prompt's; in LongRoPE that of all tokens there are."""
    logit_rows: np.ndarray | None

    @property
    def decodes(self) -> int:
        """Segments of one row that come first."""
        several = self.counts != 1
        return int(np.argmax(several)) if several.any() else len(several)


def make_batch(
    rows: Rows,
    tables: np.ndarray,
    tables_shared: Tensor,
    block_tokens: int,
    device: torch.device,
    by_length: bool,
    adapters: StepAdapters | None = None,
    prefixes: SharedPrefixes | None = None,
) -> Batch:
    """Lay `rows` out for the model. `tables_shared` is the int32 tensor over the memory of `tables`."""
    segments = len(rows.slots)
    only_decodes = len(rows.token_ids) == segments
    slot_of_row = rows.slots if only_decodes else np.repeat(rows.slots, rows.counts)
    block = tables[slot_of_row, rows.positions // block_tokens].astype(np.int64)
    first_row = np.zeros(segments + 1, np.int32)
    np.cumsum(rows.counts, out=first_row[1:])
    rope_lengths = None
    if by_length:
        floor = rows.rope_floors if only_decodes else np.repeat(rows.rope_floors, rows.counts)
        rope_lengths = torch.from_numpy(np.maximum(floor, rows.positions + 1)).to(device)
    return Batch(
        token_ids=torch.from_numpy(rows.token_ids).to(device),
        positions=torch.from_numpy(rows.positions).to(device),
        kv_index=torch.from_numpy(block * block_tokens + rows.positions % block_tokens).to(device),
        rope_lengths=rope_lengths,
        segments=Segments(
            first_row=torch.from_numpy(first_row),
            lengths=torch.from_numpy(rows.lengths.astype(np.int32)),
            table_rows=torch.from_numpy(rows.slots.astype(np.int32)),
            tables=tables_shared,
            longest_rows=1 if only_decodes else int(rows.counts.max()),
            prefixes=prefixes,
        ),
        logit_rows=None if rows.logit_rows is None else torch.from_numpy(rows.logit_rows).to(device),
        adapters=adapters,
    )
