"""Native calls that cannot be interrupted, in a thread that is given up when one takes too long."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Bounded:
    """One thread, and another in its place once it is stuck. Not thread-safe: one caller."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.given_up = 0
        """Threads that were stuck; each ends with its call."""
        self._thread = self._new()

    def start(self, work: Callable[[], Result]) -> Future[Result]:
        """Begin `work`."""
        return self._thread.submit(work)

    def wait(self, running: Future[Result], limit_s: float) -> Result:
        """Its result. Raises TimeoutError after `limit_s`; the thread is left alone with it then."""
        try:
            return running.result(limit_s)
        except TimeoutError:
            if running.done():
                return running.result()
            self.given_up += 1
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = self._new()
            raise

    def close(self) -> None:
        """No more work is taken."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _new(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix=self._name)
