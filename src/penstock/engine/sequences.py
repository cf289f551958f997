"""What the engine knows about its sequences: a record for each, and arrays by slot for the admitted ones.

A sequence has a slot from its admission (or swap-in) to its eviction, swap-out or release. Everything a decode step
needs is in arrays indexed by slot, so that a step of a thousand decodes is a handful of numpy operations; what only
matters at the edges of a sequence's life is in its record.
"""

from __future__ import annotations

from collections.abc import Sequence as Numbers
from dataclasses import dataclass

import numpy as np
import torch
from msgspec.structs import replace

from penstock.control.request import Request
from penstock.errors import ProtocolError


@dataclass(slots=True)
class Sequence:
    """One request from `add` to `release`."""

    request: Request
    slot: int | None = None
    output: tuple[int, ...] = ()
    """Output tokens while the sequence has no slot; with one, they are in `Slots.tokens`."""
    adapter: int = -1
    """Number of its adapter (engine/lora/registry.py); -1: none."""
    done: bool = False
    """Finished or failed: it yields nothing more, whatever steps planned before that was known still say of it."""


class Sequences(dict[str, Sequence]):
    """All that were added and not released, by the id of their request."""

    def known(self, request_id: str) -> Sequence:
        """Raises ProtocolError: there is none of that id."""
        sequence = self.get(request_id)
        if sequence is None:
            raise ProtocolError(f"a step names {request_id}, which nobody added or which was released")
        return sequence

    def slot_of(self, request_id: str) -> int:
        """Raises ProtocolError: there is none of that id, or it has no slot."""
        slot = self.known(request_id).slot
        if slot is None:
            raise ProtocolError(f"a step needs {request_id} to hold blocks, and it holds none")
        return slot


