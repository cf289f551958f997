"""The waiting sequences as a heap of keys: what every order but fair share is made of."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from penstock.control.sequence import Sequence

Key = tuple[float, int]


class Order:
    """Who is next, and who gives way. Decides; never allocates."""

    def push(self, sequence: Sequence, clock: int) -> None:
        """A new, an evicted or a swapped out sequence waits. The latter two keep their number and so their place.
        `clock` counts decode steps, here and below; orders that charge for tokens need it."""
        raise NotImplementedError

    def peek(self, clock: int) -> Sequence | None:
        """The next one, or None."""
        raise NotImplementedError

    def pop(self) -> Sequence:
        """Take what `peek` showed."""
        raise NotImplementedError

    def remove(self, sequence: Sequence) -> None:
        """It no longer waits (cancelled)."""
        raise NotImplementedError

    def victim(self, running: Iterable[Sequence], clock: int) -> Sequence:
        """Who of the running gives way first. O(running): paid per eviction, never per step."""
        raise NotImplementedError

    def charge(self, sequence: Sequence, prefill_tokens: int) -> None:
        """It was admitted and has so many tokens to compute on its own account; then it makes one token."""
        raise NotImplementedError

    def joined(self, sequence: Sequence, clock: int) -> None:
        """It entered the decode set."""
        raise NotImplementedError

    def left(self, sequence: Sequence, clock: int) -> None:
        """It left the decode set; `sequence.join_clock` is still the tick at which it entered."""
        raise NotImplementedError

    def departed(self, sequence: Sequence) -> None:
        """It was taken and has no place in the batch any more: it ended or gave way."""
        raise NotImplementedError

    def __len__(self) -> int:
        """How many wait."""
        raise NotImplementedError


class KeyedOrder(Order):
    """Smallest key first. O(log waiting) to push and pop; removal is lazy. Subclasses give `key`."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._waiting: dict[int, Sequence] = {}

    def key(self, sequence: Sequence) -> Key:
        """Total order: the second part is the unique submission number."""
        return (0.0, sequence.number)

    def push(self, sequence: Sequence, clock: int) -> None:
        self._waiting[sequence.number] = sequence
        key, number = self.key(sequence)
        heappush(self._heap, (key, number, sequence))

    def peek(self, clock: int) -> Sequence | None:
        while self._heap:
            sequence = self._heap[0][2]
            if self._waiting.get(sequence.number) is sequence:
                return sequence
            heappop(self._heap)
        return None

    def pop(self) -> Sequence:
        sequence = heappop(self._heap)[2]
        del self._waiting[sequence.number]
        return sequence

    def remove(self, sequence: Sequence) -> None:
        del self._waiting[sequence.number]
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._waiting):
            self._heap = [entry for entry in self._heap if entry[1] in self._waiting]
            heapify(self._heap)

    def victim(self, running: Iterable[Sequence], clock: int) -> Sequence:
        return max(running, key=self.key)

    def charge(self, sequence: Sequence, prefill_tokens: int) -> None:
        """Nothing to charge: the key is fixed."""

    def joined(self, sequence: Sequence, clock: int) -> None:
        """Nothing to note."""

    def left(self, sequence: Sequence, clock: int) -> None:
        """Nothing to note."""

    def departed(self, sequence: Sequence) -> None:
        """Nothing to note."""

    def __len__(self) -> int:
        return len(self._waiting)
