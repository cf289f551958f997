"""Contract 4: in fp32 on the CPU, greedy output equals `transformers` token for token, whatever the schedule did.

Ten families x five policies x {plain, chunked, prefix hits, preempted, swapped}, with requests cancelled along the
way and a step planned ahead: a third of them in each run, all with `make test-slow`. Each case also shows that what it
is named after really happened. The same holds of weights in `float32_compressed`. With adapters it holds of each
request and the model that `peft` makes of its adapter, all of them side by side in one batch.

Token equality is only a fair question where the model has an answer: random weights now and then put two tokens within
rounding of each other, and then `transformers` with its cache disagrees with `transformers` without. Prompts with such
a tie (MARGIN) are replaced by others before any of our code runs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.control.request import Request, Sampling
from penstock.control.statistics import Statistics
from penstock.control.step import Finished
from penstock.engine.engine import Engine
from penstock.engine.loader import LoadedModel, load_model
from penstock.testing import Driver, small_replica, tiny_checkpoint
from penstock.testing.adapters import merged_checkpoint, tiny_adapter
from penstock.testing.checkpoints import FAMILIES

POLICIES = ("sarathi", "splitfuse", "orca", "vllm_prefill_first", "request_level")
CUTTING = {"sarathi", "splitfuse", "request_level"}
BLOCK = 4
OUTPUT = 10
MARGIN = 0.005
"""Least distance of the two largest logits (about 8 in size); `transformers` with and without cache: up to 0.001."""
CANCELLED = ("r3", "r8")


@dataclass(frozen=True)
class Case:
    """A schedule to provoke, and the statistics that show it."""

    blocks: int = 200
    token_budget: int = 400
    memory: str = "paged"
    evict: str = "recompute"
    host_blocks: int = 0
    waves: int = 1
    shown: Callable[[Statistics], bool] = field(default=lambda seen: True)


CASES = {
    "plain": Case(),
    "chunked": Case(token_budget=12),
    "prefix_hits": Case(memory="prefix_tree", token_budget=24, waves=2, shown=lambda s: s.prefix_hit_tokens > 0),
    "preempted": Case(blocks=19, token_budget=24, memory="prefix_tree", shown=lambda s: s.preemptions > 0),
    "swapped": Case(blocks=19, token_budget=24, evict="swap", host_blocks=60, shown=lambda s: s.swaps > 0),
}


def prompts(vocabulary: int) -> Iterator[tuple[int, ...]]:
    """Endless; every third begins with a common stem of 11 tokens: not a whole number of blocks."""
    chance = random.Random(7)
    stem = tuple(chance.randrange(vocabulary) for _ in range(11))
    for number in itertools.count():
        own = tuple(chance.randrange(vocabulary) for _ in range(chance.randrange(2, 22)))
        yield stem + own if number % 3 == 0 else own


@lru_cache(maxsize=1)  # cases are ordered by family: one model at a time
def loaded(family: str, directory: Path) -> tuple[LoadedModel, list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The model, ten prompts, and what `transformers` makes of them."""
    path = tiny_checkpoint(family, directory / family)
    asked, answers = answered(path, 10)
    return load_model(path, dtype="float32", device="cpu"), asked, answers


