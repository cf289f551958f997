"""Prompt log-probabilities reach the reader whole and once, also when the worker dies in the middle of the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.control.request import Request, Sampling
from penstock.control.step import PromptLogprobs
from penstock.runtime import fingerprint as fingerprints
from penstock.runtime.service import Service
from penstock.runtime.stream import Stream

Make = Callable[..., Any]


def request(name: str) -> Request:
    return Request(
        id=name, prompt=tuple(range(5, 105)), max_tokens=5, sampling=Sampling(temperature=0.0, prompt_logprobs=2)
    )


async def scored(service: Service, name: str) -> PromptLogprobs:
    outputs = [output async for output in service.generate(request(name))]
    (found,) = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
    assert outputs[0].prompt_logprobs is found
    assert outputs[-1].cached_tokens == 0
    return found


@pytest.mark.parametrize("kill_at_step", [None, 4, 9])
def test_a_prompt_is_scored_whole_and_once(
    deployment: Make, worker: Make, checkpoint: Path, kill_at_step: int | None
) -> None:
    """100 tokens, 16 a step: step 4 is in the middle of the prompt, step 9 after it."""
    here = deployment({"model.path": str(checkpoint), "policy.token_budget": 16})

    async def body(step: int | None) -> list[PromptLogprobs]:
        options = {} if step is None else {"kill_at_step": step}
        service = await Service.start(here, command=worker(engine="real", **options))
        async with asyncio.timeout(240):
            found = [await scored(service, "first"), await scored(service, "second")]
        assert service.restarts == (step is not None)
        await service.close()
        return found

    first, second = asyncio.run(body(kill_at_step))
    assert first.start == 1
    assert len(first.chosen) == len(first.ranks) == len(first.top) == 99
    assert first.ranks == second.ranks
    assert first.chosen == pytest.approx(second.chosen, abs=1e-5)


def test_parts_that_come_again_are_taken_once() -> None:
    def part(start: int, count: int) -> PromptLogprobs:
        at = range(start, start + count)
        return PromptLogprobs(start, [-float(i) for i in at], list(at), [((i, -float(i)),) for i in at])

    async def body() -> PromptLogprobs | None:
        stream = Stream(request("a"), 0.0)
        for start, count in ((1, 10), (11, 5), (1, 10), (1, 12), (13, 8), (21, 79)):
            stream.score(part(start, count))
        stream.push(7, None, 1.0)
        stream.score(part(1, 99))  # computed once more after an eviction: the reader has it
        return (await stream.next()).prompt_logprobs

    assert asyncio.run(body()) == part(1, 99)


def test_the_fingerprint_changes_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprints.fingerprint("0f" * 6, dtype="float32", kernels="native")
    monkeypatch.setattr(fingerprints, "_version", lambda: "another")
    assert fingerprints.fingerprint("0f" * 6, dtype="float32", kernels="native") != before
