"""Which idle leaf is trimmed next, against the plain answer: the smallest stamp among those that may be trimmed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from penstock.control.memory.idle_leaves import IdleLeaves
from penstock.control.memory.prefix_node import Node
from penstock.control.step import Chunk, Step, added

BORDER = ("", "", "")


class Tree:
    """A tree of nodes that are used and let go at random, as prefix_tree.py does it, without tokens or blocks."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.idle = IdleLeaves()
        self.root = Node(None, b"", (), [], BORDER, self.idle)
        self.root.users = 1
        self.nodes: list[Node] = []
        self.ticks = 0

    def grow(self) -> None:
        """A leaf below any node, used and given up at once."""
        parent = self.chance.choice([self.root, *self.nodes])
        leaf = Node(parent, len(self.nodes), (), [], BORDER, self.idle)
        parent.children[self.ticks] = leaf
        leaf.key = self.ticks
        self.nodes.append(leaf)
        self.use(leaf)

    def use(self, leaf: Node) -> None:
        """Somebody takes the path down to `leaf` and gives it up: all of it is stamped."""
        self.ticks += 1
        step: Node | None = leaf
        while step is not None and step is not self.root:
            step.stamp = self.ticks
            step = step.parent
        if not leaf.children:
            self.idle.add(leaf, 2 * len(self.nodes))

    def oldest(self) -> Node:
        return min((node for node in self.nodes if node.idle_leaf), key=lambda node: node.stamp)

    def trim(self) -> None:
        node = self.idle.first()
        assert node is not None
        assert node is self.oldest()
        parent = node.parent
        assert parent is not None
        self.idle.drop_first()
        del parent.children[node.key]
        node.parent = None
        self.nodes.remove(node)
        if parent is not self.root and not parent.children:
            self.idle.add_older(parent)


@given(st.integers(0, 2**32), st.lists(st.sampled_from(("grow", "use", "trim")), max_size=400))
def test_the_first_is_the_one_idle_longest(seed: int, moves: list[str]) -> None:
    tree = Tree(seed)
    for move in moves:
        if move == "grow" or not tree.nodes:
            tree.grow()
        elif move == "use":
            tree.use(tree.chance.choice(tree.nodes))
        else:
            tree.trim()
        assert len(tree.idle) <= 66 + 3 * len(tree.nodes)
    while tree.nodes:
        tree.trim()
    assert tree.idle.first() is None


def test_what_fresh_steps_share_stays_empty() -> None:
    first, second = Step(1), Step(2)
    first.chunks = added(first.chunks, Chunk("a", 0, 1, last=True))
    first.chunks = added(first.chunks, Chunk("b", 0, 1, last=True))
    first.join = added(first.join, "a")
    assert (len(first.chunks), first.join, second.chunks, second.join, Step(3).release) == (2, ["a"], [], [], [])
