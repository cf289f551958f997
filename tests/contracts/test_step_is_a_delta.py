"""Contract 2: a step names what changes, and planning one costs O(changes) and not O(batch).

Counted, not timed: every Python and C call that `plan` and `commit` make. A sequence that merely decodes causes none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from penstock.compiled import in_use
from penstock.control.cluster.router import build_router
from penstock.control.compose.fill import Compose, Fill, View
from penstock.control.evict.recompute import Recompute
from penstock.control.memory.paged import Paged
from penstock.control.order.arrival import Arrival
from penstock.control.policy import COMPOSES
from penstock.control.replica import Replica
from penstock.control.request import Request
from penstock.control.step import Step, StepResult
from penstock.runtime.collect import Collector
from penstock.runtime.instance import Instance
from penstock.runtime.virtual import Cluster
from penstock.testing import small_replica
from penstock.twin.twin import Twin
from penstock.workload.build import build_source
from penstock.workload.settings import ArrivalSettings, WorkloadSettings
from tests.runtime.test_instance import Priced

pytestmark = pytest.mark.skipif(in_use(), reason="calls inside compiled code cannot be counted")
BLOCK = 16


def decoding_replica(batch: int, policy: str, memory: str) -> Replica:
    """`batch` sequences in mid-decode, none of them near a block's end or its last token for the next few steps."""
    replica = small_replica(
        blocks=batch * 8, block_tokens=BLOCK, policy=policy, memory=memory, max_seqs=batch, token_budget=batch * 8,
        max_sequence_tokens=128,
    )  # fmt: skip
    for number in range(batch):
        replica.submit(Request(id=str(number), prompt=(number, 2, 3), max_tokens=100), 0.0)
    while replica.statistics().decoding < batch or replica.statistics().prefilling:
        step_once(replica)
    for _ in range(3):
        step_once(replica)
    return replica


def step_once(replica: Replica) -> Step:
    step = replica.plan(0.0)
    assert step is not None
    replica.commit(step, StepResult(step.number), 0.0)
    return step


def calls(work: Callable[[], Step]) -> tuple[int, Step]:
    """How many calls `work` makes, and what it returns."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        step = work()
    finally:
        sys.setprofile(before)
    return count, step


@pytest.mark.parametrize("memory", ["paged", "prefix_tree", "reserved"])
@pytest.mark.parametrize("policy", ["sarathi", "splitfuse", "orca", "vllm_prefill_first", "request_level"])
def test_a_step_of_decodes_makes_as_many_calls_for_400_sequences_as_for_4(policy: str, memory: str) -> None:
    counts = {}
    for batch in (4, 400):
        replica = decoding_replica(batch, policy, memory)
        counts[batch], step = calls(lambda replica=replica: step_once(replica))  # type: ignore[misc]
        assert step.decoding == batch
        assert [step.grow, step.chunks, step.join, step.pause, step.admit] == [[]] * 5
    assert counts[4] == counts[400]


class EveryThird(Compose):
    """Prompts are computed in one step of three, however many wait: its shapes do not follow from the counts."""

    every_step = True

    def __init__(self) -> None:
        self.asked = 0

    def fills(self, view: View) -> tuple[Fill, ...]:
        self.asked += 1
        budget = 64 if view.decoding == 0 or self.asked % 3 == 0 else 0
        return (Fill(decode=True, budget=budget), Fill(decode=True, budget=64))


def test_a_rule_that_must_be_asked_before_every_step_says_so_and_is_asked() -> None:
    assert [name for name, make in COMPOSES.items() if make(64).every_step] == []
    asked, ends = {}, {}
    for coast in (True, False):
        rule = EveryThird()
        collector = Collector(1)
        settings = WorkloadSettings(
            arrivals=ArrivalSettings(rate=2.0), prompt_tokens="20", output_tokens="40", requests=30
        )
        cluster = Cluster(
            build_router("round_robin"), build_source(settings), collector, max_tokens=lambda one: one.output_tokens
        )
        replica = Replica(
            order=Arrival(), compose=rule, evict=Recompute(), memory=Paged(400, 4), max_seqs=6, watermark=0.0
        )
        cluster.instances.append(Instance(0, replica, Twin(Priced()), cluster, plan_ahead=False, coast=coast))
        cluster.run()
        asked[coast], ends[coast] = rule.asked, list(collector.finish_s[:30])
    assert asked[True] == asked[False] > 100
    assert ends[True] == ends[False]


def test_where_blocks_fill_up_a_step_pays_one_call_at_most_for_each_new_block() -> None:
    counts, grown = {}, {}
    for batch in (4, 400):
        replica = decoding_replica(batch, "sarathi", "paged")
        for _ in range(2 * BLOCK):
            made, step = calls(lambda replica=replica: step_once(replica))  # type: ignore[misc]
            if step.grow:
                counts[batch], grown[batch] = made, len(step.grow)
                break
    assert grown == {4: 4, 400: 400}
    assert counts[400] - counts[4] <= 400 - 4


@pytest.mark.parametrize("waiting", [10, 2000])
def test_those_who_wait_cost_nothing_while_nobody_can_enter(waiting: int) -> None:
    replica = decoding_replica(8, "sarathi", "prefix_tree")
    for number in range(waiting):
        replica.submit(Request(id=f"w{number}", prompt=(9,) * 20, max_tokens=40), 0.0)
    step_once(replica)
    made, step = calls(lambda: step_once(replica))
    assert not step.admit
    assert made < 80
