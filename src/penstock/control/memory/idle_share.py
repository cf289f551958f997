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

from penstock.control.memory.idle_leaves import IdleLeaves


class IdleShare:
    """The idle leaves of each tenant. `next` is O(1) for one tenant, O(tenants) else: paid per eviction."""

    def __init__(self, *, fair: bool = True) -> None:
        """`fair`: False counts all as one tenant."""
        self._fair = fair
        self._by_name: dict[str, IdleLeaves] = {}
        self._all: list[IdleLeaves] = []
        self.above = 0
        """Blocks that the tenant shown by `next` may lose before another holds as much for its weight."""

    def of(self, tenant: str) -> IdleLeaves:
        """That of a tenant or group, for a root of its own; `gone` when its last root is gone."""
        name = tenant if self._fair else ""
        leaves = self._by_name.get(name)
        if leaves is None:
            leaves = self._by_name[name] = IdleLeaves(name)
            self._all.append(leaves)
        return leaves

    def gone(self, leaves: IdleLeaves) -> None:
        """No node is left."""
        del self._by_name[leaves.name]
        self._all.remove(leaves)

    def next(self) -> IdleLeaves:
        """Who gives way: one that has an idle leaf. There must be one."""
        if len(self._all) == 1:
            only = self._all[0]
            self.above = only.blocks
            return only
        chosen: IdleLeaves | None = None
        most = second = 0.0
        for leaves in self._all:
            level = leaves.blocks / leaves.weight
            if level > second and leaves.first() is not None:
                if level > most:
                    chosen, most, second = leaves, level, most
                else:
                    second = level
        assert chosen is not None, "somebody has an idle leaf"
        self.above = int(chosen.blocks - second * chosen.weight)
        return chosen

    def tenants(self) -> list[IdleLeaves]:
        """All that have a root."""
        return self._all
