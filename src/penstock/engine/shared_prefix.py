"""Which sequences of a step begin with the same blocks, so that attention over those is computed once for all.

Sequences with equal block numbers at the front of their tables form a tree, of which one cut is chosen: every sequence
in one group at most, and as many reads of a block saved as possible. Tables only change where a sequence grows, at the
end and by blocks of its own, so what was found holds until another sequence decodes or takes a slot.
Source: Hydragen, Juravsky et al., 2024; one level of its hierarchy.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from penstock.engine.ops.kernels import SharedPrefixes

WORTH_TOKENS: Final = 700
"""Tokens read less, all members together, from which on a group is faster than none: 4 sequences with 256 in common and
16 with 64 are by a tenth, 3 with 256 and 8 with 64 are not (benchmarks/attention.py)."""
_LEVELS: Final = 16
"""Branchings looked at below each other; beyond them a group is not split further."""

Group = tuple["np.ndarray", int]
"""Members as positions, and how many leading blocks they have in common."""


class PrefixFinder:
    """Finds the groups of a step's decodes and remembers them while they cannot change."""

    def __init__(self, block_tokens: int, worth_tokens: int = WORTH_TOKENS) -> None:
        self._block_tokens, self._least = block_tokens, -(-worth_tokens // block_tokens)
        self._key: tuple[int, bytes] | None = None
        self._found: SharedPrefixes | None = None

    def find(self, slots: np.ndarray, lengths: np.ndarray, tables: np.ndarray, bindings: int) -> SharedPrefixes | None:
        """Groups among the segments of `slots` [n], by position in it; None if there is none.

        Args:
            lengths: [n] tokens of each. tables: [any, M] by slot. bindings: a number that changes with whoever holds
                a slot.
        """
        key = (bindings, slots.tobytes())
        if key != self._key:
            self._key, self._found = key, self._search(slots, lengths, tables)
        return self._found

    def _search(self, slots: np.ndarray, lengths: np.ndarray, tables: np.ndarray) -> SharedPrefixes | None:
        if len(slots) < 2:
            return None
        # At least one token of each stays outside: the one this step computes.
        whole = (lengths - 1) // self._block_tokens
        front = tables[slots, 0]
        if len(np.unique(front)) == len(front) or not whole.any():
            return None
        blocks = tables[slots, : int(whole.max())]
        groups = _cut(blocks, whole, np.flatnonzero(whole > 0), 0, self._least, _LEVELS)[1]
        if not groups:
            return None
        first = np.cumsum([0, *(len(members) for members, _ in groups)])
        return SharedPrefixes(
            first=torch.from_numpy(first.astype(np.int32)),
            members=torch.from_numpy(np.concatenate([members for members, _ in groups]).astype(np.int32)),
            blocks=torch.tensor([count for _, count in groups], dtype=torch.int32),
        )


def _cut(
    blocks: np.ndarray, whole: np.ndarray, members: np.ndarray, depth: int, least: int, levels: int
) -> tuple[int, list[Group]]:
    """Blocks read less, and the groups that do so, among members that agree on their first `depth` blocks."""
    if len(members) < 2:
        return 0, []
    if depth:
        cap = int(whole[members].min())
        differ = (blocks[members, depth:cap] != blocks[members[0], depth:cap]).any(axis=0)
        depth += int(np.argmax(differ)) if differ.any() else cap - depth
    saved = (len(members) - 1) * depth
    best: tuple[int, list[Group]] = (saved, [(members, depth)]) if saved >= least else (0, [])
    deeper = members[whole[members] > depth]
    if not levels or len(deeper) < 2:
        return best
    order = deeper[np.argsort(blocks[deeper, depth], kind="stable")]
    edges = np.flatnonzero(np.diff(blocks[order, depth])) + 1
    parts = [part for part in np.split(order, edges) if len(part) > 1]
    cuts = [_cut(blocks, whole, part, depth + 1, least, levels - 1) for part in parts]
    below = sum(gain for gain, _ in cuts)
    return best if below <= best[0] else (below, [group for _, groups in cuts for group in groups])
