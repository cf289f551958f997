"""A client's own deadline, and the prefix cache that an operator resets: over the real service and a worker process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from penstock.control.request import Request, Sampling
from penstock.errors import DeadlinePassed, InvalidRequest, Overloaded
from penstock.runtime.facts import Output, TimeBounds
from penstock.runtime.service import Service

Make = Callable[..., Any]


def request(id: str, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 4) -> Request:
    return Request(id=id, prompt=prompt, max_tokens=max_tokens, sampling=Sampling(temperature=0.0))


async def collect(service: Service, asked: Request, bounds: TimeBounds | None = None) -> list[Output]:
    more = (bounds,) if bounds is not None else ()
    async with aclosing(service.generate(asked, *more)) as stream:  # type: ignore[type-var]
        return [output async for output in stream]


def test_a_deadline_that_passes_before_the_first_token_ends_the_request_and_frees_its_place(
    deployment: Make, worker: Make
) -> None:
    async def body() -> None:
        service = await Service.start(deployment({"server.step_deadline": 60}), command=worker(hang_at_step=1))
        with pytest.raises(DeadlinePassed) as passed:
            await collect(service, request("late"), TimeBounds(deadline_s=0.3))
        assert service.restarts == 0, "long before the step's own deadline"
        assert passed.value.retry_after_s > 0
        assert service.admission.requests == 0
        assert service.in_flight == 0
        await service.close()

    asyncio.run(body())


def test_a_deadline_that_passes_after_the_first_token_changes_nothing(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        async with aclosing(
            service.generate(request("in time", max_tokens=20), TimeBounds(deadline_s=100.0))
        ) as stream:
            outputs = [await anext(stream)]  # type: ignore[type-var]
            service._too_late(service._streams["in time"], 100.0)
            outputs += [output async for output in stream]
        assert outputs[-1].finished == "length"
        assert sum(len(output.tokens) for output in outputs) == 20
        await service.close()

    asyncio.run(body())


def test_what_is_refused_is_remembered_by_what_it_asks_and_not_by_its_id(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment({"server.queue.max_requests": 1}), command=worker())
        async with aclosing(service.generate(request("first"))) as stream:
            first = asyncio.ensure_future(anext(stream))  # type: ignore[type-var]
            await asyncio.sleep(0)
            told = []
            for id, prompt in (("a", (5, 6)), ("b", (7, 8)), ("a again", (5, 6))):
                with pytest.raises(Overloaded) as refused:
                    await collect(service, request(id, prompt))
                told.append(refused.value.retry_after_s)
            assert told[2] < told[0], "the rest of its time, and no new place at the end of the line"
            await first
        await service.close()

    asyncio.run(body())


def test_after_a_reset_a_prompt_is_computed_anew(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        prompt = tuple(range(20))
        cached = []
        for number in range(4):
            if number == 2:
                service.reset_prefix_cache()
            cached.append((await collect(service, request(str(number), prompt)))[-1].cached_tokens)
        assert cached == [0, 16, 0, 16]
        await service.close()

    asyncio.run(body())


def test_a_server_that_records_its_schedule_refuses_to_reset(deployment: Make, worker: Make, tmp_path: Any) -> None:
    async def body() -> None:
        recorded = deployment({"server.record": str(tmp_path / "run.jsonl")})
        service = await Service.start(recorded, command=worker())
        with pytest.raises(InvalidRequest, match=r"server\.record"):
            service.reset_prefix_cache()
        await service.close()

    asyncio.run(body())
