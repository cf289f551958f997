"""Replicas behind a router at virtual time: the same as the plainest loop there is, in any process, and never stuck."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.compiled import SWITCH
from penstock.control.cluster.router import build_router
from penstock.control.policy import build_replica
from penstock.control.request import Request
from penstock.control.statistics import Statistics
from penstock.errors import InvalidRequest
from penstock.runtime.collect import Collector
from penstock.runtime.instance import IDLE, Instance
from penstock.runtime.limits import Limits, Stuck
from penstock.runtime.token_ids import token_ids
from penstock.runtime.virtual import Cluster
from penstock.twin.twin import Twin
from penstock.workload.build import build_source
from penstock.workload.settings import ArrivalSettings, SharedPrefixSettings, WorkloadSettings
from penstock.workload.source import Source, TimedRequest
from tests.runtime.test_instance import Priced

ROUTERS = ("round_robin", "least_loaded", "least_waiting", "prefix_aware")


def a_source(seed: int, *, law: str = "poisson", rate: float = 1.0, requests: int = 40) -> Source:
    closed, timed = law == "closed", law == "poisson"
    return build_source(
        WorkloadSettings(
            arrivals=ArrivalSettings(
                law=law, rate=rate if timed else None, concurrency=5 if closed else None,  # type: ignore[arg-type]
                think_s="exponential:1s" if closed else None,
            ),
            prompt_tokens="uniform:2:20", output_tokens="uniform:1:14", requests=requests, seed=seed,
            shared_prefix=SharedPrefixSettings(tokens=16, share=0.5, groups=2), cancel_fraction=0.1,
        )
    )  # fmt: skip


def a_cluster(
    source: Source, *, replicas: int = 2, router: str = "round_robin", coast: bool = True, plan_ahead: bool = False,
    limits: Limits | None = None, compose: str | None = None, blocks: int = 40,
    max_tokens: Callable[[TimedRequest], int] | None = None,
) -> tuple[Cluster, Collector]:  # fmt: skip
    collector = Collector(replicas)
    cluster = Cluster(build_router(router), source, collector, max_tokens=max_tokens, limits=limits)
    for number in range(replicas):
        replica = build_replica(
            blocks=blocks, block_tokens=4, max_sequence_tokens=80, token_budget=24, max_seqs=6, compose=compose
        )
        twin = Twin(Priced(), squares=True)
        cluster.instances.append(Instance(number, replica, twin, cluster, plan_ahead=plan_ahead, coast=coast))
    return cluster, collector


def what_came(cluster: Cluster, collector: Collector) -> tuple[list[bytes], list[Statistics]]:
    columns = (
        collector.arrival_s, collector.first_s, collector.finish_s, collector.output_tokens, collector.cached_tokens,
        collector.preemptions, collector.replica, collector.outcome,
    )  # fmt: skip
    for instance in cluster.instances:
        instance.replica.check()
    return [column.tobytes() for column in columns], [one.replica.statistics() for one in cluster.instances]


def plainest(cluster: Cluster, source: Source, router: str) -> None:
    """One event after the other, found by looking at everything; requests first, then replicas by number."""
    rule = build_router(router)
    waiting = list(source.initial())
    collector, instances = cluster._collector, cluster.instances
    # Ends bring about requests as in the cluster, which is told of ends; they are taken out of its own heap here.
    while True:
        waiting += [entry[2] for entry in cluster._later]
        cluster._later.clear()
        waiting.sort(key=lambda request: request.arrival_s)
        wakes = [instance.wake for instance in instances]
        now = min([*wakes, *(request.arrival_s for request in waiting)])
        if now == IDLE:
            return
        coming = [request for request in waiting if request.arrival_s == now]
        if coming:
            waiting = waiting[len(coming) :]
            touched = []
            for timed in coming:
                prompt = token_ids(timed, source.block_tokens)
                request = Request(id=str(timed.index), prompt=prompt, max_tokens=timed.output_tokens)
                number = rule.choose(request, instances) if len(instances) > 1 else 0
                collector.arrived(timed.index, now, timed.prompt_tokens, timed.output_tokens, number)
                cluster._live[timed.index] = timed
                made = timed.cancel_tokens if 0 < timed.cancel_tokens < timed.output_tokens else timed.output_tokens
                try:
                    instances[number].submit(request, now, output_tokens=made, index=timed.index)
                except InvalidRequest as error:
                    del cluster._live[timed.index]
                    collector.refused(timed.index, now, str(error))
                else:
                    touched.append(number)
            for number in dict.fromkeys(touched):
                instances[number].start(now)
        else:
            instances[wakes.index(now)].fire()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), replicas=st.integers(1, 5), router=st.sampled_from(ROUTERS), plan_ahead=st.booleans(),
    rate=st.sampled_from((0.3, 2.0, 8.0)), law=st.sampled_from(("poisson", "batch")),
)  # fmt: skip
def test_the_clock_is_the_plainest_loop(
    seed: int, replicas: int, router: str, plan_ahead: bool, rate: float, law: str
) -> None:
    source = a_source(seed, rate=rate, law=law)
    cluster, collector = a_cluster(source, replicas=replicas, router=router, plan_ahead=plan_ahead)
    assert cluster.run() == "done"
    plain, plain_collector = a_cluster(source, replicas=replicas, router=router, plan_ahead=plan_ahead, coast=False)
    plainest(plain, source, router)
    assert what_came(cluster, collector) == what_came(plain, plain_collector)
    assert collector.steps == plain_collector.steps
    assert collector.ended_count == 40


@pytest.mark.parametrize("router", ROUTERS)
def test_a_closed_loop_needs_no_coasting_either(router: str) -> None:
    both = []
    for coast in (True, False):
        cluster, collector = a_cluster(a_source(3, law="closed"), replicas=3, router=router, coast=coast)
        assert cluster.run() == "done"
        both.append((*what_came(cluster, collector), collector.steps))
    assert both[0] == both[1]


def digest() -> str:
    cluster, collector = a_cluster(a_source(11), replicas=3, router="prefix_aware", plan_ahead=True)
    cluster.run()
    columns, statistics = what_came(cluster, collector)
    return hashlib.sha256(b"".join(columns) + repr(statistics).encode()).hexdigest()


@pytest.mark.parametrize("switch", ["0", "1"])
def test_same_seed_same_bits_in_another_process_compiled_or_not(switch: str) -> None:
    code = "import json; from tests.runtime.test_virtual import digest; print(json.dumps(digest()))"
    environment = os.environ | {"PYTHONHASHSEED": "77", SWITCH: switch}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == digest()


def test_a_policy_that_never_runs_a_prompt_is_named_as_stuck() -> None:
    cluster, _ = a_cluster(a_source(0), compose="decode_only")
    with pytest.raises(Stuck, match=r"40 requests are left .* no replica runs them"):
        cluster.run()


@pytest.mark.parametrize(
    ("limits", "why"),
    [(Limits(events=10), "events"), (Limits(virtual_s=5.0), "virtual time"), (Limits(wall_s=0.0), "wall time")],
)
def test_limits_end_a_run_and_say_which(limits: Limits, why: str) -> None:
    cluster, collector = a_cluster(a_source(0, requests=6000), limits=limits, coast=False)
    assert cluster.run() == why
    assert collector.ended_count < 6000
    cluster.settle()


def test_ctrl_c_leaves_a_partial_result() -> None:
    def impatient(request: TimedRequest) -> int:
        if request.index == 20:
            raise KeyboardInterrupt
        return request.output_tokens

    cluster, collector = a_cluster(a_source(0), max_tokens=impatient)
    assert cluster.run() == "interrupted"
    assert 0 < collector.ended_count <= 20


def test_what_cannot_ever_fit_is_refused_and_the_rest_runs() -> None:
    cluster, collector = a_cluster(
        a_source(0), blocks=9, max_tokens=lambda request: 500 if request.index % 4 == 0 else request.output_tokens
    )
    assert cluster.run() == "done"
    assert collector.ended_count == 40
    assert sum(collector.reasons.values()) >= 10
