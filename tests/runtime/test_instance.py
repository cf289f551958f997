"""Stretches of plain decodes are gone through at once. Nothing may depend on it: not one bit of one time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.control.policy import build_replica
from penstock.control.request import Request
from penstock.control.statistics import Statistics
from penstock.control.step import Step, Update
from penstock.runtime.instance import IDLE, Instance, Observer
from penstock.twin.load import StepLoad
from penstock.twin.twin import Pricing, Row, Twin

POLICIES = ("sarathi", "splitfuse", "orca", "vllm_prefill_first", "request_level")


class Priced(Pricing):
    """A step's seconds from all that a price may look at, in doubles that no other order of additions would give."""

    def seconds(self, load: StepLoad) -> float:
        chunks = sum(tokens * 0.013 + past * 0.0007 for past, tokens in load.chunks)
        swaps = 0.011 * (load.swap_in_blocks + 0.5 * load.swap_out_blocks)
        return 0.1 + chunks + swaps + self._decode(load.decoding, load.decode_context, load.decode_context_squares)

    def decode_ends(
        self, decoding: int, context: int, squares: int, now: float, most: int, until: float
    ) -> list[float]:
        ends = []
        for _ in range(most):
            now += 0.1 + 0.0 + 0.0 + self._decode(decoding, context, squares)
            ends.append(now)
            squares += 2 * context + decoding
            context += decoding
            if now >= until:
                break
        return ends

    @staticmethod
    def _decode(decoding: int, context: int, squares: int) -> float:
        return decoding * 0.0031 + context * 0.00017 + squares * 1e-7


@dataclass
class Seen(Observer):
    """An observer that writes everything down."""

    first: dict[int, float] = field(default_factory=dict)
    ends: dict[int, tuple[float, str]] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    """When each step ended."""

    def stepped(self, instance: Instance, step: Step, started: float, ended: float) -> None:
        assert started <= ended
        self.steps.append(ended)

    def coasted(self, instance: Instance, started: float, ends: Sequence[float]) -> None:
        assert started <= ends[0]
        self.steps += ends

    def first_token(self, row: Row, now: float) -> None:
        self.first.setdefault(row.index, now)

    def ended(self, row: Row, update: Update, now: float) -> None:
        assert row.index not in self.ends, "a request ends once"
        self.ends[row.index] = (now, repr(update))


@dataclass(frozen=True)
class Setup:
    policy: str
    order: str
    evict: str
    memory: str
    blocks: int
    token_budget: int
    max_seqs: int
    plan_ahead: bool


@dataclass(frozen=True)
class Arrival:
    at: float
    request: Request
    output_tokens: int
    cancel_at: float | None


setups = st.builds(
    Setup, policy=st.sampled_from(POLICIES), order=st.sampled_from(("arrival", "priority", "shortest", "fair_share")),
    evict=st.sampled_from(("recompute", "swap")), memory=st.sampled_from(("paged", "prefix_tree", "reserved")),
    blocks=st.integers(9, 40), token_budget=st.integers(1, 40), max_seqs=st.integers(1, 9), plan_ahead=st.booleans(),
)  # fmt: skip


def arrivals(seed: int, count: int) -> list[Arrival]:
    """Bursts and pauses, shared prefixes, outputs that stop early, users who leave."""
    chance = random.Random(seed)
    now, made = 0.0, []
    pace = chance.choice((0.2, 2.0, 20.0))
    for number in range(count):
        now += 0.0 if chance.random() < 0.2 else chance.expovariate(1 / pace)
        start = chance.choice((0, 0, 1000 * number))
        bound = chance.randrange(1, 20)
        request = Request(
            id=f"r{number}", prompt=range(start, start + chance.randrange(1, 16)), max_tokens=bound,
            tenant=chance.choice("ab"), priority=chance.randrange(2),
        )  # fmt: skip
        cancel_at = now + chance.expovariate(1 / (2 * pace)) if chance.random() < 0.15 else None
        made.append(Arrival(now, request, chance.randrange(1, bound + 1), cancel_at))
    return made


