"""Open loop: requests arrive by a law of their own, whatever becomes of the earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from penstock.workload.arrivals import Arrivals
from penstock.workload.bodies import Bodies, BodySource
from penstock.workload.lengths import Lengths
from penstock.workload.plan import Workload
from penstock.workload.source import TimedRequest

_ARRIVALS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """`count` requests, or those of `duration_s`, or whichever ends first, as do the bodies themselves."""

    law: Arrivals
    bodies: BodySource
    count: int | None = None
    duration_s: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def block_tokens(self) -> int:
        return self.bodies.block_tokens

    @property
    def requests(self) -> int | None:
        return self.count if self.duration_s is None else None

    def initial(self) -> Iterator[TimedRequest]:
        end = float("inf") if self.duration_s is None else self.duration_s
        count = self.count
        bodies = self.bodies.draw()
        index = 0
        for batch in self.law.stream(np.random.default_rng([self.bodies.seed, _ARRIVALS])):
            for arrival_s in batch.tolist():
                if arrival_s >= end or index == count or (body := next(bodies, None)) is None:
                    return
                prompt, output, prefix, tenant, priority, cut = body
                yield TimedRequest(index, arrival_s, prompt, output, prefix, None, 0, tenant, priority, cut)
                index += 1

    def after(self, request: TimedRequest, finished_s: float) -> None:
        return None


def open_loop_source(law: Arrivals, prompt: Lengths, output: Lengths, *, count: int, seed: int = 0) -> OpenLoop:
    """The plain case: `count` requests by a law of arrival and two laws of lengths."""
    return OpenLoop(law=law, bodies=Bodies(lengths=Workload(prompt=prompt, output=output), seed=seed), count=count)
