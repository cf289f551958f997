"""The decode set: who makes a token in each step, kept so that a step costs nothing per member (Contract 2).

clock            counts the steps in which the set ran; lengths follow from it (Sequence.settle)
growing[phase]   the members that fill their last block whenever clock % block_tokens == phase
due[clock]       the members that reach max_tokens at that tick
context          the sum of the members' KV lengths: what a step's attention reads
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from penstock.control.memory.blocks import Memory, expect
from penstock.control.sequence import Sequence

NEVER: Final = 1 << 60


class DecodeSet:
    """Entering, leaving and ticking are O(1), whatever the size; entering is O(log of the ticks somebody is due at)."""

    def __init__(self, block_tokens: int, *, grows: bool) -> None:
        """`grows`: whether members take new blocks as they get longer."""
        self.clock = 0
        self.context = 0
        self._members: dict[str, Sequence] = {}
        self._grows = grows
        self._size = block_tokens
        self._growing: list[dict[str, list[int]]] = [{} for _ in range(block_tokens)]
        self._due: dict[int, dict[str, Sequence]] = {}
        self._ticks: list[int] = []
        """Heap of the keys of `due`, and of keys that are gone."""

    def enter(self, sequence: Sequence) -> None:
        """From the next tick on."""
        clock, name, computed = self.clock, sequence.id, sequence.computed
        sequence.join_clock = clock
        self._members[name] = sequence
        self.context += computed
        if self._grows:
            self._growing[(clock - computed) % self._size][name] = sequence.blocks
        tick = clock + sequence.max_tokens - sequence.outputs - 1
        due = self._due.get(tick)
        if due is None:
            self._due[tick] = {name: sequence}
            heappush(self._ticks, tick)
        else:
            due[name] = sequence

    def leave(self, sequence: Sequence) -> None:
        """After this the sequence's own counts are true again."""
        name, joined, computed = sequence.id, sequence.join_clock, sequence.computed
        del self._members[name]
        if self._grows:
            del self._growing[(joined - computed) % self._size][name]
        tick = joined + sequence.max_tokens - sequence.outputs - 1
        due = self._due[tick]
        del due[name]
        if not due:
            del self._due[tick]
        sequence.settle(self.clock)
        self.context -= sequence.computed

    def growing(self) -> dict[str, list[int]]:
        """Id to block table of the members that need a block for their next token. Changes with enter and leave."""
        return self._growing[self.clock % self._size]

    def tick(self) -> list[Sequence] | None:
        """One token for every member. Returns those for whom it was the last, if any; they are still members."""
        due = self._due.get(self.clock)
        self.clock += 1
        self.context += len(self._members)
        return list(due.values()) if due is not None else None

    def quiet(self, available: int) -> int:
        """Ticks that are sure to need no more than `available` blocks, up to the first that ends somebody; at least 0,
        O(1)."""
        ticks = self._ticks
        while ticks and ticks[0] not in self._due:
            heappop(ticks)
        free = ticks[0] - self.clock + 1 if ticks else NEVER
        if self._grows and self._members:
            # In block_tokens ticks every member takes one block.
            free = min(free, available // len(self._members) * self._size)
        return free

    def coast(self, ticks: int, memory: Memory) -> list[Sequence] | None:
        """As `ticks` ticks, growth included; at most `quiet()`. Returns for whom the last was the last, if any."""
        if self._grows:
            growing, size = self._growing, self._size
            for clock in range(self.clock, self.clock + ticks):
                full = growing[clock % size]
                if full:
                    grow(full, memory)
        self.clock += ticks
        self.context += ticks * len(self._members)
        due = self._due.get(self.clock - 1)
        return list(due.values()) if due is not None else None

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._members.values())

    def __getitem__(self, request_id: str) -> Sequence:
        return self._members[request_id]

    def check(self) -> None:
        """Recount from scratch. Raises ProtocolError."""
        context = sum(member.computed + self.clock - member.join_clock for member in self)
        expect(context == self.context, f"the decode set holds {context} tokens, {self.context} were counted")
        expect(not self._grows or sum(map(len, self._growing)) == len(self), "growing is not the decode set")
        expect(sum(map(len, self._due.values())) == len(self), "due is not the decode set")
        expect(set(self._due) <= set(self._ticks), "a tick at which somebody is due is not in the heap")


def grow(tables: dict[str, list[int]], memory: Memory) -> list[int]:
    """One more block for each block table. Returns the blocks, in order."""
    blocks = memory.take(len(tables))
    for at, table in enumerate(tables.values()):
        # A slice moves the number itself: compiled, an item would be taken out and made anew.
        table += blocks[at : at + 1]
    return blocks