class Slots:
    """Arrays by slot. Slots are handed out lowest free first, so that equal steps give equal batches."""

    def __init__(self, max_seqs: int, max_tokens: int, block_tokens: int) -> None:
        """`max_tokens`: the most tokens of one sequence whose KV is held; one more may be sampled."""
        self.block_tokens = block_tokens
        # calloc'ed: a page of tokens costs memory only once a sequence is long enough to touch it.
        self.tokens = np.zeros((max_seqs, max_tokens + 1), np.int32)
        """[slot, position] prompt, then output."""
        self.length = np.zeros(max_seqs, np.int64)
        """Tokens known: prompt and output, the last of which has no KV yet."""
        self.prompt_length = np.zeros(max_seqs, np.int64)
        self.limit = np.zeros(max_seqs, np.int64)
        """Length at which the sequence is complete: prompt + max_tokens."""
        self.stop_ids = np.full((max_seqs, 4), -1, np.int64)
        """-1 fills up: no token has that id."""
        self.adapter = np.full(max_seqs, -1, np.int64)
        """As Sequence.adapter."""
        self.blocks_held = np.zeros(max_seqs, np.int64)
        self.tables_tensor = torch.zeros((max_seqs, -(-max_tokens // block_tokens)), dtype=torch.int32)
        self.tables = self.tables_tensor.numpy()
        self.sequences: list[Sequence | None] = [None] * max_seqs
        self.bindings = 0
        """How often a slot was taken."""
        self._free = list(range(max_seqs - 1, -1, -1))

    def bind(self, sequence: Sequence, blocks: Numbers[int]) -> Request:
        """Give `sequence` a slot and its table. Returns its request with all output so far.

        Raises: ProtocolError: it has a slot already, none is free, or the table is longer than a sequence can be.
        """
        request = sequence.request
        if sequence.slot is not None:
            raise ProtocolError(f"{request.id} is admitted while it still holds blocks")
        if not self._free:
            raise ProtocolError(f"{request.id} is admitted as one more than the {len(self.sequences)} sequences agreed")
        if len(blocks) > self.tables.shape[1]:
            raise ProtocolError(f"{request.id} gets {len(blocks)} blocks; a sequence can use {self.tables.shape[1]}")
        slot = self._free.pop()
        self.bindings += 1
        sequence.slot = slot
        self.sequences[slot] = sequence
        prompt, output = len(request.prompt), sequence.output
        self.tokens[slot, :prompt] = request.prompt
        self.tokens[slot, prompt : prompt + len(output)] = output
        self.length[slot] = prompt + len(output)
        self.prompt_length[slot] = prompt
        self.adapter[slot] = sequence.adapter
        self.limit[slot] = prompt + request.max_tokens
        self._set_stop_ids(slot, request.sampling.stop_ids)
        self.tables[slot, : len(blocks)] = blocks
        self.blocks_held[slot] = len(blocks)
        return replace(request, output=output)

    def unbind(self, sequence: Sequence) -> int | None:
        """Take the slot back, keeping the tokens in the record. Returns the slot, None if there was none."""
        slot = sequence.slot
        if slot is None:
            return None
        sequence.output = self.output(slot)
        sequence.slot = None
        self.sequences[slot] = None
        self._free.append(slot)
        return slot

    def grow(self, slot: int, block: int) -> None:
        """Append a block to the table. Raises ProtocolError when it is as long as a sequence can be."""
        held = self.blocks_held[slot]
        if held == self.tables.shape[1]:
            raise ProtocolError(f"a table grows beyond {held} blocks, which is all that a sequence can use")
        self.tables[slot, held] = block
        self.blocks_held[slot] = held + 1

    def append(self, slots: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Add one sampled token to each slot. Returns which rows are complete with it, as indices into `slots`."""
        length = self.length[slots]
        self.tokens[slots, length] = tokens
        length += 1
        self.length[slots] = length
        complete = length >= self.limit[slots]
        complete |= (self.stop_ids[slots] == tokens[:, None]).any(axis=1)
        return np.flatnonzero(complete)

    def output(self, slot: int) -> tuple[int, ...]:
        """All output tokens so far."""
        return tuple(self.tokens[slot, self.prompt_length[slot] : self.length[slot]].tolist())

    def check(self) -> None:
        """Recount: every slot is free or held by the one sequence that says so. Raises ProtocolError."""
        held = [slot for slot, sequence in enumerate(self.sequences) if sequence is not None]
        if sorted(held + self._free) != list(range(len(self.sequences))):
            raise ProtocolError("slots are neither all free nor all held")
        for slot in held:
            sequence = self.sequences[slot]
            if sequence is None or sequence.slot != slot:
                raise ProtocolError(f"slot {slot} and its sequence disagree")

    @property
    def used(self) -> int:
        return len(self.sequences) - len(self._free)

    def _set_stop_ids(self, slot: int, stop_ids: tuple[int, ...]) -> None:
        width = self.stop_ids.shape[1]
        if len(stop_ids) > width:
            more = np.full((len(self.stop_ids), len(stop_ids) - width), -1, np.int64)
            self.stop_ids = np.concatenate([self.stop_ids, more], axis=1)
        self.stop_ids[slot] = -1
        self.stop_ids[slot, : len(stop_ids)] = stop_ids


class DecodeSet:
    """The slots that decode, as one array with their ids beside it; joining and leaving cost O(1)."""

    def __init__(self, max_seqs: int) -> None:
        self._slots = np.zeros(max_seqs, np.int64)
        self._where: dict[int, int] = {}
        self.ids: list[str] = []

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def slots(self) -> np.ndarray:
        """[n] int64, in the order of `ids`; a view that later joins and leaves change."""
        return self._slots[: len(self.ids)]

    def join(self, slot: int, request_id: str) -> None:
        if slot in self._where:
            return
        self._where[slot] = len(self.ids)
        self._slots[len(self.ids)] = slot
        self.ids.append(request_id)

    def leave(self, slot: int) -> None:
        """The last one takes the place of the one that leaves. Nothing happens if it is not in the set."""
        at = self._where.pop(slot, None)
        if at is None:
            return
        last_id = self.ids.pop()
        last = len(self.ids)
        if at != last:
            moved = int(self._slots[last])
            self._slots[at], self.ids[at], self._where[moved] = moved, last_id, at
