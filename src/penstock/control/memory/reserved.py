"""Reserved memory: each request gets one contiguous slot for the longest sequence there can be, for its whole life.

The baseline before paging (FasterTransformer, Orca): simple and fast, and most of each slot stays empty.
"""

from __future__ import annotations

from collections.abc import Collection

from penstock.control.memory.blocks import Memory, Occupancy, blocks_for, expect
from penstock.control.sequence import Sequence, Tokens


class Reserved(Memory):
    """Slots of `max_sequence_tokens`; slot i is blocks [i * n, (i + 1) * n). A smaller rest stays unused."""

    grows = False

    def __init__(self, blocks: int, block_tokens: int, max_sequence_tokens: int) -> None:
        self.slot_blocks = blocks_for(max_sequence_tokens, block_tokens)
        self.slots = blocks // self.slot_blocks
        super().__init__(self.slots * self.slot_blocks, block_tokens)
        self._free = list(range(self.slots - 1, -1, -1))

    def available(self) -> int:
        return len(self._free) * self.slot_blocks

    def fits(self, tokens: int) -> bool:
        return self.slots > 0 and blocks_for(tokens, self.block_tokens) <= self.slot_blocks

    def admit(self, sequence: Sequence, tokens: int, spare: int) -> int | None:
        if not self._free:
            return None
        first = self._free.pop() * self.slot_blocks
        sequence.blocks = list(range(first, first + self.slot_blocks))
        return 0

    def take(self, count: int) -> list[int]:
        raise AssertionError("a reserved slot never grows")

    def publish(self, sequence: Sequence, computed: int) -> None:
        """Nothing is shared."""

    def release(self, sequence: Sequence, tokens: Tokens | None = None) -> None:
        if sequence.blocks:
            self._free.append(sequence.blocks[0] // self.slot_blocks)
        sequence.blocks = []

    def occupancy(self) -> Occupancy:
        free = self.available()
        return Occupancy(free=free, cached=0, held=self.total - free)

    def check(self, holders: Collection[Sequence]) -> None:
        taken = [sequence.blocks[0] // self.slot_blocks for sequence in holders]
        expect(sorted(taken + self._free) == list(range(self.slots)), "a slot is lost, or has two holders")
        for sequence in holders:
            first = sequence.blocks[0]
            expect(sequence.blocks == list(range(first, first + self.slot_blocks)), "a slot is not contiguous")
