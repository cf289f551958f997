"""Paged memory: blocks from one pool, given as needed, each with one holder (PagedAttention, SOSP 2023)."""

from __future__ import annotations

from collections.abc import Collection

from penstock.control.memory.blocks import Memory, Occupancy, block_numbers, blocks_for, expect, move_top, top
from penstock.control.sequence import Sequence, Tokens


class Paged(Memory):
    """A stack of free block numbers; the most recently freed is reused first, it may still be in a CPU cache."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        super().__init__(blocks, block_tokens)
        self._free = block_numbers(blocks)[::-1]

    def available(self) -> int:
        return len(self._free)

    def fits(self, tokens: int) -> bool:
        return blocks_for(tokens, self.block_tokens) <= self.total

    def admit(self, sequence: Sequence, tokens: int, spare: int) -> int | None:
        count = blocks_for(tokens, self.block_tokens)
        if count + spare > len(self._free):
            return None
        sequence.blocks = self.take(count)
        return 0

    def take(self, count: int) -> list[int]:
        return top(self._free, count)

    def give(self, table: list[int]) -> None:
        move_top(self._free, table)

    def publish(self, sequence: Sequence, computed: int) -> None:
        """Nothing is shared."""

    def release(self, sequence: Sequence, tokens: Tokens | None = None) -> None:
        self._free.extend(sequence.blocks)
        sequence.blocks = []

    def occupancy(self) -> Occupancy:
        return Occupancy(free=len(self._free), cached=0, held=self.total - len(self._free))

    def check(self, holders: Collection[Sequence]) -> None:
        held = [block for sequence in holders for block in sequence.blocks]
        expect(sorted(held + self._free) == list(range(self.total)), "a block is lost, or has two holders")
