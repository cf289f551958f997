"""Contract 3: what a real run of the real engine did, step by step, follows from arrivals, durations and token counts.

A short version of benchmarks/schedule_identity.py: the model in the box, real time, little memory, shared prefixes,
clients who leave. That a recording which was tampered with does not pass is tested as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from penstock.deployment import Deployment
from penstock.runtime.build import build
from penstock.runtime.feed import Feed
from penstock.runtime.paced import Paced
from penstock.runtime.record import recorder_for
from penstock.runtime.replay import replay
from penstock.runtime.schedule import Done, Plan, Schedule, Submit, read_schedule
from penstock.runtime.service import Service
from penstock.workload.lengths import MEASURED
from penstock.workload.trace import Trace, TraceRequest

SMALL: dict[str, Any] = {
    "model.max_sequence_tokens": 256, "memory.kv_bytes": "1280KiB", "policy.max_seqs": 16, "policy.token_budget": 128,
    "hardware.threads": 1,
}  # fmt: skip
SWAP = {"policy.evict": "swap", "memory.host_bytes": "1MiB"}
FEED = Feed(seed=5, shared=0.6, shared_tokens=32, cancelled=0.1, patience_s=0.05, stop_ids=tuple(range(300, 316)))


def trace(count: int, rate: float) -> Trace:
    """Poisson arrivals with lengths of the Azure conversation trace, outputs three times as long: they fill memory."""
    generator = np.random.default_rng(1)
    times = np.cumsum(generator.exponential(1 / rate, count)).tolist()
    prompts, outputs = (law.draw(count, generator).tolist() for law in MEASURED["azure-conv"])
    rows = (TraceRequest(at, prompt, 3 * output) for at, prompt, output in zip(times, prompts, outputs, strict=True))
    return Trace("drawn", tuple(rows)).fit(256)


def recorded(out: Path, overrides: dict[str, Any], count: int = 80) -> Schedule:
    deployment = Deployment.load(None, {**SMALL, **overrides})
    built = build(deployment, lambda name, seconds, detail: None)
    recorder = recorder_for(
        out, deployment, blocks=built.info.blocks, max_sequence_tokens=built.info.max_sequence_tokens,
        host_blocks=built.host_blocks, now=time.monotonic(),
    )  # fmt: skip
    arrivals = FEED.arrivals(trace(count, 200), built.info.vocab_size)
    for _ in Paced(built, arrivals, observer=recorder).run():
        pass
    recorder.close()
    built.executor.close()
    return read_schedule(out)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"policy.name": "splitfuse"},
        {"policy.name": "orca"},
        {"policy.name": "vllm_prefill_first"},
        {"policy.name": "request_level"},
        {"policy.order": "priority", "policy.ageing_s": 0.2},
        {"policy.order": "shortest", "policy.ageing_s": 0.2},
        {"policy.order": "fair_share"},
        SWAP,
        {"policy.plan_ahead": False},
    ],
    ids=lambda overrides: " ".join(map(str, overrides.values())) or "sarathi",
)
def test_the_twin_plans_the_very_steps_that_the_engine_ran(tmp_path: Path, overrides: dict[str, Any]) -> None:
    schedule = recorded(tmp_path / "run.jsonl.gz", overrides)
    found = replay(schedule)
    assert found.identical, str(found.difference)
    assert found.steps == sum(isinstance(event, Plan) for event in schedule.events) > 40
    assert found.statistics.submitted == 80
    assert found.statistics.finished + found.statistics.cancelled == 80
    assert found.statistics.cancelled > 0
    assert found.statistics.prefix_hit_tokens > 0
    assert found.statistics.preemptions + found.statistics.swaps + found.statistics.stalls > 0


def test_the_worker_process_records_what_its_threads_did(tmp_path: Path) -> None:
    out = tmp_path / "served.jsonl"
    deployment = Deployment.load(None, {**SMALL, "server.record": str(out)})

    async def serve() -> None:
        service = await Service.start(deployment)
        start = time.monotonic()

        async def client(arrival: Any) -> None:
            await asyncio.sleep(max(0.0, start + arrival.at_s - time.monotonic()))
            patience = None if arrival.cancel_s is None else max(0.01, start + arrival.cancel_s - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience), contextlib.aclosing(service.generate(arrival.request)) as news:
                    async for _ in news:
                        pass

        await asyncio.gather(*(client(one) for one in FEED.arrivals(trace(80, 200), service.info.vocab_size)))
        await service.close()

    asyncio.run(serve())
    schedule = read_schedule(out)
    found = replay(schedule)
    assert not schedule.truncated
    assert found.identical, str(found.difference)
    assert found.statistics.submitted > 70
    assert found.steps > 40


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    return recorded(tmp_path_factory.mktemp("honest") / "run.jsonl", {})


def _copy(schedule: Schedule) -> Schedule:
    return Schedule(schedule.header, [msgspec.structs.replace(event) for event in schedule.events])


def _other_block(schedule: Schedule) -> tuple[int, str]:
    plan = next(event for event in schedule.events[200:] if isinstance(event, Plan) and event.admit)
    (request, blocks, cached), *rest = plan.admit
    plan.admit = [(request, (*blocks[:-1], blocks[-1] ^ 1), cached), *rest]
    return plan.n, "admit"


def _other_chunk(schedule: Schedule) -> tuple[int, str]:
    plan = next(event for event in schedule.events[200:] if isinstance(event, Plan) and event.chunks)
    (request, start, tokens, last), *rest = plan.chunks
    plan.chunks = [(request, start, tokens + 1, last), *rest]
    return plan.n, "chunks"


def _a_token_less(schedule: Schedule) -> tuple[int, str]:
    done = next(event for event in schedule.events[200:] if isinstance(event, Done) and event.finished)
    end = done.finished[0]
    done.finished = [msgspec.structs.replace(end, output_tokens=end.output_tokens - 1), *done.finished[1:]]
    return done.n - 1, "finished"


def _a_late_arrival(schedule: Schedule) -> tuple[int, str]:
    """The first request comes only after its own first step."""
    late = schedule.events.pop(0)
    plan = next(event for event in schedule.events if isinstance(event, Plan))
    at = 1 + next(i for i, event in enumerate(schedule.events) if isinstance(event, Done))
    assert isinstance(late, Submit)
    late.t = schedule.events[at - 1].t
    schedule.events.insert(at, late)
    return plan.n, "admit"


@pytest.mark.parametrize("tamper", [_other_block, _other_chunk, _a_token_less, _a_late_arrival])
def test_a_recording_that_was_tampered_with_is_caught(
    honest: Schedule, tamper: Callable[[Schedule], tuple[int, str]]
) -> None:
    forged = _copy(honest)
    step, field = tamper(forged)
    found = replay(forged)
    assert found.difference is not None
    assert found.steps < sum(isinstance(event, Plan) for event in forged.events)
    assert (found.difference.step, found.difference.field) == (step, field)
    assert str(found.difference.step) in str(found.difference)
    assert found.difference.around
