"""Which rows a step computes: one of each sequence that decodes, then those of its chunks of prompts.

Of these rows some yield a token, some score a prompt, and some are embedded; `StepRows` says which is which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.control.step import Chunk, Step
from penstock.engine.batch import Rows
from penstock.engine.pooling import PooledRows, Pooler
from penstock.engine.prompt_logprobs import ScoredRows, scored_rows
from penstock.engine.sequences import DecodeSet, Sequences, Slots
from penstock.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class StepRows:
    """`rows.logit_rows` are first those that yield a token, then those of `scored`, then those of `pooled`."""

    rows: Rows | None
    """None: the step computes nothing."""
    slots: np.ndarray
    """[R] slot of each row that yields a token."""
    ids: list[str]
    """[R] whose they are."""
    scored: list[ScoredRows]
    """Prompts whose log-probabilities are wanted."""
    pooled: list[PooledRows]
    """Prompts that are embedded."""


def step_rows(
    step: Step,
    sequences: Sequences,
    slots: Slots,
    decode_set: DecodeSet,
    pooler: Pooler | None,
    *,
    most: int | None,
    whole_length: bool,
) -> StepRows:
    """The rows of `step`, whose changes have been applied.

    Args:
        most: rows that were agreed. whole_length: RoPE counts with all tokens there are, instead of the prompt's.

    Raises ProtocolError: more rows than agreed, a chunk that does not fit its sequence, or no block for a token.
    """
    decoding = len(decode_set) if step.decoding else 0
    mine = decode_set.slots.copy() if decoding else np.zeros(0, np.int64)
    ids = decode_set.ids.copy() if decoding else []
    length = slots.length[mine]
    positions = length - 1
    token_ids = slots.tokens[mine, positions].astype(np.int64)
    counts = np.ones(decoding, np.int64)
    chunks = [chunk for chunk in step.chunks if not sequences.known(chunk.id).done] if step.chunks else []
    logit_rows: np.ndarray | None = None
    scored: list[ScoredRows] = []
    pooled: list[PooledRows] = []
    yielding = mine
    if chunks:
        row = decoding
        chunk_slots, last_rows, last_slots = [], list(range(decoding)), []
        for chunk in chunks:
            slot = _checked_slot(chunk, sequences, slots)
            chunk_slots.append(slot)
            row += chunk.tokens
            if chunk.last and not sequences[chunk.id].request.sampling.embed:
                last_rows.append(row - 1)
                last_slots.append(slot)
                ids.append(chunk.id)
        starts_and_ends = [(chunk.start, chunk.start + chunk.tokens) for chunk in chunks]
        token_ids = np.concatenate(
            [token_ids, *(slots.tokens[s, a:b] for s, (a, b) in zip(chunk_slots, starts_and_ends, strict=True))]
        ).astype(np.int64)
        positions = np.concatenate([positions, *(np.arange(a, b) for a, b in starts_and_ends)])
        mine = np.concatenate([mine, np.array(chunk_slots, np.int64)])
        counts = np.concatenate([counts, np.array([chunk.tokens for chunk in chunks], np.int64)])
        length = np.concatenate([length, np.array([b for _, b in starts_and_ends], np.int64)])
        yielding = np.concatenate([yielding, np.array(last_slots, np.int64)])
        scored = scored_rows(chunks, sequences, slots, decoding)
        if pooler is not None:
            pooled = pooler.rows(chunks, sequences, decoding)
        logit_rows = np.concatenate(
            [np.array(last_rows, np.int64), *(one.rows for one in scored), *(one.rows for one in pooled)]
        )
    if not len(token_ids):
        return StepRows(None, yielding, ids, scored, pooled)
    if most is not None and len(token_ids) > most:
        raise ProtocolError(f"step of {len(token_ids)} rows; {most} were agreed")
    without_block = length > slots.blocks_held[mine] * slots.block_tokens
    if without_block.any():
        late = int(mine[np.argmax(without_block)])
        sequence = slots.sequences[late]
        raise ProtocolError(f"{sequence.request.id if sequence else late} has no block for its next token")
    rows = Rows(
        token_ids=token_ids,
        positions=positions,
        slots=mine,
        counts=counts,
        lengths=length,
        rope_floors=(slots.length if whole_length else slots.prompt_length)[mine],
        logit_rows=logit_rows,
    )
    return StepRows(rows, yielding, ids, scored, pooled)


def _checked_slot(chunk: Chunk, sequences: Sequences, slots: Slots) -> int:
    slot = sequences.slot_of(chunk.id)
    end, length = chunk.start + chunk.tokens, int(slots.length[slot])
    if chunk.start < 0 or chunk.tokens < 1 or end > length or chunk.last != (end == length):
        raise ProtocolError(f"{chunk} does not fit {chunk.id}, which has {length} tokens")
    return slot
