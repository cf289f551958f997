"""Schedule files: what is written comes back, replays to the same steps, survives being cut off, and tells no text."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.control.request import Request, Sampling
from penstock.deployment import Deployment
from penstock.errors import BadInput, InvalidRequest
from penstock.runtime.build import replica_for
from penstock.runtime.local import Loop
from penstock.runtime.record import Recorder, free_name, recorder_for
from penstock.runtime.replay import replay
from penstock.runtime.schedule import Cancel, Done, Plan, Submit, read_schedule
from penstock.testing import ScriptedExecutor

BLOCKS, SIZE, VOCABULARY = 16, 4, 50


def deployment(**overrides: Any) -> Deployment:
    small = {"memory.block_tokens": SIZE, "policy.max_seqs": 8, "policy.token_budget": 16}
    return Deployment.load(None, {**small, **{key.replace("__", "."): value for key, value in overrides.items()}})


def recorder(out: Path, plan: Deployment, host_blocks: int = 0) -> Recorder:
    return recorder_for(
        out, plan, blocks=BLOCKS, max_sequence_tokens=BLOCKS * SIZE, host_blocks=host_blocks, now=1000.0
    )


def play(out: Path, plan: Deployment, script: list[tuple[str, int]], *, fails: tuple[str, ...] = ()) -> None:
    """A scripted engine under a loop with a clock that moves with each look: submits, cancels and turns as told."""
    host_blocks = 8 if plan.policy.evict == "swap" else 0
    executor = ScriptedExecutor(
        blocks=BLOCKS, block_tokens=SIZE, host_blocks=host_blocks, vocabulary=VOCABULARY, fails=fails
    )
    ticks = itertools.count(1_000_000_000_000, 997)
    replica = replica_for(plan, blocks=BLOCKS, max_sequence_tokens=BLOCKS * SIZE, host_blocks=host_blocks)
    watch = recorder(out, plan, host_blocks)
    loop = Loop(
        replica, executor, clock=lambda: next(ticks) / 1e9, plan_ahead=plan.policy.plan_ahead, observer=watch
    )  # fmt: skip
    numbers = itertools.count()
    for what, value in script:
        if what == "submit":
            number = next(numbers)
            # Few distinct prompts, so that prefixes are shared; every third may stop early.
            prompt = tuple((value % 3 + position) % VOCABULARY for position in range(1 + value))
            stops = (7, 8, 9) if number % 3 == 0 else ()
            tenant = value % 4
            request = Request(
                id=f"q{number}", prompt=prompt, max_tokens=1 + value % 11, sampling=Sampling(stop_ids=stops),
                tenant=f"tenant {tenant}", prefix_group="group" if tenant > 1 else "", weight=1.0 + tenant,
                priority=value % 3,
            )  # fmt: skip
            loop.submit(request)
        elif what == "cancel":
            loop.cancel(f"q{value}")
        else:
            loop.turn()
    for _ in loop.run():
        pass
    watch.close()


scripts = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 40)),
        st.tuples(st.just("cancel"), st.integers(0, 12)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=60,
)
kinds = st.sampled_from(
    [
        {}, {"policy__plan_ahead": False}, {"policy__name": "splitfuse"}, {"policy__name": "orca"},
        {"policy__name": "vllm_prefill_first"}, {"policy__name": "request_level"}, {"policy__order": "fair_share"},
        {"policy__order": "priority", "policy__ageing_s": 1e-6}, {"memory__kind": "paged"},
        {"policy__evict": "swap", "memory__host_bytes": "1MiB"},
    ]
)  # fmt: skip


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(script=scripts, kind=kinds)
def test_any_run_replays_to_the_same_steps(tmp_path: Path, script: list[tuple[str, int]], kind: dict[str, Any]) -> None:
    out = free_name(tmp_path / "run.jsonl")
    play(out, deployment(**kind), script)
    found = replay(read_schedule(out))
    assert found.identical, str(found.difference)
    assert found.statistics.submitted == sum(what == "submit" for what, _ in script)


LONG: list[tuple[str, int]] = [*(("submit", n) for n in range(5, 35)), ("turn", 0), ("turn", 0), ("cancel", 3)]


def test_a_recording_holds_what_happened_in_order(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    play(out, deployment(), LONG)
    schedule = read_schedule(out)
    events = schedule.events
    assert not schedule.truncated
    assert (schedule.header.blocks, schedule.header.block_tokens, schedule.header.plan_ahead) == (BLOCKS, SIZE, True)
    assert [event.id for event in events if isinstance(event, Submit)] == [f"q{n}" for n in range(30)]
    assert [event.id for event in events if isinstance(event, Cancel)] == ["q3"]
    plans = [event.n for event in events if isinstance(event, Plan)]
    assert plans == list(range(1, len(plans) + 1)) == [event.n for event in events if isinstance(event, Done)]
    assert sum(len(event.finished) for event in events if isinstance(event, Done)) == 29
    times = [event.t for event in events]
    assert times == sorted(times)
    assert all(isinstance(time, int) for time in times)


def test_times_are_the_clock_s_to_the_nanosecond(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    play(out, deployment(), LONG)
    schedule = read_schedule(out)
    assert {(event.t + schedule.header.origin_ns - 10**12) % 997 for event in schedule.events} == {0}


def test_a_recording_tells_neither_prompts_nor_tenants(tmp_path: Path) -> None:
    plan, first, second = deployment(), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for out in (first, second):
        play(out, plan, LONG)
    assert "tenant 0" not in first.read_text()
    hashes = [
        {block for event in read_schedule(out).events if isinstance(event, Submit) for block in event.blocks}
        for out in (first, second)
    ]
    assert hashes[0]
    assert not hashes[0] & hashes[1], "the same prompts, and yet a guess cannot be looked up"


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_recording_cut_off_anywhere_is_read_and_replayed_up_to_there(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    play(whole, deployment(), LONG)
    data = whole.read_bytes()
    steps = replay(read_schedule(whole)).steps
    assert steps > 50
    for part in (0.5, 0.8, 0.95, 1 - 1 / len(data)):
        cut.write_bytes(data[: int(part * len(data))])
        schedule = read_schedule(cut)
        found = replay(schedule)
        assert schedule.truncated
        assert found.identical, str(found.difference)
        assert found.steps <= steps


def test_what_was_flushed_is_there_although_nobody_closed_it(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl.gz"
    watch = recorder(out, deployment())
    watch.submitted(Request(id="a", prompt=tuple(range(9)), max_tokens=4), 1000.5)
    watch.flush()
    schedule = read_schedule(out)
    assert schedule.truncated
    [event] = schedule.events
    assert isinstance(event, Submit)
    assert (event.t, event.prompt_tokens, len(event.blocks)) == (500_000_000, 9, 2)
    watch.close()
    assert gzip.decompress(out.read_bytes())


def test_a_request_that_the_replica_refused_is_refused_again(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    plan = deployment()
    executor = ScriptedExecutor(blocks=BLOCKS, block_tokens=SIZE, vocabulary=VOCABULARY)
    ticks = itertools.count(10**12, 1000)
    watch = recorder(out, plan)
    replica = replica_for(plan, blocks=BLOCKS, max_sequence_tokens=BLOCKS * SIZE)
    loop = Loop(replica, executor, clock=lambda: next(ticks) / 1e9, observer=watch)
    with pytest.raises(InvalidRequest):
        loop.submit(Request(id="large", prompt=tuple(range(BLOCKS * SIZE)), max_tokens=40))
    loop.submit(Request(id="small", prompt=(1, 2, 3), max_tokens=3))
    assert len(list(loop.run())) > 2
    watch.close()
    found = replay(read_schedule(out))
    assert found.identical, str(found.difference)
    assert found.statistics.submitted == 1


def test_a_request_that_failed_fails_at_the_same_step(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    play(out, deployment(), LONG, fails=("q4", "q9"))
    found = replay(read_schedule(out))
    assert found.identical, str(found.difference)
    assert found.statistics.failed == 2


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl.gz"
    recorder(out, deployment()).close()
    with pytest.raises(BadInput, match="new file"):
        recorder(out, deployment())
    assert free_name(out) == tmp_path / "run.2.jsonl.gz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "header"),
        (lambda lines: [lines[0].replace('"format":1', '"format":9'), *lines[1:]], "format"),
        (lambda lines: [*lines[:3], lines[3].replace('"t"', '"tt"'), *lines[4:]], r":4"),
        (lambda lines: [*lines[:3], "what", *lines[3:]], r":4"),
        (lambda lines: [lines[0], *lines], "twice"),
        (lambda lines: [*lines[:40], *lines[41:]], "line"),
    ],
)
def test_a_bad_file_names_the_place(tmp_path: Path, change: Any, message: str) -> None:
    out = tmp_path / "run.jsonl"
    play(out, deployment(), LONG)
    lines = out.read_text().splitlines()
    assert json.loads(lines[40])["event"] in ("plan", "done")
    out.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(BadInput, match=message):
        replay(read_schedule(out))


def test_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_schedule(tmp_path / "none.jsonl")
