"""Prefix tree: equal prefixes share KV blocks, across requests and turns (RadixAttention, SGLang, arXiv 2312.07104).

Who owns a block, for a sequence whose table has n blocks:

    [0, shared_blocks)    the tree; the sequence keeps the path to `sequence.shared` from being evicted
    [shared_blocks, n)    the sequence alone

A node is a run of whole blocks. `users` counts the sequences whose path goes through it; a node with users 0 and no
child may be trimmed from its end: of the tenant that holds most (idle_share.py), least recently used first. Each
(tenant, salt, adapter) has a root of its own, so nothing is shared, and no timing leaks, across that border; tenants
that name one group count as one. Prefixes are equal when their ids are, not when hashes of them are, so no collision
can be made. Comparing a prompt with a run is one slice comparison, so a request costs O(nodes on its path), not
O(blocks).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from struct import Struct
from struct import error as StructError
from typing import Final

from penstock.control.memory.blocks import (
    Memory,
    Occupancy,
    block_numbers,
    blocks_for,
    expect,
    move_top,
    top,
)
from penstock.control.memory.idle_share import IdleShare
from penstock.control.memory.prefix_node import BlockKey, Border, Node, path_of
from penstock.control.request import PLAIN, Sampling
from penstock.control.sequence import Sequence, Tokens

_FORGOTTEN: Final = "\0forgotten"
"""Stands for the tenant of prefixes that nobody may find."""


class PrefixTree(Memory):
    """Paged memory whose released blocks stay findable by their content until somebody needs the room."""

    def __init__(self, blocks: int, block_tokens: int, *, fair: bool = True) -> None:
        """`fair`: room is made by the tenant that holds most for its weight; else by whoever was idle longest."""
        super().__init__(blocks, block_tokens)
        self._free = block_numbers(blocks)[::-1]
        self._pack = Struct(f"{block_tokens}q").pack
        self._bite = max(1, blocks // 1024)
        """At least so many blocks are trimmed at a time: a thousandth of all, which the cache hardly notices."""
        self._roots: dict[Border, Node] = {}
        self._idle = IdleShare(fair=fair)
        self._ticks = 0
        self._cached = 0
        self._forgotten = 0

    # -- the Memory protocol ------------------------------------------------------------------------------------

    def available(self) -> int:
        return len(self._free) + self._cached

    def fits(self, tokens: int) -> bool:
        return blocks_for(tokens, self.block_tokens) <= self.total

    def admit(self, sequence: Sequence, tokens: int, spare: int) -> int | None:
        node = self._roots.get(sequence.border)
        matched = idle = 0
        missed: BlockKey | None = None
        path: list[Node] = []
        if node is not None:
            if node.leaves.weight != sequence.request.weight:
                self._idle.weigh(node.leaves, sequence.request.weight)
            if node.children and (sequence.outputs or not _reads_prompt(sequence.request.sampling)):
                node, matched, missed = self._match(node, sequence.prompt, tokens - 1)
            path = path_of(node)
            for step in path:
                if not step.users:
                    idle += len(step.blocks)
        count = -(-tokens // self.block_tokens) - matched
        if count + spare > len(self._free) + self._cached - idle:
            return None
        shared: list[int] = []
        for step in reversed(path):
            self._enter(step)
            shared += step.blocks
        taken = self.take(count)
        sequence.blocks = shared + taken if shared else taken
        sequence.shared, sequence.shared_blocks, sequence.next_key = node, matched, missed
        return matched * self.block_tokens

    def take(self, count: int) -> list[int]:
        free = self._free
        while len(free) < count:
            self._trim(count - len(free))
        return top(free, count)

    def give(self, table: list[int]) -> None:
        if not self._free:
            self._trim(1)
        move_top(self._free, table)

    def publish(self, sequence: Sequence, computed: int) -> None:
        self._extend(sequence, sequence.prompt, min(computed, sequence.prompt_tokens))

    def release(self, sequence: Sequence, tokens: Tokens | None = None) -> None:
        if tokens is not None:
            self._extend(sequence, tokens, len(tokens), keep_going=True)
        node = sequence.shared
        self._free.extend(sequence.blocks[sequence.shared_blocks :])
        sequence.blocks, sequence.shared, sequence.shared_blocks, sequence.next_key = [], None, 0, None
        if isinstance(node, Node):
            self._let_go(node)

    def forget(self, holders: Iterable[Sequence]) -> None:
        while self._cached:
            self._trim(self.total)
        for root in list(self._roots.values()):
            # Its users still hold their path; nobody comes under this name.
            del self._roots[root.border]
            root.border = self._nowhere()
            self._roots[root.border] = root
        for sequence in holders:
            # What it has computed and not published yet.
            sequence.border = self._nowhere()

    def occupancy(self) -> Occupancy:
        free = len(self._free)
        return Occupancy(free=free, cached=self._cached, held=self.total - free - self._cached)

    # -- inside -------------------------------------------------------------------------------------------------

    def _nowhere(self) -> Border:
        self._forgotten += 1
        return (_FORGOTTEN, str(self._forgotten), "")

    def _key(self, tokens: Tokens, at: int = 0) -> BlockKey:
        """Of the block at `at`, which lies in `tokens` as a whole."""
        if isinstance(tokens, range) and tokens.step == 1:
            return tokens.start + at
        block = tokens[at : at + self.block_tokens]
        first = block[0]
        if block[-1] - first == self.block_tokens - 1 and tuple(block) == tuple(range(first, block[-1] + 1)):
            return first
        try:
            return self._pack(*block)
        except StructError:
            # Ids of more than 8 bytes, which are hashes and no words; longer than any packed key.
            return repr(tuple(block)).encode().ljust(8 * self.block_tokens + 1)

    def _match(self, root: Node, tokens: Tokens, most: int) -> tuple[Node, int, BlockKey | None]:
        """Deepest node that holds a prefix of `tokens`, its depth in blocks, and the key of the block after it if that
        was looked for; at most `most` tokens. May split a node so that the match ends at a node's end."""
        size = self.block_tokens
        most = min(most, len(tokens)) // size * size
        node, at = root, 0
        while at < most:
            key = self._key(tokens, at)
            child = node.children.get(key)
            if child is None:
                return node, at // size, key
            held = len(child.blocks) * size
            same = self._common(child, tokens[at : min(at + held, most)])
            if same < held:
                node = self._split(child, same)
                at += same
                break
            node, at = child, at + same
        return node, at // size, None

    def _common(self, child: Node, tokens: Tokens) -> int:
        """How many tokens, in whole blocks, `child` and `tokens` have in common; one block is known to be."""
        run = min(len(child.blocks) * self.block_tokens, len(tokens))
        if _equal(tokens[:run], child.tokens[:run]):
            return run
        size = self.block_tokens
        low, high = 1, run // size
        while high - low > 1:  # common prefixes are monotone: binary search for the first block that differs
            middle = (low + high) // 2
            if _equal(tokens[: middle * size], child.tokens[: middle * size]):
                low = middle
            else:
                high = middle
        return low * size

    def _split(self, node: Node, tokens: int) -> Node:
        """Cut `node` after its first `tokens` tokens. The lower part stays the same object: sequences point at it."""
        assert node.parent is not None
        count = tokens // self.block_tokens
        upper = Node(node.parent, node.key, node.tokens[:tokens], node.blocks[:count], node.border, node.leaves)
        upper.users, upper.stamp = node.users, node.stamp
        node.parent.children[node.key] = upper
        node.parent, node.tokens, node.blocks = upper, node.tokens[tokens:], node.blocks[count:]
        node.key = self._key(node.tokens)
        upper.children[node.key] = node
        node.leaves.nodes += 1
        return upper

    def _extend(self, sequence: Sequence, tokens: Tokens, valid: int, *, keep_going: bool = False) -> None:
        """Move the sequence's own full blocks of tokens[:valid] into the tree, below what it shares already.

        Where another sequence has published the same tokens meanwhile, ours are duplicates: a running sequence stops
        there, since the engine reads its table; one that is done (`keep_going`) gives them up and goes on below.
        """
        size = self.block_tokens
        full = valid // size
        at = sequence.shared_blocks
        if at >= full:
            return
        node = sequence.shared
        if not isinstance(node, Node):
            border = sequence.border
            node = self._roots.get(border)
            if node is None:
                node = self._root(sequence)
            for step in path_of(node):
                self._enter(step)
        key, sequence.next_key = sequence.next_key, None
        while at < full and node.children:
            if key is None:
                key = self._key(tokens, at * size)
            child = node.children.get(key)
            if child is None:
                break
            key = None
            if not keep_going:
                self._settle_on(sequence, node, at)
                return
            held = len(child.blocks) * size
            same = self._common(child, tokens[at * size : min(at * size + held, full * size)])
            if same < held:
                child = self._split(child, same)
            self._enter(child)
            self._free.extend(sequence.blocks[at : at + same // size])
            node, at = child, at + same // size
        if at < full:
            node = self._append(node, key, tokens, at, full, sequence.blocks[at:full])
            at = full
        self._settle_on(sequence, node, at)

    def _append(self, node: Node, key: BlockKey | None, tokens: Tokens, at: int, full: int, blocks: list[int]) -> Node:
        """Blocks [at, full) of a sequence that holds `node` and ends there; returns the node that has them now. `key`:
        that of the first of them, if it is known.

        A leaf that nobody else uses grows, so that a prompt published chunk by chunk is one run and not a chain.
        """
        size, leaves = self.block_tokens, node.leaves
        leaves.blocks += len(blocks)
        if self._idle.many:
            self._idle.risen(leaves)
        if node.parent is not None and node.users == 1 and not node.children:
            node.tokens = _cut(tokens, (at - len(node.blocks)) * size, full * size)
            node.blocks += blocks
            return node
        if key is None:
            key = self._key(tokens, at * size)
        leaf = Node(node, key, _cut(tokens, at * size, full * size), blocks, node.border, leaves)
        leaf.users = 1
        node.children[leaf.key] = leaf
        leaves.nodes += 1
        return leaf

    @staticmethod
    def _settle_on(sequence: Sequence, node: Node, shared_blocks: int) -> None:
        sequence.shared, sequence.shared_blocks = node, shared_blocks

    def _enter(self, node: Node) -> None:
        if not node.users:
            self._cached -= len(node.blocks)
        node.users += 1

    def _let_go(self, node: Node) -> None:
        self._ticks += 1
        step: Node | None = node
        while step is not None:
            above = step.parent
            step.users -= 1
            if not step.users:
                self._cached += len(step.blocks)
                self._offer(step)
            step = above

    def _offer(self, node: Node) -> None:
        """Note that nobody uses `node` any more. An empty root goes at once: salts are the client's choice."""
        node.stamp = self._ticks
        if node.children:
            return
        if node.parent is None:
            self._drop_root(node)
        else:
            leaves = node.leaves
            leaves.add(node, 2 * leaves.nodes)
            if self._idle.many:
                self._idle.risen(leaves)

    def _trim(self, wanted: int) -> None:
        """Free what is due of `wanted` blocks from who holds most, at least a bite, at the end of its least recently
        used idle leaf; or all it has."""
        idle = self._idle
        if idle.many:
            leaves = idle.next(wanted)
            wanted = idle.due
        else:
            leaves = idle.tenants[0]
        node = leaves.first()
        assert node is not None, "who gives way has an idle leaf"
        parent = node.parent
        assert parent is not None, "a root is never trimmed"
        blocks = node.blocks
        wanted = max(wanted, self._bite)
        kept = len(blocks) - wanted
        # What is less than a bite goes with it.
        if kept >= self._bite:
            # It stays the least recently used one.
            self._free += blocks[kept:]
            self._cached -= wanted
            leaves.blocks -= wanted
            del blocks[kept:]
            return
        leaves.drop_first()
        self._free += blocks
        self._cached -= len(blocks)
        leaves.blocks -= len(blocks)
        del parent.children[node.key]
        node.parent, node.blocks = None, []
        leaves.nodes -= 1
        if parent.users or parent.children:
            return
        if parent.parent is None:
            self._drop_root(parent)
        else:
            leaves.add_older(parent)

    def _root(self, sequence: Sequence) -> Node:
        """A new one. It counts for the tenant also where nobody may find it any more."""
        request, border = sequence.request, sequence.border
        leaves = self._idle.of(request.prefix_group or request.tenant)
        leaves.nodes += 1
        if leaves.weight != request.weight:
            self._idle.weigh(leaves, request.weight)
        root = self._roots[border] = Node(None, b"", (), [], border, leaves)
        return root

    def _drop_root(self, root: Node) -> None:
        del self._roots[root.border]
        root.leaves.nodes -= 1
        if not root.leaves.nodes:
            self._idle.gone(root.leaves)

    # -- checks -------------------------------------------------------------------------------------------------

    def _nodes(self) -> Iterator[Node]:
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self, holders: Collection[Sequence]) -> None:
        users: dict[int, int] = {}
        own: list[int] = []
        for sequence in holders:
            own += sequence.blocks[sequence.shared_blocks :]
            node = sequence.shared
            path = path_of(node if isinstance(node, Node) else None)
            shared = [block for step in reversed(path) for block in step.blocks]
            expect(shared == sequence.blocks[: sequence.shared_blocks], "a table and its path in the tree disagree")
            for step in path:
                users[id(step)] = users.get(id(step), 0) + 1
        in_tree: list[int] = []
        cached = 0
        counted: dict[str, tuple[int, int]] = {leaves.name: (0, 0) for leaves in self._idle.tenants}
        for node in self._nodes():
            in_tree += node.blocks
            nodes, blocks = counted[node.leaves.name]
            counted[node.leaves.name] = (nodes + 1, blocks + len(node.blocks))
            expect(node.users == users.get(id(node), 0), "a node's users were miscounted")
            expect(len(node.blocks) * self.block_tokens <= len(node.tokens), "a node has more blocks than tokens")
            cached += 0 if node.users else len(node.blocks)
            for key, child in node.children.items():
                expect(child.parent is node and key == child.key == self._key(child.tokens), "a child is misfiled")
                expect(not child.users or node.users > 0, "a used node hangs below an unused one")
        for leaves in self._idle.tenants:
            expect(counted[leaves.name] == (leaves.nodes, leaves.blocks), "a tenant's nodes or blocks were miscounted")
        expect(cached == self._cached, f"{cached} blocks are idle in the tree, {self._cached} were counted")
        expect(sorted(own + in_tree + self._free) == list(range(self.total)), "a block is lost, or has two owners")


def _reads_prompt(sampling: Sampling) -> bool:
    return sampling is not PLAIN and sampling.reads_prompt


def _equal(a: Tokens, b: Tokens) -> bool:
    """A range and a tuple of the same ids are the same prompt."""
    return a == b if type(a) is type(b) else tuple(a) == tuple(b)


def _cut(tokens: Tokens, start: int, end: int) -> Tokens:
    """tokens[start:end], and no copy where that is all of them."""
    return tokens if not start and end == len(tokens) else tokens[start:end]
