"""Who is next: each order's promise."""

from __future__ import annotations

import pytest

from penstock.control.order.fair_share import FairShare
from penstock.control.order.priority import Priority
from penstock.control.order.shortest import Shortest
from penstock.control.request import Request
from penstock.control.sequence import Sequence
from penstock.testing import Driver, ScriptedExecutor, small_replica


def sequence(number: int, *, arrival: float = 0.0, prompt: int = 4, tenant: str = "", priority: int = 0) -> Sequence:
    asked = Request(id=str(number), prompt=tuple(range(prompt)), max_tokens=4, tenant=tenant, priority=priority)
    return Sequence(asked, number, arrival)


def drain(order: Priority | Shortest) -> list[int]:
    taken = []
    while order.peek(0) is not None:
        taken.append(order.pop().number)
    return taken


def test_priority_the_lower_number_first_and_ties_by_arrival() -> None:
    order = Priority(ageing_s=30.0)
    for number, level in enumerate((1, 0, 0, -1)):
        order.push(sequence(number, priority=level), 0)
    assert drain(order) == [3, 1, 2, 0]


def test_priority_who_waited_long_enough_overtakes() -> None:
    order = Priority(ageing_s=30.0)
    order.push(sequence(0, arrival=0.0, priority=1), 0)
    order.push(sequence(1, arrival=31.0, priority=0), 0)
    assert drain(order) == [0, 1]


def test_shortest_prompt_first_until_age_outweighs_length() -> None:
    order = Shortest(ageing_s=10.0)
    order.push(sequence(0, arrival=0.0, prompt=1000), 0)
    order.push(sequence(1, arrival=1.0, prompt=10), 0)
    order.push(sequence(2, arrival=11.0, prompt=10), 0)
    assert drain(order) == [1, 0, 2]


def test_a_removed_sequence_is_never_shown_again() -> None:
    order = Shortest(ageing_s=10.0)
    all_of_them = [sequence(number) for number in range(200)]
    for one in all_of_them:
        order.push(one, 0)
    for one in all_of_them[:150]:
        order.remove(one)
    assert drain(order) == list(range(150, 200))


def test_fair_share_two_backlogged_tenants_get_equal_work_whatever_their_request_sizes() -> None:
    run = Driver(
        small_replica(blocks=64, order="fair_share", max_seqs=2, token_budget=16, memory="paged"),
        ScriptedExecutor(blocks=64, block_tokens=4),
        check=False,
    )
    for number in range(60):
        run.submit(Request(id=f"many{number}", prompt=tuple(range(8)), max_tokens=4, tenant="many"))
    for number in range(15):
        run.submit(Request(id=f"large{number}", prompt=tuple(range(32)), max_tokens=16, tenant="large"))
    while run.replica.statistics().finished < 30:
        run.tick()
    order = run.replica._order
    assert isinstance(order, FairShare)
    had = order.counters(run.replica._decode_set.clock)
    assert abs(had["many"] - had["large"]) <= 2 * (32 + 2 * 16)  # VTC's bound: a request or two of the larger kind


def test_fair_share_a_tenant_that_comes_back_has_earned_no_credit_by_idling() -> None:
    order = FairShare()
    busy = [sequence(number, tenant="busy") for number in range(3)]
    for one in busy:
        order.push(one, 0)
    assert order.peek(0) is busy[0]
    order.pop()
    order.charge(busy[0], 10_000)
    order.push(sequence(10, tenant="late"), 0)
    counters = order.counters(0)
    assert counters["late"] == counters["busy"] == 10_002  # a prompt of 10,000, and the token it makes


def test_fair_share_decodes_under_way_count_without_being_touched() -> None:
    order = FairShare()
    one = sequence(0, tenant="t")
    order.push(one, 0)
    order.peek(0)
    order.pop()
    one.join_clock = 5
    order.joined(one, 5)
    assert order.counters(12)["t"] == 2.0 * 7
    order.left(one, 12)
    assert order.counters(100)["t"] == 2.0 * 7


def test_fair_share_the_token_that_a_prefill_makes_counts_too() -> None:
    order = FairShare()
    one = sequence(0, prompt=10, tenant="t")
    order.charge(one, 10)
    assert order.counters(0)["t"] == 12.0


def test_fair_share_a_moment_of_idleness_is_no_credit_either() -> None:
    order = FairShare()
    worked = sequence(0, tenant="worked")
    order.push(worked, 0)
    order.peek(0)
    order.pop()
    order.charge(worked, 1_000_000)
    order.push(sequence(1, tenant="new"), 0)  # nobody waits, nobody decodes
    assert order.counters(0)["new"] == order.counters(0)["worked"]


def test_fair_share_the_victim_is_of_the_tenant_that_has_had_most_by_now() -> None:
    order = FairShare()
    heavy, light = sequence(0, tenant="heavy"), sequence(1, tenant="light")
    for one in (heavy, light):
        order.push(one, 0)
        order.peek(0)
        order.pop()
        order.charge(one, 10)
    heavy.join_clock = 0
    order.joined(heavy, 0)
    assert order.victim([heavy, light], 0) is light  # equal so far: the newer one
    assert order.victim([heavy, light], 10) is heavy


def test_fair_share_tenants_who_no_longer_matter_are_forgotten() -> None:
    order = FairShare()
    for number in range(5000):
        one = sequence(number, tenant=str(number))
        order.push(one, 0)
        assert order.peek(0) is one
        order.pop()
        order.charge(one, 4)
        order.departed(one)
    assert len(order.counters(0)) < 2000


@pytest.mark.parametrize("name", ["arrival", "priority"])
def test_a_swapped_sequence_waits_in_the_same_line_as_everybody(name: str) -> None:
    run = Driver(
        small_replica(blocks=8, order=name, evict="swap", host_blocks=16, memory="paged", token_budget=16, max_seqs=4),
        ScriptedExecutor(blocks=8, block_tokens=4, host_blocks=16),
    )
    for number in range(4):
        run.submit(Request(id=f"r{number}", prompt=(number,) * 6, max_tokens=12))
    while not run.replica.statistics().swapped:
        run.tick()
    run.submit(Request(id="urgent", prompt=(9, 9), max_tokens=1, priority=-1000))
    run.run()
    back = [swap.id for step in run.steps for swap in step.swap_in]
    assert back == sorted(back)  # first out was the newest; first in is the oldest
    first_urgent = next(i for i, step in enumerate(run.steps) if any(chunk.id == "urgent" for chunk in step.chunks))
    first_back = next(i for i, step in enumerate(run.steps) if step.swap_in)
    assert (first_urgent < first_back) == (name == "priority")
