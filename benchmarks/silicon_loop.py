"""One engine under a closed loop, as serving benchmarks load it: so many requests are always under way.

A small model of three engines' schedulers, enough for requests of known lengths: steps are priced one by one where
prompts are in them and in stretches where only decodes are. Seconds, tokens.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from penstock.twin.load import StepLoad
from penstock.twin.operators import Experts, Gemm, LatentDecode, LatentPrefill, Operator
from penstock.twin.step_graph import StepGraph


@dataclass(frozen=True, slots=True)
class Rules:
    """How an engine fills its steps, from its documentation and the flags of the run."""

    policy: Literal["mixed", "prefill_first"]
    """mixed: decodes and prompts share a step (vLLM, TensorRT-LLM). prefill_first: a step of prompts only, whenever
    some wait (SGLang)."""
    budget: int
    """Tokens per step and attention group."""
    chunked: bool = True
    """Prompts may be cut to fit the budget."""
    most: int = 1 << 30
    """Sequences at once, over all groups."""
    lag: bool = True
    """The next step is planned while this one runs, so that who arrives meanwhile waits one step more."""
    poll: int = 1
    """Decode steps between two looks at the socket (SGLang's scheduler-recv-interval)."""
    reserve: float = 0.5
    """Share of a request's output that must fit beside all the rest when it is admitted; 1: nothing is ever evicted."""
    workers: int = 1
    """Processes that turn tokens into text: streaming is spread over them."""
    gather: int = 0
    """Steps that prompts wait for until each attention group can have one (TensorRT-LLM's attention_dp_config)."""
    memory: float = 0.9
    """Share of the device's memory the engine may use."""
    groups: int = 1
    """Attention groups, each with its own requests (attention data parallelism)."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the operator tables do not hold. One set per engine and system."""

    device: float = 1.0
    """Kernels inside an engine against kernels alone, in steps of decodes only."""
    prompt: float = 1.0
    """The same in steps with prompts, which are no captured graph and have other kernels."""
    step_s: float = 0.0
    """Between two steps."""
    launch_s: float = 0.0
    """The host's, for each kernel of a step with prompts; it shows where the device is done sooner."""
    request_s: float = 0.0
    """For each sequence in a step."""
    front_s: float = 0.0
    """HTTP, tokeniser, queues between processes, the client: from the request's sending to the scheduler, and back."""
    stream_s: float = 0.0
    """More of that per sequence that streams: each step's tokens go through the same processes."""
    read_s: float = 0.0
    """More of that per token of the prompt, which becomes text, travels and becomes ids."""


@dataclass(slots=True)
class Timing:
    """One finished request."""

    ttft: float
    tpot: float


class Steps(Protocol):
    """Seconds of steps: penstock.twin.step_price.StepPrice, or something around it."""

    graph: StepGraph

    def seconds(self, load: StepLoad) -> float:
        """Of any step."""

    def base(self, decoding: int, prompt: int, sampled: int) -> float:
        """Of the parts that know no context."""

    def line(self, decoding: int, context: int, bucket: int = 0) -> tuple[float, float, float, float]:
        """Decode attention near `context`: (from, to, seconds at from, slope)."""


def kernels_of(operator: Operator) -> int:
    """Launches of an operator in an engine. Quantised products quantise their input first; experts sort tokens,
    quantise, multiply twice, activate and add up; latent attention is norms, absorbed products and a kernel."""
    if isinstance(operator, Experts):
        return 8
    if isinstance(operator, LatentPrefill | LatentDecode):
        return 5
    return 2 if isinstance(operator, Gemm) and operator.dtype not in ("bfloat16", "float16", "float32") else 1


class ClosedLoop:
    """One run. `lengths` are (prompt, output) of each request in the order they are sent; `capacity` KV tokens."""

    def __init__(
        self, price: Steps, rules: Rules, costs: Costs, capacity: float, concurrency: int,
        lengths: Sequence[tuple[int, int]],
    ) -> None:  # fmt: skip
        self.price, self.rules, self.costs, self.capacity = price, rules, costs, capacity
        self.lengths = lengths
        self.now = self.planned = 0.0
        self.clock = 0
        """Decode steps so far: a sequence that joins at clock c ends at c + its tokens to come."""
        self.held = 0.0
        """KV tokens promised."""
        self.due: list[tuple[int, int]] = []
        self.waiting: deque[int] = deque()
        self.part: int | None = None
        self.done_of_part = 0
        self.sent = min(concurrency, len(lengths))
        self.rng = random.Random(len(lengths))
        self.active = self.context = 0
        self.coming = [(self._way(i), i) for i in range(self.sent)]
        heapq.heapify(self.coming)
        self.send_time = dict.fromkeys(range(self.sent), 0.0)
        self.first_time: dict[int, float] = {}
        self.timings: list[Timing] = []
        self.since_poll = self.gathered = 0
        self.steps = 0
        graph = price.graph
        placed = (*graph.rows(64), *graph.head(1), *graph.prefill(((0, 64),)))
        self.launches = sum(times * kernels_of(operator) for operator, times in placed)

    def run(self) -> list[Timing]:
        """Until every request has ended."""
        lengths, rules = self.lengths, self.rules
        self._receive(self.now, force=True)
        while len(self.timings) < len(lengths):
            busy = bool(self.active)
            self._receive(self.planned if rules.lag and busy else self.now, force=not busy)
            self.planned = self.now
            chunks, ended = self._admit()
            if chunks:
                self._prompt_step(chunks, ended)
            elif self.active:
                self._coast()
            else:
                self.now = max(self.now, self.coming[0][0])
        return self.timings

    # -- inside -------------------------------------------------------------------------------------------------

    def _receive(self, seen: float, *, force: bool) -> None:
        if not force and self.since_poll < self.rules.poll:
            return
        self.since_poll = 0
        while self.coming and self.coming[0][0] <= seen:
            self.waiting.append(heapq.heappop(self.coming)[1])

    def _admit(self) -> tuple[list[tuple[int, int]], list[int]]:
        """Chunks (past, tokens) of the next step, and whose prompts end with it."""
        rules = self.rules
        if self.part is None and not self.waiting:
            return [], []
        if self.active and len(self.waiting) < rules.groups and self.gathered < rules.gather:
            self.gathered += 1
            return [], []
        self.gathered = 0
        budget = rules.budget * rules.groups
        if rules.policy == "mixed":
            budget -= self.active
        chunks: list[tuple[int, int]] = []
        ended: list[int] = []
        if self.part is not None and budget > 0:
            whole = self.lengths[self.part][0]
            tokens = min(budget, whole - self.done_of_part)
            chunks.append((self.done_of_part, tokens))
            budget -= tokens
            self.done_of_part += tokens
            if self.done_of_part == whole:
                ended.append(self.part)
                self.part = None
        while self.waiting and budget > 0 and self.part is None and self.active + len(ended) < rules.most:
            index = self.waiting[0]
            prompt, output = self.lengths[index]
            promised = prompt + rules.reserve * output
            if self.held + promised > self.capacity and self.active + len(ended):
                break
            if prompt > budget and not rules.chunked and chunks:
                break
            self.waiting.popleft()
            self.held += promised
            tokens = min(prompt, budget) if rules.chunked else prompt
            chunks.append((0, tokens))
            budget -= tokens
            if tokens == prompt:
                ended.append(index)
            else:
                self.part, self.done_of_part = index, tokens
        return chunks, ended

    def _prompt_step(self, chunks: list[tuple[int, int]], ended: list[int]) -> None:
        costs, rules = self.costs, self.rules
        decoding = self.active if rules.policy == "mixed" else 0
        device = self._seconds(chunks, decoding, len(ended)) * costs.prompt
        self.now += max(device, costs.launch_s * self.launches) + costs.step_s
        self.now += costs.request_s * (decoding + len(chunks))
        self.steps += 1
        if decoding:
            self._tick(1)
        for index in ended:
            prompt, output = self.lengths[index]
            self.first_time[index] = self.now
            if output <= 1:
                self._finish(index)
                continue
            self.active += 1
            self.context += prompt
            heapq.heappush(self.due, (self.clock + output - 1, index))
        self.since_poll = rules.poll

    def _seconds(self, chunks: list[tuple[int, int]], decoding: int, ended: int) -> float:
        """Sizes are rounded to the nearest of a grid, for far fewer prices."""
        near = tuple((_near(past), max(1, _near(tokens))) for past, tokens in chunks)
        rows = 4 * round(decoding / 4) if decoding >= 32 else decoding
        load = StepLoad(rows, self.context if decoding else 0, 0, near)
        load.sampled = rows + ended
        return self.price.seconds(load)

    def _coast(self) -> None:
        """Decode steps until somebody ends, or somebody who waits can be seen."""
        price, costs = self.price, self.costs
        active = self.active
        steps = self.due[0][0] - self.clock
        line = price.line(active, self.context + active)
        start, stop, base, slope = line.start, line.stop, line.base, line.slope
        steps = min(steps, max(1, int((stop - self.context) // active)))
        fixed = (price.base(active, 0, active) + base) * costs.device + costs.step_s + costs.request_s * active
        slope *= costs.device
        one = fixed + slope * (self.context + active - start)
        if self.waiting or self.part is not None:
            steps = 1
        elif self.coming:
            until = max(1, -int(-(self.coming[0][0] - self.now) // one)) if self.coming[0][0] > self.now else 1
            steps = min(steps, max(until, self.rules.poll - self.since_poll))
        self.planned = self.now + (steps - 1) * one
        sum_of = steps * self.context + active * steps * (steps + 1) // 2
        self.now += steps * fixed + slope * (sum_of - steps * start)
        self.steps += steps
        self.since_poll += steps
        self._tick(steps)

    def _tick(self, steps: int) -> None:
        self.clock += steps
        self.context += steps * self.active
        while self.due and self.due[0][0] <= self.clock:
            self._finish(heapq.heappop(self.due)[1], active=True)

    def _finish(self, index: int, *, active: bool = False) -> None:
        prompt, output = self.lengths[index]
        if active:
            self.active -= 1
            self.context -= prompt + output - 1
        self.held -= prompt + self.rules.reserve * output
        first = self.first_time.pop(index)
        pace = (self.now - first) / max(1, output - 1)
        back = self._front() / 2
        self.timings.append(Timing(first + back - self.send_time.pop(index), pace))
        if self.sent < len(self.lengths):
            self.send_time[self.sent] = self.now + back
            heapq.heappush(self.coming, (self.now + back + self._way(self.sent), self.sent))
            self.sent += 1

    def _way(self, index: int) -> float:
        """From the client to the scheduler: no two requests take quite as long, and so a burst comes apart."""
        return self._front() / 2 * (0.5 + self.rng.random()) + self.costs.read_s * self.lengths[index][0]

    def _front(self) -> float:
        return self.costs.front_s + self.costs.stream_s * self.active / self.rules.workers


def _near(tokens: int) -> int:
    """At most 1.6 % off beyond 256 tokens, and as often above as below."""
    grain = 1 if tokens < 64 else 8 if tokens < 512 else 32 if tokens < 2048 else 128
    return grain * round(tokens / grain)
