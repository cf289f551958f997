"""Open loop in this process: requests arrive at their times, whatever the engine is doing, and some are given up.

    for turn in Paced(built, arrivals, observer=recorder).run(): ...

Between two steps this thread does what the worker's control thread does beside them (runtime/worker.py): it hands over
what has arrived while the step ran, then the step's result. So control sees the same order of events.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from penstock.control.request import Request
from penstock.control.step import Step
from penstock.errors import InvalidRequest
from penstock.runtime.build import Built
from penstock.runtime.local import Loop, Observer, Turn


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of an open loop; seconds since its start."""

    at_s: float
    request: Request
    cancel_s: float | None = None
    """When its client leaves, if it has not ended before."""


class Paced:
    """One run over `arrivals`, in any order. `origin` is the clock's time 0 of the run, set when it starts."""

    def __init__(self, built: Built, arrivals: Iterable[Arrival], *, observer: Observer | None = None) -> None:
        self.origin = 0.0
        self.refused: list[str] = []
        """Ids of requests that can never run here."""
        self._executor = built.executor
        self._steps: deque[Step] = deque()
        self._loop = Loop(
            built.replica, built.executor, clock=time.monotonic, plan_ahead=built.plan_ahead,
            launch=self._steps.append, observer=observer,
        )  # fmt: skip
        self._due: list[tuple[float, int, Request | str]] = []
        for arrival in arrivals:
            self._due.append((arrival.at_s, len(self._due), arrival.request))
            if arrival.cancel_s is not None:
                self._due.append((arrival.cancel_s, len(self._due), arrival.request.id))
        heapq.heapify(self._due)

    def run(self) -> Iterator[Turn]:
        """Turns as they end, until everything has arrived and is done."""
        self.origin = time.monotonic()
        while True:
            self._take()
            self._loop.advance()
            if self._steps:
                step = self._steps.popleft()
                started = time.monotonic()
                result = self._executor.run(step)
                ended = time.monotonic()
                self._take()
                yield self._loop.done(result, started, ended)
            elif self._due:
                time.sleep(max(0.0, self.origin + self._due[0][0] - time.monotonic()))
            else:
                self._loop.replica.take_updates()
                return

    def _take(self) -> None:
        now = time.monotonic() - self.origin
        while self._due and self._due[0][0] <= now:
            what = heapq.heappop(self._due)[2]
            if isinstance(what, str):
                self._loop.cancel(what)
                continue
            try:
                self._loop.submit(what)
            except InvalidRequest:
                self.refused.append(what.id)
