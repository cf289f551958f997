"""Ranks in lockstep: a scheduler each, one clock. Coasted or not, the same bits; nothing lost, nothing made twice."""

from __future__ import annotations

import json
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.control.cluster.router import LeastWaiting, build_router
from penstock.control.policy import build_replica
from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.report.simulation import COMPLETED, lane_name
from penstock.report.simulation_html import html_report
from penstock.report.summary import summary
from penstock.report.timeline import TimelineWriter
from penstock.runtime.collect import Collector
from penstock.runtime.instance import Instance
from penstock.runtime.modelled import Modelled, model
from penstock.runtime.simulate import simulate
from penstock.runtime.virtual import Cluster, Limits
from penstock.runtime.workload_of import source_of, stated_bound
from penstock.twin.load import StepLoad
from penstock.twin.twin import Twin
from tests.runtime.test_instance import Priced, Seen


def a_deployment(ranks: int, **given: Any) -> Deployment:
    workload = {
        "requests": 60,
        "prompt_tokens": "uniform:20:900",
        "output_tokens": "uniform:1:40",
        "rate": 20,
        "seed": 3,
    }
    layout = {
        "attention_dp": ranks,
        "expert_parallel": ranks,
        "attention_dp_router": given.pop("router", "least_waiting"),
    }
    return Deployment.parse({
        "model": {"path": "qwen3-30b-a3b"},
        "hardware": {"name": "h100-sxm"},
        "twin": {"price": "roofline"},
        "layout": layout,
        "memory": {"kind": "prefix_tree"} | given.pop("memory", {}),
        "policy": {"name": "sarathi", "token_budget": 512, "max_seqs": 16} | given.pop("policy", {}),
        "cluster": {"replicas": given.pop("replicas", 1)},
        "workload": workload | given,
    })  # fmt: skip


@pytest.fixture(scope="module", params=[2, 3])
def modelled(request: pytest.FixtureRequest) -> Modelled:
    return model(a_deployment(request.param))


Span = tuple[int, float, float, int, int, int]


def run(deployment: Deployment, *, coast: bool = True) -> tuple[Cluster, Collector, list[Span]]:
    """Everything that a report is made of, and the steps."""
    modelled, spans = model(deployment), []
    layout, count = modelled.layout, deployment.cluster.replicas
    collector = Collector(count * layout.attention_dp, lambda *span: spans.append(span))
    router = build_router(deployment.cluster.router)
    cluster = Cluster(router, source_of(deployment), collector, max_tokens=stated_bound(deployment))
    cluster.instances += [modelled.driven(number, cluster, coast=coast) for number in range(count)]
    assert cluster.run() == "done"
    return cluster, collector, spans


