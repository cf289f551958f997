"""Whose idle prefixes give way next: of the tenant whose prefixes hold most blocks for its weight (max-min fairness).

A tenant's prefixes are all its blocks in the tree, in use or idle, under whatever salt or adapter; a group of tenants
counts as one. So who floods pays with its own idle prefixes before anybody who holds less for its weight:

    A tenant loses idle blocks only while no other that has some holds more for its weight. Hence, while requests that
    run hold no more than R of the P blocks, a tenant's prefixes keep their share of P - R, if they had as much, but for
    less than two bites (prefix_tree.py), whatever the others send.

Who runs goes before what idles, and what an answer writes counts from its end on. A tenant that is gone for good keeps
its share until it is forgotten or others outnumber it: that is the price. Where all count as one tenant, the leaf idle
longest of all gives way (LRU).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from penstock.control.memory.idle_leaves import IdleLeaves

_SLACK: Final = 64


class IdleShare:
    """The idle leaves of each tenant. O(log tenants) per eviction and per change; nothing while there is one tenant."""

    def __init__(self, *, fair: bool = True) -> None:
        """`fair`: False counts all as one tenant."""
        self._fair = fair
        self._by_name: dict[str, IdleLeaves] = {}
        self.tenants: list[IdleLeaves] = []
        """All that have a root."""
        self._numbers = 0
        self._heap: list[tuple[float, int]] = []
        """(-level, number) of who may have an idle leaf. A level that has fallen is corrected when it comes up; one
        that is not what the tenant has `noted` counts no more."""
        self._numbered: dict[int, IdleLeaves] = {}
        self.many = False
        """There is more than one tenant: `risen` must be told, and `next` asked."""
        self._weights = 0.0
        """Of all tenants."""
        self.due = 0
        """Blocks that the tenant shown by `next` gives, at least, until all that is wanted is there."""

    def of(self, tenant: str) -> IdleLeaves:
        """That of a tenant or group, for a root of its own; `gone` when its last root is gone."""
        name = tenant if self._fair else ""
        leaves = self._by_name.get(name)
        if leaves is None:
            self._numbers += 1
            leaves = self._by_name[name] = self._numbered[self._numbers] = IdleLeaves(name, self._numbers)
            self.tenants.append(leaves)
            self._weights += leaves.weight
            if not self.many and len(self.tenants) > 1:
                self.many = True
                self._note_all()
        return leaves

    def gone(self, leaves: IdleLeaves) -> None:
        """No node is left."""
        del self._by_name[leaves.name], self._numbered[leaves.number]
        self.tenants.remove(leaves)
        self._weights -= leaves.weight
        self.many = len(self.tenants) > 1

    def weigh(self, leaves: IdleLeaves, weight: float) -> None:
        """Its weight from now on."""
        self._weights += weight - leaves.weight
        leaves.weight = weight
        if self.many:
            self.risen(leaves)

    def risen(self, leaves: IdleLeaves) -> None:
        """It holds more, weighs less, or has an idle leaf again. For `many`."""
        level = leaves.blocks / leaves.weight
        if level > leaves.noted:
            leaves.noted = level
            heappush(self._heap, (-level, leaves.number))
            if len(self._heap) > 2 * len(self.tenants) + _SLACK:
                self._note_all()

    def next(self, wanted: int) -> IdleLeaves:
        """Who of `many` gives way first, so that in the end there are `wanted` blocks: one that has an idle leaf. There
        must be one."""
        heap = self._heap
        while True:
            entry = heap[0]
            noted = -entry[0]
            leaves = self._numbered.get(entry[1])
            if leaves is None or leaves.noted != noted:
                heappop(heap)
                continue
            level = leaves.blocks / leaves.weight
            if level < noted:
                leaves.noted = level
                heapreplace(heap, (-level, entry[1]))
            elif leaves.first() is None:
                leaves.noted = -1.0
                heappop(heap)
            else:
                break
        second = 0.0
        for other in heap[1:3]:
            second = max(second, -other[0])
        above = min(leaves.blocks - second * leaves.weight, float(wanted))
        # Once it holds no more than the next, all that have some give by their weights.
        self.due = int(above + (wanted - above) * leaves.weight / self._weights)
        return leaves

    def _note_all(self) -> None:
        self._heap = []
        for leaves in self.tenants:
            leaves.noted = leaves.blocks / leaves.weight
            self._heap.append((-leaves.noted, leaves.number))
        heapify(self._heap)
