"""Which leaf of a tenant's prefixes gives way next: the one that has been idle longest.

Leaves become idle in the order of time, so a line is enough: new ones at its end, the oldest at its head. Only a node
that becomes a leaf because its last child was trimmed has been idle for longer than the end of the line; those few go
into a heap. A leaf that was used again meanwhile stands in the line twice, and only its newer place counts.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from penstock.control.memory.prefix_node import Node

_SLACK: Final = 64


class IdleLeaves:
    """Amortised O(1); O(log n) for those in the heap."""

    def __init__(self, name: str = "", number: int = 0) -> None:
        self.name = name
        """The tenant's, or the group's."""
        self.number = number
        self.noted = -1.0
        """What idle_share.py takes it to hold for its weight, or more than that; -1: it stands in no order."""
        self.weight = 1.0
        """That of its newest request."""
        self.nodes = 0
        """Of its prefixes, roots included."""
        self.blocks = 0
        """Of its prefixes, in use or idle."""
        self._line: list[Node] = []
        self._head = 0
        self._gone = 0
        """Places before the list's first."""
        self._heap: list[int] = []
        """stamp * 2**32 + the entry's number: ints are compared fastest."""
        self._older: dict[int, Node] = {}
        """Entry of the heap to its node."""
        self._entries = 0
        self._from_heap = False

    def add(self, node: Node, most: int) -> None:
        """`node` has just become idle, later than all before. `most`: with more places than that and some, those that
        count no more are cleared away."""
        node.place = self._gone + len(self._line)
        self._line.append(node)
        if len(self._line) - self._head > _SLACK + most:
            kept = [node for at, node in enumerate(self._line) if node.place == self._gone + at and node.idle_leaf]
            self._line, self._head, self._gone = kept, 0, self._gone + len(self._line)
            for at, node in enumerate(kept):
                node.place = self._gone + at

    def add_older(self, node: Node) -> None:
        """`node`, idle since its stamp, has become a leaf."""
        self._entries += 1
        entry = (node.stamp << 32) + self._entries
        node.place = -2 - self._entries
        self._older[entry] = node
        heappush(self._heap, entry)

    def first(self) -> Node | None:
        """The leaf that has been idle longest, if there is one."""
        line, heap = self._line, self._heap
        older: Node | None = None
        while heap:
            node = self._older[heap[0]]
            if node.place == -2 - (heap[0] & 0xFFFFFFFF) and node.idle_leaf:
                older = node
                break
            del self._older[heappop(heap)]
        while self._head < len(line):
            node = line[self._head]
            if node.place == self._gone + self._head and node.idle_leaf:
                if older is not None and older.stamp < node.stamp:
                    break
                self._from_heap = False
                return node
            self._head += 1
        self._from_heap = True
        return older

    def __len__(self) -> int:
        """Places taken, also by leaves that were used again."""
        return len(self._line) - self._head + len(self._heap)

    def drop_first(self) -> None:
        """Forget what `first` has just shown."""
        if self._from_heap:
            del self._older[heappop(self._heap)]
            return
        self._head += 1
        if self._head >= 1024 and 2 * self._head >= len(self._line):
            del self._line[: self._head]
            self._gone += self._head
            self._head = 0
