"""Who is due when, in ticks of a clock or in seconds: a binary heap whose members know where they stand, so that they
can leave it.

heapq would need a tuple for each entry, and marks for those that left; here an entry costs a few comparisons and no new
object. Among those of one moment, who entered first comes first.
"""

from __future__ import annotations

from typing import Final

NEVER: Final = 1 << 60


class Dated:
    """What a calendar holds: base of `Sequence` and of the twin's rows, or an alarm."""

    __slots__ = ("due", "entry", "place")

    def __init__(self) -> None:
        self.due = -1.0
        """Its moment; -1: it is in no calendar. Ticks below 2**53 are exact."""
        self.entry = 0
        """1, 2, 3, ... in the order of entry into one calendar: decides between those of one moment."""
        self.place = -1
        """Where it stands in the calendar's heap."""


class Calendar:
    """Entering, leaving and taking out are O(log members); looking at the first is O(1)."""

    def __init__(self) -> None:
        self._heap: list[Dated] = []
        self._entries = 0

    def __len__(self) -> int:
        return len(self._heap)

    def first(self) -> float:
        """The earliest moment somebody is due at; NEVER where there is nobody."""
        heap = self._heap
        return heap[0].due if heap else NEVER

    def head(self) -> Dated:
        """Who is due then, the first of them. There must be somebody."""
        return self._heap[0]

    def enter(self, one: Dated, due: float) -> None:
        """`one`, which is in no calendar, is due at that moment."""
        self._entries += 1
        one.due, one.entry = due, self._entries
        heap = self._heap
        heap.append(one)
        self._rise(one, len(heap) - 1)

    def leave(self, one: Dated) -> None:
        """It is not due any more. It must be here."""
        heap = self._heap
        at, last = one.place, heap.pop()
        one.due, one.place = -1.0, -1
        if last is not one:
            self._settle(last, at)

    def move(self, one: Dated, due: float) -> None:
        """It is due at another moment. It must be here."""
        one.due = due
        self._settle(one, one.place)

    def take(self, moment: float) -> list[Dated] | None:
        """All that are due then, in the order in which they entered; nobody may be due earlier. They are out."""
        heap = self._heap
        if not heap or heap[0].due != moment:
            return None
        taken = []
        while heap and heap[0].due == moment:
            one = heap[0]
            self.leave(one)
            taken.append(one)
        return taken

    def clear(self) -> None:
        """Nobody is here any more."""
        for one in self._heap:
            one.due, one.place = -1.0, -1
        self._heap.clear()

    def _settle(self, one: Dated, at: int) -> None:
        """Put it at `at`, or above or below as it must."""
        if at > 0 and _before(one, self._heap[(at - 1) >> 1]):
            self._rise(one, at)
        else:
            self._sink(one, at)

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
