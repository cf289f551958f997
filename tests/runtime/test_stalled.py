"""What /health looks at: the time without a step while work waits, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from penstock.runtime.service import Service
from penstock.testing import expected_output

from .test_service import VOCABULARY, request, run, tokens

Make = Callable[..., Any]


def test_it_grows_while_no_step_ends_and_is_none_without_work(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        made = deployment({"server.step_deadline": "600s"})
        service = await Service.start(made, command=worker(hang_at_step=5, fresh=True))
        assert service.stalled_s == 0.0
        await asyncio.sleep(0.05)
        came = time.monotonic()
        running = asyncio.create_task(tokens(service, request()))
        await asyncio.sleep(0)
        stalled_s = service.stalled_s
        assert stalled_s <= time.monotonic() - came, "it counts from when the work came, not from the last step before"
        async with asyncio.timeout(60):
            while service.stalled_s < 0.5:
                await asyncio.sleep(0.05)
        before = service.stalled_s
        await asyncio.sleep(0.2)
        assert service.stalled_s > before
        assert service.state == "ready", "so it is for /health to say"
        service._supervisor._worker.kill()  # type: ignore[union-attr]
        assert await running == expected_output(request(), VOCABULARY)
        assert service.stalled_s == 0.0
        await service.close()

    run(body())


def test_a_step_after_the_other_leaves_little(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker(step_s=0.05))
        running = asyncio.create_task(tokens(service, request(max_tokens=20)))
        seen = []
        while not running.done():
            seen.append(service.stalled_s)
            await asyncio.sleep(0.02)
        assert await running == expected_output(request(max_tokens=20), VOCABULARY)
        assert sorted(seen)[len(seen) // 2] < 0.5, "the work takes a second or more, and none of it counts for long"
        await service.close()

    run(body())
