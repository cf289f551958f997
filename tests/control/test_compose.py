"""What each compose rule promises, told as stories of steps."""

from __future__ import annotations

import random

import pytest

from penstock.compiled import in_use
from penstock.control.compose.single_phase import DecodeOnly
from penstock.control.request import Request
from penstock.control.step import Chunk, Step
from penstock.testing import Driver, ScriptedExecutor, small_replica


def request(name: str, prompt: int, max_tokens: int = 4, **more: object) -> Request:
    return Request(id=name, prompt=tuple(ord(name[0]) + i for i in range(prompt)), max_tokens=max_tokens, **more)  # type: ignore[arg-type]


def driver(blocks: int = 64, **options: object) -> Driver:
    replica = small_replica(blocks=blocks, **options)
    return Driver(replica, ScriptedExecutor(blocks=blocks, block_tokens=4, host_blocks=16))


def decoded(step: Step) -> bool:
    return step.decoding > 0


def test_stall_free_every_ready_decode_is_in_every_step_while_a_long_prompt_comes_in() -> None:
    run = driver(policy="sarathi", token_budget=8)
    run.submit(request("a", 4, max_tokens=20))
    run.tick()
    run.submit(request("b", 40))
    steps = [run.steps[-1]]
    while "b" not in {chunk.id for chunk in steps[-1].chunks if chunk.last}:
        run.tick()
        steps.append(run.steps[-1])
    after_first = steps[1:]
    assert all(step.decoding == 1 for step in after_first)
    assert [step.chunks[0].tokens for step in after_first[:-1]] == [7] * 5  # the budget less one decode


def test_stall_free_one_chunk_of_a_prompt_and_the_start_of_the_next_share_a_step() -> None:
    run = driver(policy="sarathi", token_budget=8)
    run.submit(request("a", 10))
    run.submit(request("b", 10))
    run.tick()
    run.tick()
    assert run.steps[0].chunks == [Chunk("a", 0, 8, False)]
    assert run.steps[1].chunks == [Chunk("a", 8, 2, True), Chunk("b", 0, 6, False)]


def test_splitfuse_every_step_is_full_while_prompts_wait() -> None:
    run = driver(policy="splitfuse", token_budget=8)
    for name in "abcdef":
        run.submit(request(name, 11, max_tokens=6))
    while any(not step_done(run, name) for name in "abcdef"):
        run.tick()
    last_prompt = max(i for i, step in enumerate(run.steps) if step.chunks)
    assert all(step.tokens == 8 for step in run.steps[:last_prompt])


def step_done(run: Driver, name: str) -> bool:
    return any(chunk.id == name and chunk.last for step in run.steps for chunk in step.chunks)


def test_splitfuse_a_decode_without_a_block_waits_and_nobody_is_evicted_for_it() -> None:
    run = driver(blocks=8, policy="splitfuse", token_budget=24, memory="paged")
    run.submit(request("a", 8, max_tokens=8))
    run.submit(request("b", 12, max_tokens=8))
    run.run()
    seen = run.replica.statistics()
    assert seen.stalls > 0
    assert seen.preemptions == 0


def test_splitfuse_memory_of_one_prompt_and_one_block_does_not_deadlock() -> None:
    run = driver(blocks=4, policy="splitfuse", token_budget=16, memory="paged")
    for name in "abcd":
        run.submit(request(name, 8, max_tokens=8))
    run.run(most=500)
    assert {type(end).__name__ for end in run.ended.values()} == {"Finished"}


def test_prefill_first_decodes_rest_while_any_prompt_can_enter() -> None:
    run = driver(policy="vllm_prefill_first", token_budget=16)
    run.submit(request("a", 8, max_tokens=10))
    run.tick()
    run.tick()
    run.submit(request("b", 8))
    run.tick()
    run.tick()
    assert [decoded(step) for step in run.steps] == [False, True, False, True]
    assert not any(decoded(step) and step.chunks for step in run.steps)


def test_orca_whole_prompts_run_beside_decodes_and_are_never_cut() -> None:
    run = driver(policy="orca", token_budget=8)
    run.submit(request("a", 4, max_tokens=10))
    run.tick()
    run.submit(request("b", 40))
    run.tick()
    assert run.steps[1].decoding == 1
    assert run.steps[1].chunks == [Chunk("b", 0, 40, True)]


