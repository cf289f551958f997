"""A stage of load: which requests, when, and what each says. Made before the clock starts, sent by `drive`.

Stage = requests (lengths, times) + a pace (open loop by those times, or closed loop of N at once)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from penstock.errors import BadInput
from penstock.workload.arrivals import Arrivals
from penstock.workload.lengths import Bootstrap, Lengths, Tokens
from penstock.workload.trace import Trace, TraceRequest

_ARRIVALS, _PROMPTS, _OUTPUTS, _PAIRS = 1, 2, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked, apart from when. Lengths come from a trace's own rows, from its rows drawn anew, or from laws."""

    prompt: Lengths | None = None
    output: Lengths | None = None
    rows: Bootstrap | None = None
    context_tokens: int | None = None
    """No prompt + output beyond this: the prompt is cut."""

    def requests(self, count: int, seed: int) -> tuple[TraceRequest, ...]:
        """[count] requests with lengths only; all arrive at 0. Each purpose has its own generator from `seed`."""
        prompts, outputs = next(self.batches(seed, count))
        return tuple(TraceRequest(0.0, prompt, output) for prompt, output in zip(prompts, outputs, strict=True))

    def batches(self, seed: int, size: int) -> Iterator[tuple[list[int], list[int]]]:
        """(prompt tokens, output tokens) of `size` requests at a time, without end."""
        limit = self.context_tokens
        for prompts, outputs in self._lengths(seed, size):
            if limit is not None:
                outputs = np.minimum(outputs, limit - 1)
                prompts = np.minimum(prompts, limit - outputs)
            yield prompts.tolist(), outputs.tolist()

    def _lengths(self, seed: int, size: int) -> Iterator[tuple[Tokens, Tokens]]:
        if self.rows is not None:
            yield from self.rows.batches(size, np.random.default_rng([seed, _PAIRS]))
        if self.prompt is None or self.output is None:
            raise BadInput(
                field="lengths", value=None, why="a generated workload needs lengths",
                remedy="--input-tokens and --output-tokens, or --lengths-from a trace",
            )  # fmt: skip
        prompt_generator, output_generator = (
            np.random.default_rng([seed, purpose]) for purpose in (_PROMPTS, _OUTPUTS)
        )
        while True:
            yield self.prompt.draw(size, prompt_generator), self.output.draw(size, output_generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One run of load at one setting."""

    name: str
    requests: tuple[TraceRequest, ...]
    concurrency: int | None = None
    """Closed loop: this many at once, arrival times ignored. None: open loop, sent at their times whatever happens."""
    block_tokens: int = 512
    stop_after_s: float | None = None
    """Closed loop: send nothing more after this time and cut what still runs."""
    steady_s: float | None = None
    """Closed loop: likewise, but counted from when as many answers as users are there, so that the ramp is over."""
    requested_rate: float | None = None

    def chains(self) -> Iterator[list[int]]:
        """Indices of requests that must follow one another: the turns of a session, or single requests."""
        sessions: dict[int, list[int]] = {}
        for index, request in enumerate(self.requests):
            if request.session is None:
                yield [index]
            else:
                sessions.setdefault(request.session, []).append(index)
        yield from sessions.values()


def open_loop(requests: tuple[TraceRequest, ...], law: Arrivals, seed: int) -> tuple[TraceRequest, ...]:
    """The same requests at the law's times."""
    times = law.times(len(requests), np.random.default_rng([seed, _ARRIVALS])).tolist()
    return tuple(replace(request, arrival_s=time) for request, time in zip(requests, times, strict=True))


def replay(trace: Trace, *, name: str = "trace") -> Stage:
    """A trace as it is, open loop."""
    return Stage(
        name=name, requests=trace.requests, block_tokens=trace.block_tokens, requested_rate=trace.rate or None
    )  # fmt: skip


def conversations(
    requests: tuple[TraceRequest, ...], turns: int, context_tokens: int | None
) -> tuple[TraceRequest, ...]:
    """Every `turns` requests become one session: a turn's prompt is all that was said before, and its own new words.

    The stand-in for the earlier answers has their length, not their words. A session ends early where the next turn
    would not fit `context_tokens`.
    """
    made: list[TraceRequest] = []
    for session, begin in enumerate(range(0, len(requests), turns)):
        history = 0
        for request in requests[begin : begin + turns]:
            prompt = history + request.prompt_tokens
            if context_tokens is not None and history and prompt + request.output_tokens > context_tokens:
                break
            made.append(replace(request, prompt_tokens=prompt, session=session))
            history = prompt + request.output_tokens
    return tuple(made)
