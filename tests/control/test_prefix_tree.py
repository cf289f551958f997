"""The prefix tree finds exactly what was computed before, and forgets the least recently used first."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Tokens

import pytest

from penstock.control.memory.prefix_tree import PrefixTree
from penstock.control.request import Request
from penstock.control.sequence import Sequence
from penstock.control.step import Finished
from penstock.testing import Driver, ScriptedExecutor, small_replica

BLOCK = 4


def common_blocks(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return same // BLOCK


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("seed", range(5))
def test_with_room_for_all_a_hit_is_the_longest_block_prefix_anybody_computed(
    seed: int, kind: Callable[[tuple[int, ...]], Tokens[int]]
) -> None:
    chance = random.Random(seed)
    driver = Driver(small_replica(blocks=2000), ScriptedExecutor(blocks=2000, block_tokens=BLOCK, vocabulary=3))
    computed: list[tuple[int, ...]] = []
    for number in range(60):
        stem = chance.choice(computed)[: chance.randrange(30)] if computed and chance.random() < 0.7 else ()
        prompt = stem + tuple(chance.randrange(3) for _ in range(chance.randrange(1, 20)))
        driver.submit(Request(id=str(number), prompt=kind(prompt), max_tokens=chance.randrange(1, 12)))
        driver.run()
        end = driver.ended[str(number)]
        assert isinstance(end, Finished)
        # At least one token is always computed: it is what gives the logits.
        usable = prompt[:-1]
        assert end.cached_tokens == BLOCK * max((common_blocks(usable, other) for other in computed), default=0)
        computed.append((prompt + tuple(driver.outputs[str(number)]))[:-1])


def sequence(number: int, prompt: tuple[int, ...]) -> Sequence:
    return Sequence(Request(id=str(number), prompt=prompt, max_tokens=4), number, 0.0)


def keep(tree: PrefixTree, number: int, prompt: tuple[int, ...]) -> None:
    """A request of `prompt` comes, is computed, and goes."""
    one = sequence(number, prompt)
    assert tree.admit(one, len(prompt), 0) is not None
    tree.publish(one, len(prompt))
    tree.release(one)
    tree.check([])


def hit(tree: PrefixTree, prompt: tuple[int, ...]) -> int:
    one = sequence(999, prompt)
    cached = tree.admit(one, len(prompt), 0)
    assert cached is not None
    tree.release(one)
    tree.check([])
    return cached


def test_the_least_recently_used_prefix_goes_first_and_from_its_end() -> None:
    tree = PrefixTree(blocks=9, block_tokens=BLOCK)
    old, new = (1,) * 12, (2,) * 12
    keep(tree, 0, old)
    keep(tree, 1, new)
    assert hit(tree, (*old, 9)) == 12  # using it makes it the newer one
    keep(tree, 2, (3,) * 16)  # four blocks: three are free, one must go
    assert hit(tree, (*old, 9)) == 12  # needs a block for its own token: another one goes
    assert hit(tree, (*new, 9)) == 4


def test_a_prefix_in_use_is_never_taken() -> None:
    tree = PrefixTree(blocks=6, block_tokens=BLOCK)
    keep(tree, 0, (1,) * 12)
    user = sequence(1, (*(1,) * 12, 2))
    assert tree.admit(user, 13, 0) == 12
    assert tree.admit(sequence(2, (5,) * 12), 12, 0) is None
    assert tree.available() == 2
    tree.check([user])


def test_a_prompt_that_leaves_a_run_in_its_middle_splits_it_for_both() -> None:
    tree = PrefixTree(blocks=16, block_tokens=BLOCK)
    keep(tree, 0, (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3))
    keep(tree, 1, (1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4))
    assert tree.occupancy().cached == 4
    assert hit(tree, (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 0)) == 12
    assert hit(tree, (1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 0)) == 12


def test_two_that_computed_the_same_at_once_leave_one_copy() -> None:
    tree = PrefixTree(blocks=16, block_tokens=BLOCK)
    first, second = sequence(0, (7,) * 8), sequence(1, (7,) * 8)
    for one in (first, second):
        assert tree.admit(one, 8, 0) == 0
    tree.publish(first, 8)
    tree.publish(second, 8)
    tree.check([first, second])
    tree.release(first)
    tree.release(second, (7,) * 8)
    tree.check([])
    assert tree.occupancy().cached == 2


def test_a_long_shared_stem_costs_its_path_not_its_blocks() -> None:
    tree = PrefixTree(blocks=4000, block_tokens=BLOCK)
    stem = tuple(range(8000))
    keep(tree, 0, stem)
    for number in range(1, 50):
        keep(tree, number, (*stem, *(number,) * 8))
    assert sum(1 for _ in tree._nodes()) <= 2 + 50


def test_a_range_and_a_tuple_of_the_same_ids_are_the_same_prompt() -> None:
    tree = PrefixTree(blocks=16, block_tokens=BLOCK)
    keep(tree, 0, tuple(range(12)))
    one = Sequence(Request(id="1", prompt=range(13), max_tokens=4), 1, 0.0)
    assert tree.admit(one, 13, 0) == 12


def test_a_prompt_published_chunk_by_chunk_is_one_run() -> None:
    tree = PrefixTree(blocks=400, block_tokens=BLOCK)
    one = sequence(0, tuple(range(1200)))
    tree.admit(one, 1200, 0)
    for computed in range(0, 1201, 7):
        tree.publish(one, computed)
        tree.check([one])
    tree.release(one, tuple(range(1200)))
    tree.check([])
    assert sum(1 for _ in tree._nodes()) == 2  # the root and the run


def test_a_node_holds_its_own_run_of_tokens_and_no_more() -> None:
    tree = PrefixTree(blocks=2000, block_tokens=BLOCK)
    stem = tuple(range(4000))
    for number in range(20):
        keep(tree, number, (*stem, *(number,) * 8))
    assert sum(len(node.tokens) for node in tree._nodes()) == 4000 + 20 * 8


def test_many_hits_on_one_prefix_leave_no_trail() -> None:
    tree = PrefixTree(blocks=16, block_tokens=BLOCK)
    for number in range(5000):
        keep(tree, number, (1,) * 12)
    assert sum(len(leaves) for leaves in tree._idle.tenants) <= 72


def test_ids_of_any_size_are_told_apart() -> None:
    tree = PrefixTree(16, 4)
    big = tuple(range(1 << 70, (1 << 70) + 8))
    first = Sequence(Request(id="a", prompt=big, max_tokens=1), 1, 0.0)
    assert tree.admit(first, 8, 0) == 0
    tree.publish(first, 8)
    again = Sequence(Request(id="b", prompt=(*big[:4], 1, 2), max_tokens=1), 2, 0.0)
    assert tree.admit(again, 6, 0) == 4
    other = Sequence(Request(id="c", prompt=range(8), max_tokens=1), 3, 0.0)
    assert tree.admit(other, 8, 0) == 0
    tree.check([first, again, other])


def test_what_was_admitted_before_a_reset_and_published_after_it_is_not_found() -> None:
    tree = PrefixTree(64, 4)
    prompt = tuple(100 + 7 * number for number in range(40))
    early = Sequence(Request(id="a", prompt=prompt, max_tokens=1), 1, 0.0)
    assert tree.admit(early, 40, 0) == 0
    tree.forget([early])
    tree.publish(early, 40)
    late = Sequence(Request(id="b", prompt=prompt, max_tokens=1), 2, 0.0)
    assert tree.admit(late, 40, 0) == 0
    tree.check([early, late])
    tree.release(early, prompt)
    again = Sequence(Request(id="c", prompt=prompt, max_tokens=1), 3, 0.0)
    assert tree.admit(again, 20, 0) == 0
    tree.check([late, again])
