"""Whose idle prefixes give way: a tenant that floods pays with its own before it takes another's share.

The rule is checked against a recount of the whole tree whenever room was made; what follows from it, against any flood.
"""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.control.memory.prefix_node import Node
from penstock.control.memory.prefix_tree import PrefixTree
from penstock.control.request import Request
from penstock.control.sequence import Sequence
from penstock.errors import InvalidDeployment
from penstock.testing import Driver, ScriptedExecutor, small_replica

BLOCK = 4
WEIGHTS = {"quiet": 1.0, "flood": 1.0, "heavy": 3.0, "group:g": 0.5}
MEMBERS = {"quiet": ("quiet", ""), "flood": ("flood", ""), "heavy": ("heavy", ""),
           "one of g": ("one", "group:g"), "two of g": ("two", "group:g")}  # fmt: skip


def owner(node: Node) -> str:
    while node.parent is not None:
        node = node.parent
    return node.border[0]


def holdings(tree: PrefixTree) -> dict[str, tuple[int, int]]:
    """By tenant or group: blocks of its prefixes, and those of them that idle."""
    found: dict[str, tuple[int, int]] = {}
    for node in tree._nodes():
        held, idle = found.get(owner(node), (0, 0))
        blocks = len(node.blocks)
        found[owner(node)] = held + blocks, idle + (0 if node.users else blocks)
    return found


class Watch:
    """Over what makes room: checks afterwards who gave it, and which of its leaves."""

    def __init__(self, tree: PrefixTree, weights: dict[str, float]) -> None:
        self.tree, self.weights, self.made_room = tree, weights, 0

    def __enter__(self) -> None:
        self.held = holdings(self.tree)
        self.leaves = [
            (owner(node), node, node.parent, len(node.blocks)) for node in self.tree._nodes() if node.idle_leaf
        ]

    def __exit__(self, *raised: object) -> None:
        after = holdings(self.tree)
        level = {name: Fraction(held) / Fraction(self.weights[name]) for name, (held, _) in after.items()}
        for name, (held, _) in self.held.items():
            if after.get(name, (0, 0))[0] == held:
                continue
            self.made_room += 1
            left = level.get(name, Fraction(0)) + (2 * self.tree._bite - 1) / Fraction(self.weights[name])
            others = [level[other] for other, (_, idle) in after.items() if idle and other != name]
            assert left >= max(others, default=Fraction(0)), "nobody with idle blocks is left with more"
            shorter, kept = [], []
            for of, node, parent, had in self.leaves:
                if of == name and (node.parent is parent or node.parent is None) and not node.users:
                    (shorter if len(node.blocks) < had else kept).append(node.stamp)
            # None is shorter where the only one was split before: its lower part gave room then.
            assert max(shorter, default=-1) < min(kept, default=1 << 60), (
                "and of its leaves, those that have idled longest"
            )


class Crowd:
    """Requests of several tenants that come, are computed in part or whole, answered, cancelled, in any order."""

    def __init__(self, tree: PrefixTree, seed: int, longest: int, weights: dict[str, float]) -> None:
        self.tree, self.chance, self.longest = tree, random.Random(seed), longest
        self.weights, self.watch = weights, Watch(tree, weights)
        self.running: list[Sequence] = []
        self.count = 0

    def come(self, who: str) -> None:
        tenant, group = MEMBERS[who]
        self.count += 1
        start = self.chance.choice((0, 1000 * self.count))  # something it may have had before, or all new
        prompt = (*range(start, start + self.chance.randrange(1, self.longest)), self.count)
        one = Sequence(
            Request(
                id=str(self.count), prompt=prompt, max_tokens=self.longest, tenant=tenant, prefix_group=group,
                weight=self.weights[group or tenant], salt=self.chance.choice(("", "", "salt")),
            ),
            self.count, 0.0,
        )  # fmt: skip
        with self.watch:
            admitted = self.tree.admit(one, len(prompt), 0)
        if admitted is not None:
            self.running.append(one)

    def work(self) -> None:
        if not self.running:
            return
        one = self.chance.choice(self.running)
        self.tree.publish(one, self.chance.randrange(one.prompt_tokens + 1))
        if self.tree.available() and self.chance.random() < 0.5:
            with self.watch:
                self.tree.give(one.blocks)

    def go(self) -> None:
        if not self.running:
            return
        one = self.running.pop(self.chance.randrange(len(self.running)))
        if self.chance.random() < 0.2:
            self.tree.release(one)
            return
        made = tuple(range(-1, -1 - len(one.blocks) * BLOCK, -1))
        self.tree.release(one, (*one.prompt, *made)[: len(one.blocks) * BLOCK])

    def move(self, name: str, who: str) -> None:
        if name == "come":
            self.come(who)
        elif name == "work":
            self.work()
        else:
            self.go()
        self.tree.check(self.running)


