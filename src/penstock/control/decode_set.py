"""The decode set: who makes a token in each step, kept so that a step costs nothing per member (Contract 2).

clock            counts the steps in which the set ran; lengths follow from it (Sequence.settle)
growing[phase]   the members that fill their last block whenever clock % block_tokens == phase
due[clock]       the members that reach max_tokens at that tick
context          the sum of the members' KV lengths: what a step's attention reads
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.control.memory.blocks import expect
from penstock.control.sequence import Sequence


class DecodeSet:
    """Entering, leaving and ticking are O(1), whatever the size."""

    def __init__(self, block_tokens: int, *, grows: bool) -> None:
        """`grows`: whether members take new blocks as they get longer."""
        self.clock = 0
        self.context = 0
        self._members: dict[str, Sequence] = {}
        self._grows = grows
        self._growing: list[dict[str, list[int]]] = [{} for _ in range(block_tokens)]
        self._due: dict[int, dict[str, Sequence]] = {}

    def enter(self, sequence: Sequence) -> None:
        """From the next tick on."""
        sequence.join_clock = self.clock
        self._members[sequence.id] = sequence
        self.context += sequence.computed
        if self._grows:
            self._growing[self._phase(sequence)][sequence.id] = sequence.blocks
        self._due.setdefault(self._last_tick(sequence), {})[sequence.id] = sequence

    def leave(self, sequence: Sequence) -> None:
        """After this the sequence's own counts are true again."""
        del self._members[sequence.id]
        if self._grows:
            del self._growing[self._phase(sequence)][sequence.id]
        tick = self._last_tick(sequence)
        due = self._due[tick]
        del due[sequence.id]
        if not due:
            del self._due[tick]
        sequence.settle(self.clock)
        self.context -= sequence.computed

    def growing(self) -> dict[str, list[int]]:
        """Id to block table of the members that need a block for their next token. Changes with enter and leave."""
        return self._growing[self.clock % len(self._growing)]

    def tick(self) -> list[Sequence]:
        """One token for every member. Returns those for whom it was the last; they are still members."""
        due = self._due.get(self.clock)
        self.clock += 1
        self.context += len(self._members)
        return list(due.values()) if due else []

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

    def _phase(self, sequence: Sequence) -> int:
        """A member at length `computed` when it joined needs a block whenever its length is a multiple of the size."""
        return (sequence.join_clock - sequence.computed) % len(self._growing)

    @staticmethod
    def _last_tick(sequence: Sequence) -> int:
        return sequence.join_clock + sequence.max_tokens - sequence.outputs - 1
