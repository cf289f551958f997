"""A trace's requests as the engine wants them: with token ids, options, and clients who leave in mid-answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from penstock.control.request import Request, Sampling
from penstock.runtime.paced import Arrival
from penstock.workload.prompts import IdPrompts, Vocabulary
from penstock.workload.trace import Trace

SYSTEM_PROMPTS: Final = 4
_MIX, _PREFIX = 0x4D1, 0x9F3


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """How a trace becomes requests. Everything follows from `seed`; lengths and times are the trace's."""

    seed: int = 0
    shared: float = 0.0
    """Share of the prompts that begin with one of four common prefixes, beside what the trace itself shares."""
    shared_tokens: int = 128
    cancelled: float = 0.0
    """Share of clients who leave before the end."""
    patience_s: float = 0.5
    """Mean time until they do; exponential."""
    stop_ids: tuple[int, ...] = ()
    """For every second request: it may end before its max_tokens then."""
    temperature: float = 1.0
    tenants: int = 3
    priorities: int = 3

    def arrivals(self, trace: Trace, vocab_size: int) -> list[Arrival]:
        """One for each request of the trace, ids r0, r1, ... in its order."""
        prompts = IdPrompts(Vocabulary.of_size(vocab_size), self.seed, trace.block_tokens)
        common = IdPrompts(prompts.vocabulary, self.seed ^ _PREFIX, self.shared_tokens)
        mix = np.random.default_rng([self.seed, _MIX])
        found = []
        for index, row in enumerate(trace.requests):
            prompt = prompts.make(index, row)
            # Drawn for every request, so that a change of one share leaves the others' draws as they were.
            shares, which, leaves, patience = mix.random(4)
            if shares < self.shared:
                block = int(which * SYSTEM_PROMPTS)
                prompt = (common.make(0, replace(row, prefix_blocks=(block,)))[: self.shared_tokens] + prompt)[
                    : row.prompt_tokens
                ]
            sampling = Sampling(
                temperature=self.temperature, seed=index, stop_ids=self.stop_ids if index % 2 else ()
            )  # fmt: skip
            request = Request(
                id=f"r{index}", prompt=tuple(prompt), max_tokens=row.output_tokens, tenant=f"t{index % self.tenants}",
                priority=index % self.priorities, sampling=sampling,
            )  # fmt: skip
            gone = row.arrival_s - self.patience_s * float(np.log1p(-patience)) if leaves < self.cancelled else None
            found.append(Arrival(row.arrival_s, request, gone))
        return found
