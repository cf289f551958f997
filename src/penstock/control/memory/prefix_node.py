"""A node of the prefix tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.control.sequence import Tokens

if TYPE_CHECKING:
    from penstock.control.memory.idle_leaves import IdleLeaves

Border = tuple[str, str, str]
"""(tenant or group, salt, adapter): nothing is shared across it."""
BlockKey = int | bytes
"""What names a block among its siblings: the first id where ids follow on each other, as made-up ones do; else all of
them, 8 bytes each. One small object that hashes fast."""


class Node:
    """A run of whole blocks below `parent`: the blocks, and the tokens whose KV they hold.

    Blocks are trimmed from the end; `tokens` then keeps its tail, which means nothing any more.
    """

    __slots__ = ("blocks", "border", "children", "key", "leaves", "parent", "place", "stamp", "tokens", "users")

    def __init__(
        self, parent: Node | None, key: BlockKey, tokens: Tokens, blocks: list[int], border: Border, leaves: IdleLeaves
    ) -> None:
        self.parent = parent
        self.leaves = leaves
        """Of its tenant: where it stands when it is idle."""
        self.border = border
        self.key = key
        """Of its first block; the parent has it under this."""
        self.tokens = tokens
        self.blocks = blocks
        self.children: dict[BlockKey, Node] = {}
        self.users = 0
        self.stamp = 0
        """When it was last given up."""
        self.place = -1
        """Where it stands in the line of idle leaves, if it does."""

    @property
    def idle_leaf(self) -> bool:
        """It may be trimmed."""
        return not self.users and not self.children and self.parent is not None


def path_of(node: Node | None) -> list[Node]:
    """From `node` up to its root."""
    path: list[Node] = []
    while node is not None:
        path.append(node)
        node = node.parent
    return path