def test_request_level_nobody_joins_until_the_longest_of_the_batch_is_done() -> None:
    run = driver(policy="request_level", token_budget=16)
    run.submit(request("a", 8, max_tokens=2))
    run.submit(request("b", 8, max_tokens=12))
    run.tick()
    run.submit(request("c", 8))
    run.run()
    first_of_c = next(i for i, step in enumerate(run.steps) if any(chunk.id == "c" for chunk in step.chunks))
    last_of_b = sum(1 for token in run.outputs["b"]) - 1
    assert first_of_c == last_of_b + 1
    assert all(step.decoding == 0 for step in run.steps if step.chunks)


def test_an_instance_can_turn_from_prefill_pool_to_decode_pool() -> None:
    run = driver(compose="prefill_only", token_budget=16)
    for name in "abc":
        run.submit(request(name, 10, max_tokens=6))
    while run.tick():
        assert run.steps[-1].decoding == 0
    assert {name: len(tokens) for name, tokens in run.outputs.items()} == {"a": 1, "b": 1, "c": 1}
    run.replica.use(DecodeOnly())
    run.run()
    assert all(not step.chunks for step in run.steps[2:])
    assert {name: len(tokens) for name, tokens in run.outputs.items()} == {"a": 6, "b": 6, "c": 6}


def test_with_an_unbounded_budget_stall_free_takes_the_same_steps_as_orca() -> None:
    def steps(policy: str) -> list[Step]:
        run = driver(policy=policy, token_budget=10_000)
        for number in range(12):
            run.submit(request(chr(97 + number), 3 + number, max_tokens=1 + number % 5))
            run.tick()
        run.run()
        return run.steps

    assert steps("sarathi") == steps("orca")


@pytest.mark.parametrize("evict", ["recompute", "swap"])
def test_under_memory_pressure_the_oldest_never_gives_way(evict: str) -> None:
    run = driver(blocks=8, policy="sarathi", token_budget=16, memory="paged", evict=evict, host_blocks=16)
    for name in "abc":
        run.submit(request(name, 8, max_tokens=20))
    run.run()
    gave_way = {i for step in run.steps for i in [*step.evict, *(swap.id for swap in step.swap_out)]}
    assert gave_way
    assert "a" not in gave_way
    assert list(run.ended) == ["a", "b", "c"]


def test_splitfuse_when_all_are_stuck_the_newest_is_flushed() -> None:
    run = driver(blocks=6, policy="splitfuse", token_budget=64, memory="paged")
    for name in "abc":
        run.submit(request(name, 8, max_tokens=8))
    run.run()
    assert run.steps[1].evict == ["c"]
    assert next(iter(run.ended)) == "a"


def test_splitfuse_a_step_is_filled_also_when_a_decode_has_to_wait() -> None:
    chance = random.Random(3)
    short = 0
    for _ in range(60):
        run = driver(blocks=9, policy="splitfuse", token_budget=8, memory="paged")
        for number in range(10):
            run.submit(request(chr(97 + number), chance.randrange(3, 15), max_tokens=chance.randrange(1, 9)))
        run.run()
        for step in run.steps:
            unfinished = [chunk for chunk in step.chunks if not chunk.last]
            assert not unfinished or step.tokens == 8
            short += bool(step.pause)
    assert short


def test_a_decode_pool_brings_swapped_sequences_back() -> None:
    run = driver(blocks=8, compose="prefill_only", token_budget=16, evict="swap", host_blocks=16, memory="paged")
    for name in "ab":
        run.submit(request(name, 12, max_tokens=14))
    while run.tick():
        pass
    run.replica.use(DecodeOnly())
    run.run()
    assert run.replica.statistics().swaps > 0
    assert {name: len(tokens) for name, tokens in run.outputs.items()} == {"a": 14, "b": 14}


@pytest.mark.skipif(in_use(), reason="compiled classes cannot be patched")
def test_a_head_of_line_that_does_not_fit_is_not_matched_again_in_every_step() -> None:
    run = driver(blocks=12, policy="sarathi", token_budget=64)
    asked = 0
    memory = run.replica._memory
    admit = memory.admit

    def counting(*arguments: object) -> int | None:
        nonlocal asked
        asked += 1
        return admit(*arguments)  # type: ignore[arg-type]

    memory.admit = counting  # type: ignore[method-assign,assignment]
    run.submit(request("a", 4, max_tokens=36))
    run.submit(request("b", 30, max_tokens=4))
    run.run()
    assert len(run.steps) > 36
    assert asked <= 4