moves = st.lists(
    st.tuples(st.sampled_from(("come", "come", "work", "go")), st.sampled_from(sorted(MEMBERS))), max_size=120
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), moves, st.sampled_from(((24, 40), (3000, 8000))))
def test_whoever_asks_the_tenant_that_holds_most_for_its_weight_gives_way(
    seed: int, script: list[tuple[str, str]], size: tuple[int, int]
) -> None:
    blocks, longest = size
    tree = PrefixTree(blocks, BLOCK)
    crowd = Crowd(tree, seed, longest, WEIGHTS)
    for name, who in script:
        crowd.move(name, who)
    while crowd.running:
        crowd.move("go", "")
    tree.forget([])
    tree.check([])
    assert (tree.occupancy().free, tree._idle.tenants) == (blocks, []), "nothing is remembered of who is gone"


def test_the_rule_is_put_to_the_test() -> None:
    tree = PrefixTree(24, BLOCK)
    crowd = Crowd(tree, 1, 40, WEIGHTS)
    for _ in range(300):
        crowd.move(crowd.chance.choice(("come", "work", "go")), crowd.chance.choice(sorted(MEMBERS)))
    assert crowd.watch.made_room > 50


def left_idle(tree: PrefixTree, tenant: str, prompts: int, tokens: int, weight: float = 1.0) -> list[tuple[int, ...]]:
    """The tenant asks so many prompts, one after another, and is quiet from then on."""
    asked = []
    for number in range(prompts):
        prompt = tuple(10**6 * (number + 1) + token for token in range(tokens))
        one = Sequence(
            Request(id=f"{tenant}{number}", prompt=prompt, max_tokens=4, tenant=tenant, weight=weight), number, 0.0
        )
        assert tree.admit(one, tokens, 0) is not None
        tree.publish(one, tokens)
        tree.release(one)
        asked.append(prompt)
    return asked


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from(("come", "come", "work", "go")), max_size=200),
    st.integers(1, 12),
    st.sampled_from((0.5, 1.0, 3.0)),
)
def test_whatever_a_flood_does_the_other_keeps_its_share_of_what_running_requests_leave(
    seed: int, flood: list[str], prompts: int, weight: float
) -> None:
    total = 60  # so that a bite is one block
    tree = PrefixTree(total, BLOCK)
    left_idle(tree, "quiet", prompts, 5 * BLOCK, weight)
    had = tree.occupancy().cached
    assert had == 5 * prompts
    crowd = Crowd(tree, seed, 40, WEIGHTS | {"quiet": weight})
    most_running = 0
    for move in flood:
        crowd.move(move, "flood")
        most_running = max(most_running, tree.occupancy().held)
        share = weight / (weight + WEIGHTS["flood"]) * (total - most_running)
        assert holdings(tree).get("quiet", (0, 0))[1] > min(had, share) - 1


def hits(tree: PrefixTree, prompts: list[tuple[int, ...]], tenant: str) -> list[int]:
    """Tokens of each prompt that are found, last asked first looked for."""
    found = []
    for number, prompt in enumerate(prompts):
        one = Sequence(Request(id=f"again{number}", prompt=(*prompt, 1), max_tokens=4, tenant=tenant), number, 0.0)
        cached = tree.admit(one, len(prompt), 0)
        assert cached is not None
        found.append(cached)
        tree.release(one)
    return found


@pytest.mark.parametrize(("fair", "kept"), [(True, 3 * 16), (False, 0)])
def test_a_flood_one_by_one_takes_nothing_unless_all_count_as_one(fair: bool, kept: int) -> None:
    tree = PrefixTree(40, BLOCK, fair=fair)
    prompts = left_idle(tree, "quiet", 3, 20)
    left_idle(tree, "flood", 50, 20)
    assert sum(hits(tree, prompts, "quiet")) == kept


def test_the_weight_that_counts_is_that_of_the_newest_request() -> None:
    tree = PrefixTree(20, BLOCK)
    left_idle(tree, "a", 2, 20, weight=1.0)
    left_idle(tree, "b", 2, 20, weight=1.0)
    left_idle(tree, "a", 1, 8, weight=4.0)  # half of it is found, the other half takes a block
    left_idle(tree, "c", 1, 12)
    held = {leaves.name: (leaves.weight, leaves.blocks) for leaves in tree._idle.tenants}
    assert held == {"a": (4.0, 10), "b": (1.0, 7), "c": (1.0, 3)}, "b alone made room"


def test_with_one_tenant_fair_and_lru_are_the_same_schedule() -> None:
    def steps(evict_idle: str) -> list[object]:
        chance = random.Random(7)
        run = Driver(
            small_replica(blocks=14, token_budget=16, max_seqs=6, evict_idle=evict_idle),
            ScriptedExecutor(blocks=14, block_tokens=BLOCK, vocabulary=11),
        )
        for number in range(80):
            prompt = (1,) * chance.choice((0, 4, 8)) + tuple(
                chance.randrange(4) for _ in range(chance.randrange(1, 12))
            )
            salt = chance.choice(("", "", "salt"))
            run.submit(
                Request(id=str(number), prompt=prompt, max_tokens=chance.randrange(1, 12), tenant="t", salt=salt)
            )
            run.tick()
        run.run(most=5000)
        return list(run.steps)

    assert steps("fair") == steps("lru")


def test_a_name_that_is_no_rule_is_refused() -> None:
    with pytest.raises(InvalidDeployment, match=r"memory\.evict_idle"):
        small_replica(evict_idle="random")
