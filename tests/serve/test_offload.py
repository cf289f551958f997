"""Work whose cost clients choose: off the loop, bounded in time and in number."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from penstock.errors import InvalidRequest, Overloaded
from penstock.serve.offload import INLINE_CHARACTERS, Offload

BIG = INLINE_CHARACTERS + 1


def test_small_work_runs_here_and_big_work_in_a_thread() -> None:
    async def main() -> list[bool]:
        offload = Offload(max_pending=1)
        here = threading.get_ident()
        return [
            await offload.run(lambda: threading.get_ident() == here, characters=size, field="prompt")
            for size in (1, BIG)
        ]

    assert asyncio.run(main()) == [True, False]


def test_work_that_takes_too_long_is_the_callers_fault() -> None:
    go_on = threading.Event()

    async def main() -> None:
        try:
            await Offload(max_pending=1, limit_s=0.01).run(go_on.wait, characters=BIG, field="prompt")
        finally:
            go_on.set()

    with pytest.raises(InvalidRequest, match="prompt"):
        asyncio.run(main())


def test_a_server_that_stood_still_blames_no_prompt() -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        there = threading.Event()
        loop.call_later(0.01, time.sleep, 1.4)  # for the event loop the same as a stop, of which the work knows nothing
        loop.call_later(0.02, there.set)
        return await Offload(max_pending=1, limit_s=0.3).run(lambda: there.wait(20), characters=BIG, field="prompt")

    assert asyncio.run(main())


def test_what_waits_for_a_thread_is_bounded() -> None:
    go_on = threading.Event()

    async def main() -> None:
        offload = Offload(max_pending=1)
        first = asyncio.create_task(offload.run(go_on.wait, characters=BIG, field="prompt"))
        await asyncio.sleep(0)
        try:
            with pytest.raises(Overloaded):
                await offload.run(go_on.wait, characters=BIG, field="prompt")
        finally:
            go_on.set()
        assert await first
        assert await offload.run(go_on.wait, characters=BIG, field="prompt"), "the place is free again"

    asyncio.run(main())


def test_errors_of_the_work_come_through() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(Offload(max_pending=1).run(fail, characters=BIG, field="prompt"))


def test_a_refusal_says_when_to_come_back_from_what_work_took_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, now = threading.Event(), 0.0
    monkeypatch.setattr("penstock.serve.offload.time", SimpleNamespace(monotonic=lambda: now))

    def take(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def main() -> tuple[float, float]:
        offload, waits = Offload(max_pending=1), []
        for seconds in (0.0, 0.3):
            for _ in range(3):
                await offload.run(partial(take, seconds), characters=BIG, field="prompt")
            go_on.clear()
            first = asyncio.create_task(offload.run(go_on.wait, characters=BIG, field="prompt"))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as refused:
                await offload.run(go_on.wait, characters=BIG, field="prompt")
            go_on.set()
            await first
            waits.append(refused.value.retry_after_s)
        return waits[0], waits[1]

    quick, slow = asyncio.run(main())
    assert quick < slow < 1