def play(setup: Setup, given: list[Arrival], *, coast: bool, horizon: str) -> tuple[Seen, Statistics]:
    replica = build_replica(
        blocks=setup.blocks, block_tokens=4, max_sequence_tokens=36, policy=setup.policy, order=setup.order,
        evict=setup.evict, memory=setup.memory, token_budget=setup.token_budget, max_seqs=setup.max_seqs,
        host_blocks=12 if setup.evict == "swap" else 0,
    )  # fmt: skip
    seen = Seen()
    instance = Instance(
        0, replica, Twin(Priced(), squares=True), seen, plan_ahead=setup.plan_ahead, coast=coast
    )  # fmt: skip
    events: list[tuple[float, int, Arrival, bool]] = []
    for number, arrival in enumerate(given):
        events.append((arrival.at, number, arrival, False))
        if arrival.cancel_at is not None:
            events.append((arrival.cancel_at, number, arrival, True))
    events.sort(key=lambda event: event[:2])
    now, fired = 0.0, 0
    while events or instance.wake != IDLE:
        following = events[0][0] if events else IDLE
        instance.horizon = following if horizon == "next" else IDLE
        assert instance.wake >= now, "time runs back"
        if following <= instance.wake:
            now, number, arrival, cancels = events.pop(0)
            if cancels:
                instance.cancel(arrival.request.id, now)
            else:
                instance.submit(arrival.request, now, output_tokens=arrival.output_tokens, index=number)
            # As the cluster does: one look for work after the last event of a moment.
            if not events or events[0][0] != now:
                instance.start(now)
        else:
            now = instance.wake
            instance.fire()
            fired += 1
            assert fired < 20_000, "it hangs"
        if not coast:
            replica.check()
    replica.check()
    assert len(seen.ends) == len(given)
    assert replica.idle
    assert not list(instance.unfinished())
    assert seen.steps == sorted(seen.steps)
    return seen, replica.statistics()


@settings(max_examples=150, deadline=None)
@given(setup=setups, seed=st.integers(0, 2**32), count=st.integers(1, 25))
def test_coasting_changes_not_one_bit(setup: Setup, seed: int, count: int) -> None:
    given = arrivals(seed, count)
    step_by_step = play(setup, given, coast=False, horizon="none")
    assert play(setup, given, coast=True, horizon="none") == step_by_step
    assert play(setup, given, coast=True, horizon="next") == step_by_step


@settings(max_examples=60, deadline=None)
@given(setup=setups, seed=st.integers(0, 2**32))
def test_all_blocks_are_free_when_all_have_ended(setup: Setup, seed: int) -> None:
    _, statistics = play(setup, arrivals(seed, 15), coast=True, horizon="next")
    assert statistics.held_blocks == 0
    assert statistics.free_blocks + statistics.cached_blocks == statistics.total_blocks
    assert statistics.submitted == statistics.finished + statistics.cancelled


def test_the_mix_has_what_it_promises() -> None:
    """Or the properties above would say nothing about evictions, swaps, stalls, hits and early ends."""
    totals: dict[str, int] = {}
    for seed in range(30):
        for policy, evict in (("sarathi", "recompute"), ("sarathi", "swap"), ("splitfuse", "swap")):
            setup = Setup(policy, "arrival", evict, "prefix_tree", 12, 24, 6, seed % 2 == 0)
            seen, statistics = play(setup, arrivals(seed, 25), coast=True, horizon="next")
            for name in ("preemptions", "swaps", "stalls", "prefix_hit_tokens", "cancelled"):
                totals[name] = totals.get(name, 0) + getattr(statistics, name)
            totals["stops"] = totals.get("stops", 0) + sum("stop" in update for _, update in seen.ends.values())
    assert all(totals.values()), totals


def test_a_stretch_is_one_event() -> None:
    """Long outputs alone: a handful of events, not one a token."""
    replica = build_replica(blocks=200, block_tokens=4, max_sequence_tokens=600)
    seen = Seen()
    instance = Instance(0, replica, Twin(Priced()), seen, plan_ahead=False)
    instance.submit(Request(id="a", prompt=range(8), max_tokens=500), 0.0, output_tokens=500, index=0)
    instance.start(0.0)
    fired = 0
    while instance.wake != IDLE:
        instance.fire()
        fired += 1
    assert len(seen.steps) >= 500
    assert fired <= 6
