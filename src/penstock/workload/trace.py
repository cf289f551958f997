"""Request traces: who asked when, how much went in and came out.

Reads Azure 2023 and 2024, BurstGPT, Mooncake, LLMServingSim and Vidur files (see `formats`). A trace is immutable;
`fit`, `at_speed`, `at_rate`, `first` and `within` give a changed one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from penstock.errors import BadInput
from penstock.workload.formats import read
from penstock.workload.formats.jsonl import MOONCAKE_BLOCK_TOKENS as MOONCAKE_BLOCK_TOKENS
from penstock.workload.formats.row import TraceRequest as TraceRequest

MOONCAKE_TICK_S: Final = 3.0
"""Clock of the Mooncake conversation trace: 10 requests share one tick, an artefact of its publication."""
FIT_QUANTILE: Final = 0.999


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival; the first arrives at 0."""

    name: str
    requests: tuple[TraceRequest, ...]
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    """Tokens one prefix block stands for."""
    notes: tuple[str, ...] = ()
    """What was done to the original, in words: printed with every result."""

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def span_s(self) -> float:
        return self.requests[-1].arrival_s if self.requests else 0.0

    @property
    def rate(self) -> float:
        """Mean requests per second; 0 of fewer than two requests or no time."""
        return (len(self.requests) - 1) / self.span_s if self.span_s > 0 else 0.0

    def _with(self, requests: Iterable[TraceRequest], note: str, *, block_tokens: int | None = None) -> Trace:
        return replace(
            self,
            requests=tuple(requests),
            notes=(*self.notes, note),
            block_tokens=self.block_tokens if block_tokens is None else block_tokens,
        )

    def first(self, count: int) -> Trace:
        """The first `count` requests."""
        if count >= len(self):
            return self
        return self._with(self.requests[:count], f"first {count} of {len(self)} requests")

    def within(self, seconds: float) -> Trace:
        """The requests that arrive before `seconds`."""
        kept = tuple(request for request in self.requests if request.arrival_s < seconds)
        return self if len(kept) == len(self) else self._with(kept, f"first {seconds:g} s ({len(kept)} requests)")

    def at_speed(self, factor: float) -> Trace:
        """Time runs `factor` times as fast; lengths stay."""
        _positive("speed", factor)
        if factor == 1:
            return self
        moved = (replace(request, arrival_s=request.arrival_s / factor) for request in self.requests)
        return self._with(moved, f"arrivals {factor:.4g} x as fast")

    def at_rate(self, requests_per_s: float) -> Trace:
        """Arrivals stretched to this mean rate; their pattern stays. Raises BadInput when the trace has no rate."""
        _positive("rate", requests_per_s)
        if self.rate == 0:
            raise BadInput(
                field="rate", value=requests_per_s, why=f"{self.name} has no time between its requests to stretch",
                remedy="take more requests, or --dequantise for a trace with a coarse clock",
            )  # fmt: skip
        return self.at_speed(requests_per_s / self.rate)

    def fit(self, context_tokens: int) -> Trace:
        """Lengths scaled so that prompt + output of every request fits `context_tokens`.

        One factor for all lengths, in and out, so ratios and the shape of the distribution stay: context_tokens over
        the 99.9th percentile of prompt + output, never above 1. Lengths are rounded, at least 1. The one request in a
        thousand that is still too long loses the front of its prompt (and, past that, output). Prefix blocks shrink by
        the same factor.
        """
        if context_tokens < 2:
            raise BadInput(
                field="scale-lengths-to", value=context_tokens, why="a prompt and an output need a token each",
                remedy="2 or more",
            )  # fmt: skip
        if not self.requests:
            return self
        totals = [request.prompt_tokens + request.output_tokens for request in self.requests]
        factor = min(1.0, context_tokens / float(np.quantile(totals, FIT_QUANTILE)))
        clipped = 0
        block_tokens = max(1, round(self.block_tokens * factor))

        def scaled() -> Iterator[TraceRequest]:
            nonlocal clipped
            for request in self.requests:
                output = min(max(1, round(request.output_tokens * factor)), context_tokens - 1)
                prompt = max(1, round(request.prompt_tokens * factor))
                clipped += prompt + output > context_tokens
                prompt = min(prompt, context_tokens - output)
                yield replace(
                    request,
                    prompt_tokens=prompt,
                    output_tokens=output,
                    prefix_blocks=request.prefix_blocks[: -(-prompt // block_tokens)],
                )

        requests = tuple(scaled())
        note = f"lengths x {factor:.4g} to fit {context_tokens} tokens ({clipped} clipped)"
        return self._with(requests, note, block_tokens=block_tokens)

    def dequantised(self, tick_s: float, seed: int) -> Trace:
        """Requests that share a time stamp spread evenly at random over the next `tick_s`; singletons stay put."""
        _positive("tick", tick_s)
        generator = np.random.default_rng([seed, 0x71C4])
        shared = Counter(request.arrival_s for request in self.requests)
        moved = [
            replace(request, arrival_s=request.arrival_s + float(generator.uniform(0, tick_s)))
            if shared[request.arrival_s] > 1
            else request
            for request in self.requests
        ]
        return self._with(_from_zero(moved), f"time stamps spread over ticks of {tick_s:g} s")


def read_trace(
    path: Path, *, dequantise: bool = False, seed: int = 0, format_name: str = "auto", limit: int | None = None
) -> Trace:
    """Read a trace file, plain or gzipped: of `formats.NAMES` the one that its content tells.

    `limit` stops the reading after as many requests: the week-long traces have tens of millions.

    Raises:
        BadInput: unreadable file, unknown format, or a bad row; names file, line, column and what would be right.
    """
    requests, form = read(path, format_name, limit)
    notes = ("as recorded",) if limit is None or len(requests) < limit else (f"the first {limit} requests of the file",)
    trace = Trace(path.name, _from_zero(requests), form.block_tokens, notes)
    return trace.dequantised(MOONCAKE_TICK_S, seed) if dequantise else trace


def _from_zero(requests: list[TraceRequest]) -> tuple[TraceRequest, ...]:
    ordered = sorted(requests, key=lambda request: request.arrival_s)
    origin = ordered[0].arrival_s
    return tuple(replace(request, arrival_s=round(request.arrival_s - origin, 7)) for request in ordered)


def _positive(field: str, value: float) -> None:
    if not value > 0 or value == float("inf"):
        raise BadInput(field=field, value=value, why="it must be a positive number", remedy="such as 1")
