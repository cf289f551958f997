"""A bench for faults: the real worker and engine, faults at places that a test names, and the books at the end."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.control.request import Request, Sampling
from penstock.control.step import TokenLogprobs
from penstock.deployment import Deployment
from penstock.runtime.launch import Child, Forks, OnMark
from penstock.runtime.service import Service

PREFIX = tuple(range(40, 76))
SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "seeded": Sampling(temperature=0.8, top_p=0.9, seed=11),
    "no seed": Sampling(temperature=1.0),
    "penalties": Sampling(temperature=1.0, seed=5, frequency_penalty=0.7, repetition_penalty=1.1, presence_penalty=0.3),
    "logprobs": Sampling(temperature=0.7, top_k=40, logprobs=2, seed=3),
    "late stop": Sampling(temperature=1.0, min_p=0.01, seed=9, min_tokens=12, stop_ids=tuple(range(0, 256, 3))),
}


Fault = dict[str, Any]
OfWorker = Fault | list[Fault]
"""What one worker has (faulty_worker.py)."""


def requests() -> list[Request]:
    """Two of each kind: one with a prefix that all of those share, one without."""
    return [
        Request(id=f"{name} {i}", prompt=(*(PREFIX if i else ()), *range(5 + n, 30 + n)), max_tokens=26 + n, sampling=s)
        for n, (name, s) in enumerate(SAMPLINGS.items())
        for i in range(2)
    ]


@dataclass
class Served:
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    finished: str | None = None


class Shared:
    """A fork server that outlives the services that use it."""

    def __init__(self, forks: Forks) -> None:
        self.forks = forks

    async def launch(self, link: socket.socket, on_mark: OnMark) -> Child:
        return await self.forks.launch(link, on_mark)

    async def close(self) -> None:
        return


class Bench:
    """One event loop and one fork server for all tests of a file."""

    seeds = itertools.count(1)

    def __init__(self, directory: Path, checkpoint: Path) -> None:
        self.script, self.begun, self.checkpoint = directory / "script.json", directory / "begun", checkpoint
        self.runner = asyncio.Runner()
        self.forks = Forks((sys.executable, str(Path(__file__).with_name("faulty_worker.py")), str(self.script)))

    def deployment(self, **overrides: Any) -> Deployment:
        small = {"memory.kv_bytes": "4MiB", "policy.max_seqs": 8, "policy.token_budget": 32, "hardware.threads": 1}
        return Deployment.load(None, {**small, "model.path": str(self.checkpoint), **overrides})

    @asynccontextmanager
    async def service(self, deployment: Deployment, *faults: OfWorker) -> AsyncIterator[Service]:
        Bench.seeds = itertools.count(1)
        shutil.rmtree(self.begun, ignore_errors=True)
        self.begun.mkdir()
        self.script.write_text(json.dumps({"faults": faults, "begun": str(self.begun)}))
        service = await Service.start(deployment, launcher=Shared(self.forks))
        try:
            yield service
        finally:
            await service.close()

    def run(self, body: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(240):  # the first of all may have to compile the kernels
                return await body

        return self.runner.run(bounded())

    def serve(self, deployment: Deployment, *faults: OfWorker) -> dict[str, Served]:
        """All requests at once; every fault strikes once, and nothing is held at the end."""

        async def body() -> dict[str, Served]:
            async with self.service(deployment, *faults) as service:
                found = await asyncio.gather(*(served(service, one) for one in requests()))
                self.assert_struck(service, *faults)
                await idle(service)
                return {one.id: each for one, each in zip(requests(), found, strict=True)}

        found: dict[str, Served] = self.run(body())
        return found

    def struck(self) -> int:
        """How many faults have come about so far."""
        return len(list(self.begun.glob("struck*")))

    async def until_struck(self, faults: int) -> None:
        while self.struck() < faults:
            await asyncio.sleep(0.005)

    def assert_struck(self, service: Service, *faults: OfWorker) -> None:
        """All faults came about, and each that ended a worker cost one.

        A worker that was stopped is kept if it makes a step as soon as it is woken, and otherwise replaced.
        """
        deeds = [one["do"] for fault in faults for one in (fault if isinstance(fault, list) else [fault])]
        ends = [deed for deed in deeds if deed != "stop"]
        assert self.struck() == len(deeds)
        assert len(list(self.begun.glob("worker*"))) == service.restarts + 1
        assert service.restarts >= len(ends)
        assert service.restarts == len(ends) or ends != deeds


async def served(service: Service, request: Request) -> Served:
    result = Served([], [])
    async for output in service.generate(request):
        result.tokens += output.tokens
        result.logprobs += output.logprobs or ()
        result.finished = output.finished
    return result


async def idle(service: Service) -> None:
    """The worker that is left has ended everything and holds no block."""
    while service.statistics.running or service.statistics.waiting or not service.statistics.total_blocks:
        await asyncio.sleep(0.005)
    now = service.statistics
    assert (now.held_blocks, now.swapped, now.stalled, service.in_flight) == (0, 0, 0, 0)
    assert now.free_blocks + now.cached_blocks == now.total_blocks
    assert service.admission.requests == 0


def assert_same(found: dict[str, Served], wanted: dict[str, Served]) -> None:
    for id, one in wanted.items():
        assert found[id].tokens == one.tokens, id
        assert found[id].finished == one.finished
        assert [logprobs.chosen for logprobs in found[id].logprobs] == pytest.approx(
            [logprobs.chosen for logprobs in one.logprobs], abs=1e-4
        )
