"""Whatever is submitted, cancelled and planned: blocks are conserved, no token is lost or made twice, nothing hangs."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.control.request import Request, Sampling
from penstock.control.step import Finished
from penstock.testing import Driver, ScriptedExecutor, expected_output, small_replica

BLOCK = 4
BLOCKS = 12
VOCABULARY = 11
POLICIES = ("sarathi", "splitfuse", "orca", "vllm_prefill_first", "request_level")
ORDERS = ("arrival", "priority", "shortest", "fair_share")


@dataclass(frozen=True)
class Setup:
    policy: str
    order: str
    evict: str
    memory: str
    token_budget: int
    max_seqs: int
    plan_ahead: bool
    host_blocks: int


setups = st.builds(
    Setup,
    policy=st.sampled_from(POLICIES),
    order=st.sampled_from(ORDERS),
    evict=st.sampled_from(("recompute", "swap")),
    memory=st.sampled_from(("paged", "prefix_tree", "reserved")),
    token_budget=st.integers(1, 20),
    max_seqs=st.integers(1, 8),
    plan_ahead=st.booleans(),
    host_blocks=st.integers(0, 12),
)


STEMS = ((), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 7, 8, 1, 1))
Script = list[tuple[str, object]]


def a_request(chance: random.Random, number: int) -> Request:
    """Few distinct tokens and stems, so that prefixes are shared in every way, also up to the middle of a block."""
    stem = chance.choice(STEMS)
    prompt = stem + tuple(chance.randrange(3) for _ in range(chance.randrange(0 if stem else 1, 13)))
    max_tokens = chance.randrange(1, 15)
    given = Request(id="", prompt=prompt, max_tokens=max_tokens)
    resumed = expected_output(given, VOCABULARY)[: chance.randrange(max_tokens)] if chance.random() < 0.2 else ()
    stop_ids = () if resumed else chance.choice(((), (), (3,), (3, 5)))
    return Request(
        id=f"r{number}",
        prompt=list(prompt) if chance.random() < 0.5 else prompt,
        max_tokens=max_tokens,
        output=resumed,
        tenant=chance.choice("ab"),
        salt=chance.choice(("", "", "salt")),
        priority=chance.randrange(-1, 2),
        sampling=Sampling(stop_ids=stop_ids),
    )


def a_script(seed: int, length: int) -> Script:
    """Any mix of submit, cancel and tick."""
    chance = random.Random(seed)
    script: Script = []
    submitted: list[str] = []
    eagerness = chance.random()
    for _ in range(length):
        if chance.random() < eagerness:
            request = a_request(chance, len(submitted))
            submitted.append(request.id)
            script.append(("submit", request))
        elif submitted and chance.random() < 0.15:
            script.append(("cancel", chance.choice(submitted)))
        else:
            script.append(("tick", None))
    return script


seeds = st.integers(0, 2**32)
lengths = st.integers(1, 80)


def play(setup: Setup, script: Script) -> tuple[Driver, list[Request], set[str]]:
    blocks = BLOCKS
    replica = small_replica(
        blocks=blocks, block_tokens=BLOCK, policy=setup.policy, order=setup.order, evict=setup.evict,
        memory=setup.memory, token_budget=setup.token_budget, max_seqs=setup.max_seqs,
        max_sequence_tokens=36, host_blocks=setup.host_blocks if setup.evict == "swap" else 0,
    )  # fmt: skip
    executor = ScriptedExecutor(blocks=blocks, block_tokens=BLOCK, host_blocks=setup.host_blocks, vocabulary=VOCABULARY)
    driver = Driver(replica, executor, plan_ahead=setup.plan_ahead)
    taken: list[Request] = []
    cancelled: set[str] = set()
    for action, argument in script:
        if action == "submit":
            assert isinstance(argument, Request)
            driver.submit(argument)
            taken.append(argument)
        elif action == "cancel":
            assert isinstance(argument, str)
            if argument not in driver.ended:
                cancelled.add(argument)
            driver.cancel(argument)
        else:
            driver.tick()
    driver.run(most=5000)
    return driver, taken, cancelled


@settings(max_examples=400, deadline=None)
@given(setups, seeds, lengths)
def test_every_request_ends_once_with_the_tokens_of_its_own_prefix(setup: Setup, seed: int, length: int) -> None:
    driver, taken, cancelled = play(setup, a_script(seed, length))
    for request in taken:
        expected = expected_output(request, VOCABULARY)
        output = request.output + tuple(driver.outputs[request.id])
        end = driver.ended[request.id]
        assert isinstance(end, Finished)
        if request.id in cancelled:
            assert end.reason == "cancelled"
            assert output == expected[: len(output)]
        else:
            assert output == expected
            assert end.reason == ("stop" if output[-1] in request.sampling.stop_ids else "length")


@settings(max_examples=150, deadline=None)
@given(setups, seeds, lengths)
def test_afterwards_every_block_is_free_or_cached_and_nothing_is_remembered(
    setup: Setup, seed: int, length: int
) -> None:
    driver, taken, _ = play(setup, a_script(seed, length))
    seen = driver.replica.statistics()
    assert seen.free_blocks + seen.cached_blocks == seen.total_blocks
    assert (seen.held_blocks, seen.waiting, seen.running, seen.swapped, seen.waiting_prompt_tokens) == (0, 0, 0, 0, 0)
    assert seen.finished + seen.cancelled + seen.failed == len(taken)


@settings(max_examples=100, deadline=None)
@given(setups, seeds, lengths)
def test_no_step_exceeds_the_token_budget_where_prompts_may_be_cut(setup: Setup, seed: int, length: int) -> None:
    if setup.policy not in ("sarathi", "splitfuse"):
        return
    driver, _, _ = play(setup, a_script(seed, length))
    assert all(step.tokens <= setup.token_budget for step in driver.steps)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_same_script_gives_the_same_steps(policy: str, order: str) -> None:
    def steps() -> list[object]:
        setup = Setup(policy, order, "recompute", "prefix_tree", 16, 6, True, 0)
        script: Script = []
        for number in range(30):
            prompt = tuple((number * 7 + i * i) % 3 for i in range(5 + number % 9))
            script.append(("submit", Request(id=f"r{number}", prompt=prompt, max_tokens=1 + number % 7)))
            script.append(("tick", None))
        return list(play(setup, script)[0].steps)

    assert steps() == steps()
