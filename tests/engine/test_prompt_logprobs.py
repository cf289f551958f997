"""Prompt log-probabilities equal those of `transformers`, however the prompt is cut and whatever the cache holds."""

from __future__ import annotations

import random
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_driver import Driver
from transformers import AutoModelForCausalLM

from penstock.control.policy import build_replica
from penstock.control.request import Request, Sampling
from penstock.control.step import PromptLogprobs, Step
from penstock.engine.engine import Engine
from penstock.testing.checkpoints import FAMILIES

_random = random.Random(11)
PROMPTS = [[_random.randrange(2, 256) for _ in range(length)] for length in (33, 6, 1)]
TOP = 3


@cache
def of_transformers(path: Path, prompt: tuple[int, ...]) -> np.ndarray:
    """[len(prompt) - 1, V]: log-probabilities at each position but the last."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0].double()
    return torch.log_softmax(logits, dim=-1).numpy()[:-1]


def check(found: list[PromptLogprobs], path: Path, prompt: list[int]) -> None:
    """All parts together are the whole prompt's, once, in order."""
    expected = of_transformers(path, tuple(prompt))
    position = 1
    for part in found:
        assert part.start == position
        position += len(part.chosen)
    assert position == len(prompt)
    chosen = list(chain.from_iterable(part.chosen for part in found))
    np.testing.assert_allclose(chosen, [row[t] for row, t in zip(expected, prompt[1:], strict=True)], atol=2e-4)
    for row, top in zip(expected, chain.from_iterable(part.top for part in found), strict=True):
        assert len(top) == TOP
        np.testing.assert_allclose([value for _, value in top], np.sort(row)[::-1][:TOP], atol=2e-4)
        np.testing.assert_allclose([value for _, value in top], [row[id] for id, _ in top], atol=2e-4)
    for row, token, rank in zip(expected, prompt[1:], chain.from_iterable(p.ranks for p in found), strict=True):
        assert (row > row[token] + 4e-4).sum() < rank <= 1 + (row > row[token] - 4e-4).sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [5, 100])
def test_all_rows_are_scored_in_ragged_steps(family, chunk, checkpoint):
    path = checkpoint(family)
    driver = Driver(Engine.load(path, blocks=48, block_tokens=8, host_blocks=0, max_seqs=4), 48, 8)
    found: dict[str, list[PromptLogprobs]] = {str(i): [] for i in range(len(PROMPTS))}
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, 4, sampling=Sampling(temperature=0.0, prompt_logprobs=TOP))
        step = Step(0)
        driver.admit(step, str(i))
        last = False
        while not last:
            last = driver.chunk(step, str(i), tokens=chunk)
            driver.decode(step)
            result = driver.run(step)
            for name, part in (result.prompt_logprobs or {}).items():
                found[name].append(part)
            step = Step(0)
        driver.join(step, str(i))
        driver.decode(step)
        driver.run(step)
    driver.decode_until_done()
    for i, prompt in enumerate(PROMPTS):
        check(found[str(i)], path, prompt)
    assert result.prompt_logprobs is None, "one token has none before it"


def test_asking_changes_no_output_and_the_cache_skips_nothing_that_is_wanted(checkpoint):
    path = checkpoint("llama")
    prompt = PROMPTS[0]
    sizes = {"blocks": 40, "block_tokens": 8}
    replica = build_replica(max_sequence_tokens=256, max_seqs=4, token_budget=16, **sizes)
    engine = Engine.load(path, max_seqs=4, host_blocks=0, **sizes)
    outputs: dict[str, list[int]] = {}
    found: dict[str, list[PromptLogprobs]] = {}
    cached: dict[str, int] = {}
    for name, wanted in (("plain", None), ("first", TOP), ("again", TOP), ("cached", None)):
        request = Request(
            id=name, prompt=tuple(prompt), max_tokens=6, sampling=Sampling(temperature=0.0, prompt_logprobs=wanted)
        )
        engine.add(request)
        replica.submit(request, 0.0)
        while (step := replica.plan(0.0)) is not None:
            result = engine.run(step)
            cached |= {one.id: one.cached_tokens for one in step.admit}
            for id, part in (result.prompt_logprobs or {}).items():
                found.setdefault(id, []).append(part)
            for id, token in result.tokens.items():
                outputs.setdefault(id, []).append(token)
            replica.commit(step, result, 0.0)
            replica.check()
    assert len({tuple(one) for one in outputs.values()}) == 1
    assert cached == {"plain": 0, "first": 0, "again": 0, "cached": 32}
    assert found.keys() == {"first", "again"}
    for parts in found.values():
        assert len(parts) > 1
        check(parts, path, prompt)
