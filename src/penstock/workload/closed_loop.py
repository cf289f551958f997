"""Closed loop: a fixed number of users, each with one request at a time and a pause before the next.

The load follows the system: a slow one is asked less. This is how most published benchmarks measure (a concurrency,
not a rate).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from penstock.workload.bodies import Body, BodySource
from penstock.workload.source import TimedRequest
from penstock.workload.think import NO_PAUSE, Think

_THINK = 21


@dataclass(slots=True, kw_only=True)
class ClosedLoop:
    """`users` at once from time 0 on, until `count` requests are made, `duration_s` is over or the bodies end."""

    users: int
    bodies: BodySource
    think: Think = NO_PAUSE
    count: int | None = None
    duration_s: float | None = None
    notes: tuple[str, ...] = ()
    _left: Iterator[Body] = field(init=False, repr=False)
    _made: int = field(init=False, default=0, repr=False)
    _pauses: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._left, self._made = self.bodies.draw(), 0
        self._pauses = np.random.default_rng([self.bodies.seed, _THINK])

    @property
    def block_tokens(self) -> int:
        return self.bodies.block_tokens

    @property
    def requests(self) -> int | None:
        return self.count if self.duration_s is None else None

    def initial(self) -> Iterator[TimedRequest]:
        self._start()
        for _ in range(self.users):
            request = self._next(0.0)
            if request is None:
                return
            yield request

    def after(self, request: TimedRequest, finished_s: float) -> TimedRequest | None:
        return self._next(self.think.next_s(request.arrival_s, finished_s, self._pauses))

    def _next(self, arrival_s: float) -> TimedRequest | None:
        over = self.duration_s is not None and arrival_s >= self.duration_s
        if over or self._made == self.count or (body := next(self._left, None)) is None:
            return None
        prompt, output, prefix, tenant, priority, cut = body
        made = TimedRequest(self._made, arrival_s, prompt, output, prefix, None, 0, tenant, priority, cut)
        self._made += 1
        return made