def answered(path: Path, count: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """So many prompts without a tie, and what `transformers` makes of them."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    reference.generation_config.eos_token_id = None  # run on: a random model's end of sequence means nothing
    asked: list[tuple[int, ...]] = []
    answers: list[tuple[int, ...]] = []
    for prompt in prompts(reference.config.vocab_size):
        ids = torch.tensor([prompt])
        made = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=OUTPUT, do_sample=False, pad_token_id=0
        )
        with torch.no_grad():
            best = reference(made).logits[0, len(prompt) - 1 : -1].topk(2).values
        if (best[:, 0] - best[:, 1]).min() < MARGIN:
            continue
        asked.append(prompt)
        answers.append(tuple(made[0, len(prompt) :].tolist()))
        if len(asked) == count:
            assert len({token for answer in answers for token in answer}) > 2 * count, "output that shows no mistake"
            return asked, answers
    raise AssertionError("the prompts are endless")


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def matrix() -> Iterator[Any]:
    """All of it; a third is for every run, so that each family, policy and case meets each of the others."""
    for (f, family), (p, policy), (c, case) in itertools.product(*map(enumerate, (FAMILIES, POLICIES, CASES))):
        yield pytest.param(family, policy, case, marks=() if (f + 2 * p + c) % 3 == 0 else pytest.mark.slow)


def test_the_third_for_every_run_holds_each_pair() -> None:
    often = [param.values for param in matrix() if not param.marks]
    for one, other in itertools.combinations(range(3), 2):
        met = {(values[one], values[other]) for values in often}
        assert len(met) == len({values[one] for values in often}) * len({values[other] for values in often})
    assert {values[0] for values in often} == set(FAMILIES)
    assert {values[1] for values in often} == set(POLICIES)
    assert {values[2] for values in often} == set(CASES)


@pytest.mark.parametrize(("family", "policy", "case"), list(matrix()))
def test_greedy_output_equals_transformers(family: str, policy: str, case: str, directory: Path) -> None:
    seen = scheduled(*loaded(family, directory), policy, case)
    assert CASES[case].shown(seen), f"{case} did not happen: {seen}"
    assert seen.held_blocks == 0


@pytest.mark.parametrize(("policy", "case"), list(zip(POLICIES, CASES, strict=True)))
def test_so_does_that_of_compressed_weights(policy: str, case: str, directory: Path) -> None:
    model, asked, answers = compressed(directory)
    seen = scheduled(model, asked, answers, policy, case)
    assert CASES[case].shown(seen), f"{case} did not happen: {seen}"
    assert seen.held_blocks == 0


@lru_cache(maxsize=1)
def compressed(directory: Path) -> tuple[LoadedModel, list[tuple[int, ...]], list[tuple[int, ...]]]:
    path = tiny_checkpoint("llama", directory / "compressed", hidden_size=64, intermediate_size=96)
    return load_model(path, dtype="float32_compressed"), *answered(path, 10)


def scheduled(
    model: LoadedModel, asked: list[tuple[int, ...]], answers: list[tuple[int, ...]], policy: str, case: str
) -> Statistics:
    """Asserts that the requests, some of them cancelled, give `answers` under the schedule that `case` provokes."""
    setup = CASES[case]
    engine = Engine(
        model, blocks=setup.blocks, block_tokens=BLOCK, host_blocks=setup.host_blocks, max_seqs=8, max_step_tokens=512
    )
    replica = small_replica(
        blocks=setup.blocks, block_tokens=BLOCK, policy=policy, memory=setup.memory, evict=setup.evict,
        token_budget=setup.token_budget, host_blocks=setup.host_blocks,
    )  # fmt: skip
    driver = Driver(replica, engine, plan_ahead=True)
    for wave in range(setup.waves):
        for number, prompt in enumerate(asked):
            driver.submit(
                Request(id=f"w{wave}r{number}", prompt=prompt, max_tokens=OUTPUT, sampling=Sampling(temperature=0.0))
            )
        for _ in range(4):
            driver.tick()
        for name in CANCELLED:
            driver.cancel(f"w{wave}{name}")
        driver.run(most=2000)
        engine.check()
    for wave in range(setup.waves):
        for number, answer in enumerate(answers):
            name = f"w{wave}r{number}"
            made, end = tuple(driver.outputs[name]), driver.ended[name]
            assert isinstance(end, Finished)
            assert made == answer[: len(made)]
            assert end.reason == ("length" if len(made) == OUTPUT else "cancelled")
            assert end.reason == "length" or name[2:] in CANCELLED
    if case == "chunked" and policy in CUTTING:
        assert any(chunk.start > 0 for step in driver.steps for chunk in step.chunks)
    engine.close()
    return replica.statistics()


ADAPTERS = {
    "": {},
    "all": {"r": 4},
    "attention": {"seed": 1, "r": 8, "target_modules": ("q_proj", "v_proj"), "use_rslora": True},
    "mlp": {"seed": 2, "r": 3, "target_modules": ("gate_proj", "down_proj"), "lora_alpha": 5},
}


@lru_cache(maxsize=1)
def with_adapters(
    directory: Path,
) -> tuple[LoadedModel, dict[str, Path], list[tuple[str, tuple[int, ...], tuple[int, ...]]]]:
    """A model, its adapters, and requests in turns: adapter, prompt, what `transformers` makes of it once merged."""
    base = tiny_checkpoint("qwen3", directory / "base")
    paths = {
        name: tiny_adapter(base, directory / f"adapter-{name}", **config) for name, config in ADAPTERS.items() if name
    }
    merged = {"": base} | {n: merged_checkpoint(base, path, directory / f"merged-{n}") for n, path in paths.items()}
    by_adapter = [[(name, *pair) for pair in zip(*answered(path, 4), strict=True)] for name, path in merged.items()]
    return load_model(base), paths, [one for turn in zip(*by_adapter, strict=True) for one in turn]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", ["sarathi", "vllm_prefill_first"])
def test_each_adapter_in_the_batch_equals_its_merged_model(policy: str, case: str, directory: Path) -> None:
    model, paths, asked = with_adapters(directory)
    setup = CASES[case]
    engine = Engine(
        model, blocks=setup.blocks, block_tokens=BLOCK, host_blocks=setup.host_blocks, max_seqs=8, max_adapters=3
    )
    for name, path in paths.items():
        engine.adapters.load(name, path)
    replica = small_replica(
        blocks=setup.blocks, block_tokens=BLOCK, policy=policy, memory=setup.memory, evict=setup.evict,
        token_budget=setup.token_budget, host_blocks=setup.host_blocks,
    )  # fmt: skip
    driver = Driver(replica, engine, plan_ahead=True)
    for wave in range(setup.waves):
        for number, (adapter, prompt, _) in enumerate(asked):
            sampling = Sampling(temperature=0.0)
            name = f"w{wave}r{number}"
            driver.submit(Request(id=name, prompt=prompt, max_tokens=OUTPUT, adapter=adapter, sampling=sampling))
        driver.run(most=2000)
    for wave in range(setup.waves):
        for number, (_, _, answer) in enumerate(asked):
            assert tuple(driver.outputs[f"w{wave}r{number}"]) == answer
    assert setup.shown(replica.statistics())
    engine.close()
