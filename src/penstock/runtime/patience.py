"""A time limit for what other processes do, in time that this one was there to see it.

A front end that was stopped (SIGSTOP, a debugger, a frozen container) wakes up with every timer run out, and what the
others did meanwhile unread. Held against the clock, they would be late; they are not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

TICK_S: Final = 1.0
STOOD_STILL_S: Final = 1.0
"""An event loop that wakes up so much later than it asked for did not run; a busy one is late by less."""


@asynccontextmanager
async def patience(seconds: float | None) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but time for which this process stood still does not count. None: without end.

    Raises TimeoutError: the block took longer.
    """
    if seconds is None:
        yield
        return
    async with asyncio.timeout(None) as limit:
        counting = asyncio.create_task(_count_down(limit, seconds), name="penstock patience")
        try:
            yield
        finally:
            counting.cancel()


async def _count_down(limit: asyncio.Timeout, seconds: float) -> None:
    left_s = seconds
    while left_s > 0:
        tick_s = min(left_s, TICK_S)
        began = time.monotonic()
        await asyncio.sleep(tick_s)
        slept_s = time.monotonic() - began
        if slept_s > tick_s + STOOD_STILL_S:
            left_s = max(left_s, min(TICK_S, seconds))  # first let what arrived meanwhile be read
        else:
            left_s -= slept_s
    limit.reschedule(asyncio.get_running_loop().time())
