"""Who is due at which tick of a clock: a binary heap whose members know where they stand, so that they can leave it.

heapq would need a tuple for each entry, and marks for those that left; here an entry costs a few comparisons of ints
and no new object. Among those of one tick, who entered first comes first.
"""

from __future__ import annotations

from typing import Final

NEVER: Final = 1 << 60


class Dated:
    """What a calendar holds: base of `Sequence` and of the twin's rows."""

    __slots__ = ("due", "entry", "place")

    def __init__(self) -> None:
        self.due = -1
        """Its tick; -1: it is in no calendar."""
        self.entry = 0
        """Rises with each entry into one calendar: decides between those of one tick."""
        self.place = -1
        """Where it stands in the calendar's heap."""


class Calendar:
    """Entering, leaving and taking out are O(log members); looking at the first is O(1)."""

    def __init__(self) -> None:
        self._heap: list[Dated] = []
        self._entries = 0

    def __len__(self) -> int:
        return len(self._heap)

    def first(self) -> int:
        """The earliest tick somebody is due at; NEVER where there is nobody."""
        heap = self._heap
        return heap[0].due if heap else NEVER

    def enter(self, one: Dated, due: int) -> None:
        """`one`, which is in no calendar, is due at that tick."""
        self._entries += 1
        one.due, one.entry = due, self._entries
        heap = self._heap
        heap.append(one)
        self._rise(one, len(heap) - 1)

    def leave(self, one: Dated) -> None:
        """It is not due any more. It must be here."""
        heap = self._heap
        at, last = one.place, heap.pop()
        one.due = one.place = -1
        if last is one:
            return
        if at > 0 and _before(last, heap[(at - 1) >> 1]):
            self._rise(last, at)
        else:
            self._sink(last, at)

    def take(self, tick: int) -> list[Dated] | None:
        """All that are due at `tick`, in the order in which they entered; nobody may be due earlier. They are out."""
        heap = self._heap
        if not heap or heap[0].due != tick:
            return None
        taken = []
        while heap and heap[0].due == tick:
            one = heap[0]
            self.leave(one)
            taken.append(one)
        return taken

    def clear(self) -> None:
        """Nobody is here any more."""
        for one in self._heap:
            one.due = one.place = -1
        self._heap.clear()

    def _rise(self, one: Dated, at: int) -> None:
        heap = self._heap
        while at > 0:
            above = heap[(at - 1) >> 1]
            if not _before(one, above):
                break
            heap[at] = above
            above.place = at
            at = (at - 1) >> 1
        heap[at] = one
        one.place = at

    def _sink(self, one: Dated, at: int) -> None:
        heap = self._heap
        count = len(heap)
        below = 2 * at + 1
        while below < count:
            low = heap[below]
            if below + 1 < count and _before(heap[below + 1], low):
                below += 1
                low = heap[below]
            if not _before(low, one):
                break
            heap[at] = low
            low.place = at
            at = below
            below = 2 * at + 1
        heap[at] = one
        one.place = at

    def misplaced(self) -> bool:
        """Whether a member stands where it must not; never, and O(members): for checks."""
        return any(
            one.place != at or (at > 0 and _before(one, self._heap[(at - 1) >> 1])) for at, one in enumerate(self._heap)
        )


def _before(one: Dated, other: Dated) -> bool:
    return one.due < other.due or (one.due == other.due and one.entry < other.entry)