@settings(max_examples=12, deadline=None)
@given(
    ranks=st.integers(2, 4), router=st.sampled_from(("round_robin", "least_loaded", "least_waiting")),
    plan_ahead=st.booleans(), rate=st.sampled_from((2.0, 30.0, 300.0)), seed=st.integers(0, 999),
    blocks=st.sampled_from((70, 2000)),
)  # fmt: skip
def test_ranks_step_together_and_nothing_is_lost(
    ranks: int, router: str, plan_ahead: bool, rate: float, seed: int, blocks: int
) -> None:
    deployment = a_deployment(
        ranks, router=router, rate=rate, seed=seed, replicas=2, requests=40,
        memory={"kv_bytes": blocks * ranks * 16 * 98304}, policy={"plan_ahead": plan_ahead},
    )  # fmt: skip
    cluster, collector, spans = run(deployment)
    plain, plain_collector, plain_spans = run(deployment, coast=False)

    # Coasting changes nothing, bit for bit.
    assert sorted(spans) == sorted(plain_spans)
    for name in ("arrival_s", "first_s", "finish_s", "replica", "outcome", "output_tokens", "preemptions"):
        assert getattr(collector, name).tobytes() == getattr(plain_collector, name).tobytes(), name
    kept = [lane.replica.statistics() for lane in cluster.lanes()]
    assert kept == [lane.replica.statistics() for lane in plain.lanes()]

    # Conservation: every request ended once, on the rank that it was sent to, and no rank keeps a block.
    assert collector.ended_count == 40
    assert sum(one.submitted for one in kept) == sum(one.finished for one in kept) == 40
    assert all(one.held_blocks == one.running == one.waiting == 0 for one in kept)
    assert all(lane.replica.live == lane.outstanding == 0 for lane in cluster.lanes())
    prompts = sum(one.prefill_tokens + one.prefix_hit_tokens for one in kept)
    assert prompts >= sum(collector.prompt_tokens[:40])

    # Two steps of one replica's ranks begin and end together or do not overlap.
    for replica in range(2):
        own = [span for span in spans if span[0] // ranks == replica]
        times = sorted({(begin, end) for _, begin, end, *_ in own})
        assert all(after[0] >= before[1] for before, after in pairwise(times))
        assert len({(lane, begin) for lane, begin, *_ in own}) == len(own)


def test_a_rank_alone_waits_for_the_longest(modelled: Modelled) -> None:
    price = modelled.price
    short, long, rest = StepLoad(4, 4000, 0, (), 4), StepLoad(4, 4000, 0, ((0, 512),), 5), StepLoad()
    assert price.lockstep([short, long, rest][: price.graph.layout.attention_dp]) == price.lockstep([long, short])
    assert price.lockstep([short, long]) > price.lockstep([short, short]) >= price.lockstep([short, rest]) > 0


def test_a_joint_step_is_explained_by_the_price_it_was_given(modelled: Modelled) -> None:
    price = modelled.price
    for loads in (
        [StepLoad(24, 24 * 800, 0, (), 24), StepLoad(3, 9000, 0, (), 3)],
        [StepLoad(24, 24 * 800, 0, ((0, 300), (1000, 64)), 25), StepLoad(24, 24 * 700, 0, (), 24)],
        [StepLoad(), StepLoad(1, 100, 0, (), 1)],
        [StepLoad(2, 500, 0, (), 2, swap_in_blocks=3), StepLoad()],
    ):
        assert price.explain_lockstep(loads).seconds == pytest.approx(price.lockstep(loads), rel=0.01)


def test_decode_stretches_are_priced_as_their_steps_one_by_one(modelled: Modelled) -> None:
    price = modelled.price
    contexts, now, ends = [24 * 800, 9000], 1.0, []
    for _ in range(5):
        now += price.lockstep([StepLoad(24, contexts[0], 0, (), 24), StepLoad(3, contexts[1], 0, (), 3), StepLoad()])
        ends.append(now)
        contexts = [contexts[0] + 24, contexts[1] + 3]
    loads = [StepLoad(24, 24 * 800, 0, (), 24), StepLoad(3, 9000, 0, (), 3), StepLoad()]
    assert price.lockstep_ends(loads, 1.0, 5, 1e9) == ends
    assert price.lockstep_ends([StepLoad(24, 24 * 800, 0, (), 24), StepLoad(3, 9000, 0, (), 3), StepLoad()], 1.0, 5,
                               ends[1]) == ends[:2]  # fmt: skip


def test_each_rank_has_kv_and_budget_of_its_own() -> None:
    one, four = (model(a_deployment(ranks, memory={"kv_bytes": 2**32})) for ranks in (1, 4))
    assert four.blocks == one.blocks // 4
    assert four.max_sequence_tokens == four.blocks * 16 < one.max_sequence_tokens
    _, _, spans = run(a_deployment(2, rate=1000))
    together: dict[float, int] = {}
    for _, begin, _, decoding, _, prompt in spans:
        assert decoding + prompt <= 512
        together[begin] = together.get(begin, 0) + decoding + prompt
    assert max(together.values()) > 512


def test_the_result_names_ranks_and_counts_what_they_did_once() -> None:
    deployment, file = a_deployment(2, replicas=2, requests=80), BytesIO()
    modelled = model(deployment)
    with TimelineWriter(file, {lane: lane_name(lane, 2) for lane in range(4)}) as writer:
        result = simulate(deployment, modelled=modelled, on_step=writer.step)
        writer.add_result(result)
    numbers = summary(result)
    assert result.ranks == 2
    assert len(result.series) == len(result.busy_s) == len(numbers["requests_per_rank"]) == 4
    per_rank = numbers["requests_per_rank"]
    assert numbers["requests_per_replica"] == [sum(per_rank[:2]), sum(per_rank[2:])]
    assert (result.requests.outcome == COMPLETED).all()
    # Operators' seconds are the replicas' and not the ranks': no more than the replicas were busy.
    assert 0 < sum(result.operator_s.values()) <= sum(result.busy_s) / 2 * 1.001
    assert result.energy_j is not None
    peak = modelled.device.peak_watts
    assert peak is not None
    assert result.energy_j <= 4 * peak.value * result.end_s
    names = {event["args"]["name"] for event in json.loads(file.getvalue())["traceEvents"] if event["ph"] == "M"
             and event["name"] == "process_name"}  # fmt: skip
    assert names == {"replica 0, rank 0", "replica 0, rank 1", "replica 1, rank 0", "replica 1, rank 1"}
    assert "replica 1, rank 0" in html_report(result, numbers)


@pytest.mark.parametrize("limits", [Limits(events=25), Limits(virtual_s=0.7)])
def test_a_run_that_meets_a_limit_is_a_part_of_the_whole(limits: Limits) -> None:
    deployment = a_deployment(2, replicas=2)
    whole, part, again = simulate(deployment), simulate(deployment, limits=limits), simulate(deployment, limits=limits)
    assert part.interrupted
    ended = ~np.isnan(part.requests.finish_s)
    assert 0 < len(part.requests) < len(whole.requests) or not ended.all()
    count = len(part.requests)
    assert (part.requests.finish_s[ended] == whole.requests.finish_s[:count][ended]).all()
    assert part.requests.output_tokens.tobytes() == again.requests.output_tokens.tobytes()


def a_place(waiting: int, running: int) -> Instance:
    """An instance with so many requests that run, and so many that came after its step began."""
    replica = build_replica(blocks=40, block_tokens=4, max_sequence_tokens=80, token_budget=64, max_seqs=9)
    place = Instance(0, replica, Twin(Priced()), Seen(), plan_ahead=False)
    for index in range(running + waiting):
        if index == running:
            place.start(0.0)
        place.submit(Request(id=f"r{index}", prompt=range(4), max_tokens=9), 0.0, output_tokens=9, index=index)
    if not waiting:
        place.start(0.0)
    assert (place.waiting(), place.outstanding) == (waiting, waiting + running)
    return place


def test_who_waits_counts_four_times_and_the_first_of_equals_is_taken() -> None:
    router, request = LeastWaiting(), Request(id="new", prompt=range(4), max_tokens=2)
    one, three, four, five = a_place(1, 0), a_place(0, 3), a_place(0, 4), a_place(0, 5)
    assert router.choose(request, [one, three, a_place(0, 3)]) == 1
    assert router.choose(request, [one, four, five]) == 0
