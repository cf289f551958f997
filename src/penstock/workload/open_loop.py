"""Open loop: requests arrive by a law of their own, whatever becomes of the earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat, takewhile, tee
from itertools import count as counting
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from penstock.workload.arrivals import Arrivals
from penstock.workload.bodies import Bodies, BodyColumns, BodySource
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
    follows: ClassVar[bool] = False

    @property
    def block_tokens(self) -> int:
        return self.bodies.block_tokens

    @property
    def requests(self) -> int | None:
        return self.count if self.duration_s is None else None

    def initial(self) -> Iterator[TimedRequest]:
        # No line of Python runs for a single request: that would take longer than many a simulated step.
        stream = self.law.stream(np.random.default_rng([self.bodies.seed, _ARRIVALS]))
        times: Iterator[float] = chain.from_iterable(batch.tolist() for batch in stream)
        if self.duration_s is not None:
            times = takewhile(float(self.duration_s).__gt__, times)
        numbers: Iterable[int] = counting() if self.count is None else range(self.count)
        prompts, outputs, prefixes, tenants, priorities, cuts = _columns(self.bodies.batches())
        return map(
            TimedRequest, numbers, times, prompts, outputs, prefixes, repeat(None), repeat(0), tenants, priorities, cuts
        )

    def after(self, request: TimedRequest, finished_s: float) -> None:
        return None


def _columns(batches: Iterator[BodyColumns]) -> list[Iterator[Any]]:
    """Each field as one stream. All are read in step, so no batch is kept longer than it is needed."""
    return [chain.from_iterable(map(itemgetter(at), copy)) for at, copy in enumerate(tee(batches, 6))]


def open_loop_source(law: Arrivals, prompt: Lengths, output: Lengths, *, count: int, seed: int = 0) -> OpenLoop:
    """The plain case: `count` requests by a law of arrival and two laws of lengths."""
    return OpenLoop(law=law, bodies=Bodies(lengths=Workload(prompt=prompt, output=output), seed=seed), count=count)
