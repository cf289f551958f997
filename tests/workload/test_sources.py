"""Sources are lazy, ordered and repeatable; closed loops keep their users, sessions their history."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadInput
from penstock.workload.arrivals import Arrivals, AtOnce, Constant, Drifting, Gamma, OnOff, Poisson
from penstock.workload.build import build_source
from penstock.workload.lengths import Fixed
from penstock.workload.open_loop import open_loop_source
from penstock.workload.settings import LAWS, ArrivalSettings, Law, SharedPrefixSettings, WorkloadSettings
from penstock.workload.source import TimedRequest, blocks_of
from penstock.workload.think import parse_think, parse_turns
from tests.workload.drain import drain

MOONCAKE = '{"timestamp": %d, "input_length": 600, "output_length": 5, "hash_ids": [0, %d]}\n'


def made(law: Law, **more: object) -> WorkloadSettings:
    rate = None if law in ("closed", "batch") else 20.0
    extra = {name: more.pop(name) for name in ("concurrency", "think_s", "turns", "cv") if name in more}
    return WorkloadSettings(arrivals=ArrivalSettings(law=law, rate=rate, **extra), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("law", LAWS)
def test_a_source_is_ordered_repeatable_and_as_long_as_asked(law: Law) -> None:
    source = build_source(
        made(law, requests=3000, cancel_fraction=0.2, tenants={"a": 1, "b": 3}, priorities={0: 1, 5: 1}, seed=7,
             prompt_tokens="azure-conv", output_tokens="azure-conv",
             shared_prefix=SharedPrefixSettings(tokens=100, share=0.5, groups=2))
    )  # fmt: skip
    first = drain(source)
    assert first == drain(source)
    assert sorted(request.index for request in first) == list(range(3000))
    assert source.requests == 3000
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(first))
    assert all(0 <= r.cancel_tokens < r.output_tokens or r.cancel_tokens == 0 for r in first)
    assert 0.15 < sum(r.cancel_tokens > 0 for r in first) / 3000 < 0.25
    tenants = Counter(request.tenant for request in first)
    assert 2 < tenants["b"] / tenants["a"] < 4.5
    assert {request.priority for request in first} == {0, 5}


@pytest.mark.parametrize("law", [Poisson(20), Gamma(20, 2), Constant(20), OnOff(20), Drifting(20)])
def test_a_stream_has_the_rate_and_burstiness_of_its_law(law: Arrivals) -> None:
    stream = itertools.chain.from_iterable(law.stream(np.random.default_rng(3)))
    streamed = np.fromiter(stream, np.float64, 100_000)
    times = law.times(100_000, np.random.default_rng(4))
    for sample in (streamed, times):
        assert (np.diff(sample) >= 0).all()
        assert sample.size / sample[-1] == pytest.approx(20, rel=0.15)
    cv = [np.diff(sample).std() / np.diff(sample).mean() for sample in (streamed, times)]
    assert cv[0] == pytest.approx(cv[1], rel=0.1, abs=1e-6)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short, long = (open_loop_source(Poisson(5), Fixed(512), Fixed(128), count=count, seed=2) for count in (10, 9000))
    assert list(short.initial()) == list(islice(long.initial(), 10))


def test_other_seeds_give_other_times_and_lengths_stay_independent_of_the_law() -> None:
    by_law = [
        list(build_source(made(law, requests=50, output_tokens="azure-conv")).initial()) for law in ("poisson", "gamma")
    ]
    assert [r.output_tokens for r in by_law[0]] == [r.output_tokens for r in by_law[1]]
    assert by_law[0] != list(build_source(made("poisson", requests=50, output_tokens="azure-conv", seed=1)).initial())


def test_the_same_seed_gives_the_same_bits_in_another_process() -> None:
    code = (
        "from penstock.workload.build import build_source as b;"
        "from penstock.workload.settings import *;"
        "print(sum(hash((r.arrival_s, r.prompt_tokens, r.cancel_tokens)) for r in"
        " b(WorkloadSettings(requests=500, cancel_fraction=0.5, tenants={'x': 1, 'y': 2}, seed=3)).initial()))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_a_closed_loop_never_has_more_than_its_users() -> None:
    requests = drain(build_source(made("closed", concurrency=4, think_s="500ms", requests=41)), service_s=1.0)
    assert [request.arrival_s for request in requests[:5]] == [0.0, 0.0, 0.0, 0.0, 1.5]
    edges = sorted([(r.arrival_s, 1) for r in requests] + [(r.arrival_s + 1.0, -1) for r in requests])
    assert np.cumsum([change for _, change in edges]).max() == 4


def test_durations_end_every_kind() -> None:
    for law in ("poisson", "closed", "sessions"):
        requests = drain(build_source(made(law, duration_s=20.0)))  # type: ignore[arg-type]
        assert 15.0 < requests[-1].arrival_s < 20.0
        assert build_source(made(law, duration_s=20.0)).requests is None  # type: ignore[arg-type]


def test_a_turn_repeats_the_whole_conversation_and_shares_its_blocks() -> None:
    source = build_source(
        made("sessions", turns=4, think_s=2, requests=2000, prompt_tokens="uniform:50:90", output_tokens="uniform:5:40",
             shared_prefix=SharedPrefixSettings(tokens=64, share=0.5))
    )  # fmt: skip
    sessions: dict[int, list[TimedRequest]] = {}
    for request in drain(source, service_s=0.5):
        assert request.session is not None
        sessions.setdefault(request.session, []).append(request)
    whole = [turns for turns in sessions.values() if len(turns) == 4]
    assert len(whole) > 60
    for turns in whole:
        assert [turn.turn for turn in turns] == [0, 1, 2, 3]
        for before, after in pairwise(turns):
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert after.arrival_s == pytest.approx(before.arrival_s + 2.5)
            assert before.prefix is not None
            assert after.prefix is not None
            assert after.prefix[: len(before.prefix)] == before.prefix
            assert len(after.prefix) == after.prompt_tokens // 16
        assert turns[3].prompt_tokens < 64 + 4 * 90 + 3 * 40 + 1
    own = [set(turns[3].prefix or ()) for turns in whole]
    shared = set.intersection(*(ids for ids in own if min(ids) != max(ids) and max(ids) >= 1 << 56))
    assert len(shared) == 4
    assert not set.intersection(*own)


def test_a_session_ends_with_its_context_or_when_the_user_leaves() -> None:
    full = drain(build_source(made("sessions", turns=50, requests=300, context_tokens=2000)))
    assert max(r.prompt_tokens + r.output_tokens for r in full) <= 2000
    assert {r.turn for r in full} == {0, 1, 2}
    left = drain(build_source(made("sessions", turns=3, requests=300, cancel_fraction=1.0)))
    assert {r.turn for r in left} == {0}


@pytest.mark.parametrize(("law", "mean"), [("mooncake-conversation", 1.63), ("mooncake-synthetic", 1.81),
                                           ("geometric:2.7", 2.7), ("3", 3.0)])  # fmt: skip
def test_turns_have_their_published_mean(law: str, mean: float) -> None:
    generator = np.random.default_rng(0)
    draw = parse_turns(law)
    assert np.mean([draw(generator) for _ in range(40_000)]) == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize(("law", "median"), [("coding-chat", 78), ("mooncake-conversation", 131), ("2s", 2),
                                             ("exponential:10s", 6.93), ("lognormal:1:0.5", 2.718)])  # fmt: skip
def test_pauses_have_their_published_median(law: str, median: float) -> None:
    generator = np.random.default_rng(0)
    think = parse_think(law)
    pauses = [think.next_s(0.0, 0.0, generator) for _ in range(20_000)]
    assert np.median(pauses) == pytest.approx(median, rel=0.05)
    assert think.next_s(0.0, 1e9, generator) >= 1e9


@pytest.mark.parametrize(
    ("settings_", "field"),
    [
        (made("poisson", requests=0), "requests"),
        (WorkloadSettings(arrivals=ArrivalSettings(rate=-1)), "arrivals.rate"),
        (WorkloadSettings(arrivals=ArrivalSettings(law="closed", rate=1)), "arrivals.rate"),
        (WorkloadSettings(arrivals=ArrivalSettings(concurrency=3)), "arrivals.concurrency"),
        (WorkloadSettings(arrivals=ArrivalSettings(law="poisson", turns=3)), "arrivals.turns"),
        (WorkloadSettings(arrivals=ArrivalSettings(law="sessions", turns="many")), "turns"),
        (WorkloadSettings(arrivals=ArrivalSettings(law="closed", think_s="long")), "think_s"),
        (WorkloadSettings(arrivals=ArrivalSettings(law="weekly")), "arrivals.law"),  # type: ignore[arg-type]
        (WorkloadSettings(arrivals=ArrivalSettings(think_s="2s")), "think_s"),
        (WorkloadSettings(speed=2.0), "speed"),
        (WorkloadSettings(trace_format="azure"), "trace_format"),
        (WorkloadSettings(trace_format="parrot"), "trace_format"),
        (WorkloadSettings(cancel_fraction=1.5), "cancel_fraction"),
        (WorkloadSettings(tenants={"a": 0.0}), "tenants.a"),
        (WorkloadSettings(prompt_tokens="none"), "prompt_tokens"),
        (WorkloadSettings(shared_prefix=SharedPrefixSettings(tokens=16, share=2)), "shared_prefix.share"),
        (WorkloadSettings(shared_prefix=SharedPrefixSettings(groups=2)), "shared_prefix.groups"),
        (WorkloadSettings(shared_prefix=SharedPrefixSettings(share=0.5)), "shared_prefix.share"),
        (WorkloadSettings(context_tokens=1), "context_tokens"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings_: WorkloadSettings, field: str) -> None:
    with pytest.raises(BadInput, match=field):
        build_source(settings_)


def test_a_trace_keeps_times_prefixes_and_rate(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text("".join(MOONCAKE % (1000 * number, 7 + number) for number in range(11)))
    plain = build_source(WorkloadSettings(trace=file))
    requests = list(plain.initial())
    assert requests[3] == TimedRequest(3, 3.0, 600, 5, (0, 10))
    assert (plain.block_tokens, plain.requests) == (512, 11)
    assert plain.after(requests[0], 1.0) is None
    faster = build_source(WorkloadSettings(trace=file, arrivals=ArrivalSettings(rate=4), duration_s=1.1))
    assert [r.arrival_s for r in faster.initial()] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert any("as fast" in note for note in faster.notes)
    closed = build_source(WorkloadSettings(trace=file, arrivals=ArrivalSettings(law="closed", concurrency=2)))
    assert [r.prefix for r in drain(closed)] == [(0, 7 + number) for number in range(11)]
    assert closed.block_tokens == 512
    small = build_source(WorkloadSettings(trace=file, requests=2, scale_to=300, tenants={"x": 1}))
    assert [(r.prompt_tokens + r.output_tokens <= 300, r.tenant) for r in small.initial()] == [(True, "x")] * 2
    with pytest.raises(BadInput, match="no effect"):
        build_source(WorkloadSettings(trace=file, shared_prefix=SharedPrefixSettings(tokens=16)))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_blocks_of_another_size_are_equal_only_where_prefixes_are(old: int, new: int, data: st.DataObject) -> None:
    common = data.draw(st.integers(0, 6))
    lengths = [data.draw(st.integers(1, 200)) for _ in range(2)]
    # Two prompts whose first `common` old blocks agree; ids of all whole blocks.
    ids = [
        tuple(number if number < common else 1000 * (which + 1) + number for number in range(length // old))
        for which, length in enumerate(lengths)
    ]
    one, two = (
        blocks_of(TimedRequest(0, 0.0, length, 1, prefix), old, new)
        for length, prefix in zip(lengths, ids, strict=True)
    )
    assert len(set(one)) == len(one)
    agreed = min(common, len(ids[0]), len(ids[1])) * old
    equal = [a == b for a, b in zip(one, two, strict=False)]
    assert all((number + 1) * new <= agreed for number, same in enumerate(equal) if same)
    if old % new == 0:
        assert sum(equal) == min(agreed // new, len(one), len(two))


def test_everything_at_once_arrives_at_zero() -> None:
    assert not AtOnce().times(3, np.random.default_rng(0)).any()
    assert {r.arrival_s for r in build_source(made("batch", requests=5000)).initial()} == {0.0}
