"""Contract: a worker killed in the middle changes no token, greedy or sampled (real engine, small checkpoint)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.control.request import Request, Sampling
from penstock.runtime.offline import generate
from penstock.runtime.service import Service

Make = Callable[..., Any]

SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "seeded": Sampling(temperature=0.8, top_p=0.9, seed=11),
    "penalties": Sampling(temperature=1.0, seed=5, frequency_penalty=0.7, repetition_penalty=1.1),
    "logprobs": Sampling(temperature=0.0, logprobs=2),
}


def requests() -> list[Request]:
    return [
        Request(id=f"{name} {i}", prompt=tuple(range(5 + i, 30 + 9 * i)), max_tokens=24 + i, sampling=sampling)
        for i in range(2)
        for name, sampling in SAMPLINGS.items()
    ]


async def served(service: Service, request: Request) -> tuple[list[int], int]:
    tokens: list[int] = []
    logprobs = 0
    async for output in service.generate(request):
        tokens += output.tokens
        logprobs += len(output.logprobs or ())
    return tokens, logprobs


@pytest.mark.parametrize("kill_at_step", [2, 15])
def test_tokens_equal_the_undisturbed_run_when_the_worker_is_killed(
    deployment: Make, worker: Make, checkpoint: Path, kill_at_step: int
) -> None:
    here = deployment({"model.path": str(checkpoint)})
    undisturbed = {result.id: result.tokens for result in generate(here, requests())}

    async def body() -> dict[str, tuple[list[int], int]]:
        service = await Service.start(here, command=worker(engine="real", kill_at_step=kill_at_step))
        async with asyncio.timeout(240):
            found = await asyncio.gather(*(served(service, request) for request in requests()))
        assert service.restarts == 1
        await service.close()
        return {request.id: one for request, one in zip(requests(), found, strict=True)}

    found = asyncio.run(body())
    assert {id: tokens for id, (tokens, _) in found.items()} == undisturbed
    assert {id: count for id, (_, count) in found.items() if count} == {
        id: len(tokens) for id, tokens in undisturbed.items() if id.startswith("logprobs")
    }
