"""Work whose cost a client chooses (templates, tokenising) leaves the event loop, and has a time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from penstock.errors import InvalidRequest, Overloaded
from penstock.runtime.patience import patience

INLINE_CHARACTERS: Final = 4_000
"""Below this a tokenizer is done sooner (about a millisecond) than a thread has answered under load."""
LIMIT_S: Final = 10.0
THREADS: Final = 2
MIN_RETRY_S: Final = 0.05
RECENT: Final = 0.2
"""Weight of the newest piece of work in what one takes."""

Result = TypeVar("Result")


class Offload:
    """A small pool of threads and a bounded queue before it."""

    def __init__(self, max_pending: int, limit_s: float = LIMIT_S) -> None:
        self._max_pending, self._limit_s = max_pending, limit_s
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="penstock-text")
        self._pending = 0
        self._work_s = 0.0
        """What one piece of work took of late."""

    async def run(self, work: Callable[[], Result], *, characters: int, field: str) -> Result:
        """`work()`, here if `characters` of input are few, else in a thread.

        Raises:
            InvalidRequest: it took longer than the limit; the thread is left to finish, its result is dropped.
            Overloaded: too much of it waits already.
            Whatever `work` raises.
        """
        if characters <= INLINE_CHARACTERS:
            return work()
        if self._pending >= self._max_pending:
            wait_s = max(MIN_RETRY_S, self._pending * self._work_s / THREADS)
            raise Overloaded(
                f"{self._pending} prompts wait to be tokenised, and {self._max_pending} may", retry_after_s=wait_s
            )
        self._pending += 1

        def timed() -> Result:
            started = time.monotonic()
            try:
                return work()
            finally:
                self._work_s += RECENT * (time.monotonic() - started - self._work_s)

        running = asyncio.get_running_loop().run_in_executor(self._pool, timed)
        running.add_done_callback(self._finished)
        try:
            async with patience(self._limit_s):
                return await asyncio.shield(running)
        except TimeoutError:
            running.cancel()
            raise InvalidRequest(
                field=field, value=f"{characters} characters", remedy="a shorter prompt, or token ids",
                why=f"template and tokenizer took longer than {self._limit_s:g} s",
            ) from None  # fmt: skip

    def _finished(self, running: asyncio.Future[Result]) -> None:
        self._pending -= 1
        if not running.cancelled():
            running.exception()  # looked at: whoever waited may have gone
