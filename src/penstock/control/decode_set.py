"""The decode set: who makes a token in each step, kept so that a step costs nothing per member (Contract 2).

clock            counts the steps in which the set ran; lengths follow from it (Sequence.settle)
growing[phase]   the members that fill their last block whenever clock % block_tokens == phase
due              the members by the tick at which they reach max_tokens; none after it, until they leave
context          the sum of the members' KV lengths: what a step's attention reads
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from penstock.control.calendar import NEVER, Calendar
from penstock.control.memory.blocks import Memory, expect
from penstock.control.sequence import Sequence


class DecodeSet:
    """Ticking is O(1), whatever the size; entering and leaving are O(log members)."""

    def __init__(self, block_tokens: int, *, grows: bool) -> None:
        """`grows`: whether members take new blocks as they get longer."""
        self.clock = 0
        self.context = 0
        self._members: dict[str, Sequence] = {}
        self._grows = grows
        self._size = block_tokens
        self._growing: list[dict[str, list[int]]] = [{} for _ in range(block_tokens)]
        self._due = Calendar()

    def enter(self, sequence: Sequence) -> None:
        """From the next tick on."""
        clock, name, computed = self.clock, sequence.id, sequence.computed
        sequence.join_clock = clock
        self._members[name] = sequence
        self.context += computed
        if self._grows:
            self._growing[(clock - computed) % self._size][name] = sequence.blocks
        self._due.enter(sequence, clock + sequence.max_tokens - sequence.outputs - 1)

    def leave(self, sequence: Sequence) -> None:
        """After this the sequence's own counts are true again."""
        name, joined, computed = sequence.id, sequence.join_clock, sequence.computed
        del self._members[name]
        if self._grows:
            del self._growing[(joined - computed) % self._size][name]
        if sequence.due >= 0:
            self._due.leave(sequence)
        sequence.settle(self.clock)
        self.context -= sequence.computed

    def growing(self) -> dict[str, list[int]]:
        """Id to block table of the members that need a block for their next token. Changes with enter and leave."""
        return self._growing[self.clock % self._size]

    def tick(self) -> list[Sequence] | None:
        """One token for every member. Returns those for whom it was the last, if any; they are still members."""
        self.clock += 1
        self.context += len(self._members)
        return self._reached(self.clock - 1)

    def quiet(self, available: int) -> int:
        """Ticks that are sure to need no more than `available` blocks, up to the first that ends somebody; at least 0,
        O(1)."""
        first = self._due.first()
        free = int(first) - self.clock + 1 if first < NEVER else NEVER
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
                if len(full) == 1:
                    for table in full.values():
                        memory.give(table)
                elif full:
                    grow(full, memory)
        self.clock += ticks
        self.context += ticks * len(self._members)
        return self._reached(self.clock - 1)

    def _reached(self, tick: int) -> list[Sequence] | None:
        """Who was due at `tick`."""
        return cast("list[Sequence] | None", self._due.take(tick))

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
        due = sum(1 for member in self if member.due >= self.clock)
        expect(due == len(self) == len(self._due), "due is not the decode set")
        expect(not self._due.misplaced(), "due is out of order")


def grow(tables: dict[str, list[int]], memory: Memory) -> list[int]:
    """One more block for each block table. Returns the blocks, in order."""
    blocks = memory.take(len(tables))
    # Compiled, a number of a list[int] would be taken out and made anew: `block_numbers` says why that must not be.
    numbers: list[Any] = blocks
    growing = cast("dict[str, list[Any]]", tables)
    for at, table in enumerate(growing.values()):
        table.append(numbers[at])
    return blocks
