"""A benchmark from start to end: ask the server, warm it up, find its capacity if needed, run the stages.

    BenchSettings -> bench(settings) -> BenchResult

Stages are of one kind: a trace or a generated workload, sent open loop at rates (given, or shares of the capacity
measured in the same run) or closed loop at a fixed concurrency.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from penstock.errors import BadInput
from penstock.report.latency import Limits, RequestRecord, saturated
from penstock.report.result import StageResult
from penstock.workload.arrivals import arrivals
from penstock.workload.client import Client, Target
from penstock.workload.drive import Driver
from penstock.workload.endpoint import Api, discover
from penstock.workload.outcome import BenchResult as BenchResult
from penstock.workload.outcome import Capacity
from penstock.workload.outcome import mean_lengths as mean_lengths
from penstock.workload.plan import Stage, Workload, conversations, open_loop, replay
from penstock.workload.prompts import phase_seed
from penstock.workload.trace import MOONCAKE_BLOCK_TOKENS, Trace, TraceRequest

DEFAULT_REQUESTS: Final = 100
FIRST_CONCURRENCY: Final = 8
GAIN: Final = 1.03
"""A doubling of the concurrency that brings less than this ends the search."""


class Progress(Protocol):
    """What a user may want to see while it runs."""

    def stage(self, name: str, requests: int | None) -> None: ...

    def record(self, record: RequestRecord) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """One benchmark.

    Exactly one of `rates`, `loads` (shares of the capacity) and `concurrency` sets the pace; with none of them a trace
    keeps its own times, and `find_capacity` alone runs no stage beyond the search.
    """

    url: str
    workload: Workload
    trace: Trace | None = None
    api: Api = "completions"
    model: str | None = None
    api_key: str | None = None
    vocab_size: int | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    rates: tuple[float, ...] = ()
    loads: tuple[float, ...] = ()
    concurrency: int | None = None
    find_capacity: bool = False
    capacity_stage_s: float = 20.0
    max_concurrency: int = 256
    shape: str = "poisson"
    cv: float = 1.0
    speed: float = 1.0
    requests: int | None = None
    duration_s: float | None = None
    turns: int = 1
    think_s: float = 0.0
    cancel_fraction: float = 0.0
    retries: int = 0
    warmup: int = 4
    timeout_s: float = 600.0
    max_connections: int = 900
    seed: int = 0
    limits: Limits = field(default_factory=Limits)


async def bench(
    settings: BenchSettings, progress: Progress, on_stage: Callable[[StageResult], None] | None = None,
    on_interrupt: Callable[[BenchResult], None] | None = None,
) -> BenchResult:  # fmt: skip
    """Run it. If it is cancelled, `on_interrupt` is told what was measured up to then, if anything was.

    Raises:
        BadInput: settings that contradict each other. NoServer: nothing usable at the URL.
    """
    client = Client(
        Target.parse(settings.url, settings.api_key),
        max_connections=settings.max_connections,
        timeout_s=settings.timeout_s,
    )
    try:
        endpoint = await discover(
            client,
            api=settings.api,
            model=settings.model,
            vocab_size=settings.vocab_size,
            temperature=settings.temperature,
            ignore_eos=settings.ignore_eos,
        )
        driver = Driver(
            client=client,
            endpoint=endpoint,
            seed=settings.seed,
            retries=settings.retries,
            think_s=settings.think_s,
        )
        run = _Bench(settings, driver, progress, on_stage)
        try:
            return await run.run()
        except asyncio.CancelledError:
            if on_interrupt is not None and (result := run.so_far()) is not None:
                on_interrupt(result)
            raise
    finally:
        client.close()


class _Bench:
    def __init__(
        self,
        settings: BenchSettings,
        driver: Driver,
        progress: Progress,
        on_stage: Callable[[StageResult], None] | None,
    ) -> None:
        self._settings, self._driver, self._progress, self._on_stage = settings, driver, progress, on_stage
        self._extra: tuple[str, ...] = ()
        self._capacity: Capacity | None = None
        self._searched: list[StageResult] = []
        self._measured: list[StageResult] = []
        self._part: StageResult | None = None
        """Of the stage that was interrupted."""
        self._check_fit()

    def _check_fit(self) -> None:
        """A trace that does not fit the server's context would only measure refusals."""
        context, trace = self._driver.endpoint.context_tokens, self._settings.trace
        if context is None or trace is None:
            return
        longest = max(request.prompt_tokens + request.output_tokens for request in trace.requests)
        if longest > context:
            raise BadInput(
                field="trace", value=trace.name, why=f"its longest request has {longest} tokens, the context {context}",
                remedy=f"--scale-lengths-to {context}",
            )  # fmt: skip

    async def run(self) -> BenchResult:
        settings = self._settings
        if settings.warmup:
            await self._warm_up()
        if settings.find_capacity or settings.loads:
            self._capacity = await self._search(self._searched)
        self._driver.cancel_fraction = settings.cancel_fraction
        plan = self._stages(self._capacity)
        for stage, load in plan:
            result = await self._measure(stage, load)
            self._measured.append(result)
            if self._on_stage is not None:
                self._on_stage(result)
            if settings.rates and len(self._measured) < len(plan) and saturated(result.records):
                left = len(plan) - len(self._measured)
                self._extra = (f"saturated at {stage.name}: requests in flight and TTFT kept rising; {left} left out",)
                break
        return self._result(interrupted=False)

    def so_far(self) -> BenchResult | None:
        """What a run that was cancelled had measured; None: nothing."""
        measured = self._searched or self._measured or self._part
        return self._result(interrupted=True) if measured else None

    def _result(self, *, interrupted: bool) -> BenchResult:
        return BenchResult(
            endpoint=self._driver.endpoint,
            stages=(*self._measured, *([self._part] if self._part is not None else [])),
            search=tuple(self._searched),
            capacity=self._capacity,
            generator_cpu_s=self._driver.cpu_s,
            token_events=self._driver.events,
            notes=self._notes(),
            interrupted=interrupted,
        )

    def _notes(self) -> tuple[str, ...]:
        endpoint = self._driver.endpoint
        notes = [f"warm-up of {self._settings.warmup} requests left out; prefix cache not reset; prompts new per stage"]
        if not endpoint.takes_ids:
            notes.append(f"prompts are words, {endpoint.tokens_per_word:.2f} tokens each: lengths are approximate")
        return (*notes, *self._extra)

    async def _warm_up(self) -> None:
        requests = self._sample(self._settings.warmup, "warm-up")
        self._progress.stage("warm-up", len(requests))
        stage = Stage(name="warm-up", requests=requests, concurrency=min(4, len(requests)))
        await self._driver.run(stage, self._progress.record)
        self._driver.cpu_s, self._driver.events = 0.0, 0

    def _sample(self, count: int, phase: str) -> tuple[TraceRequest, ...]:
        """`count` requests like those of the workload: a trace's rows again from the top, or new draws."""
        trace = self._settings.trace
        if trace is not None:
            rows = trace.requests
            return tuple(rows[index % len(rows)] for index in range(count))
        return self._settings.workload.requests(count, phase_seed(self._settings.seed, phase))

    async def _measure(self, stage: Stage, load: float | None) -> StageResult:
        self._progress.stage(stage.name, len(stage.requests))
        records: list[RequestRecord] = []

        def on_record(record: RequestRecord) -> None:
            records.append(record)
            self._progress.record(record)

        try:
            records = await self._driver.run(stage, on_record)
        except asyncio.CancelledError:
            if records:
                records.sort(key=lambda record: record.index)
                self._part = self._stage_result(stage, load, records, interrupted=True)
            raise
        return self._stage_result(stage, load, records)

    def _stage_result(
        self, stage: Stage, load: float | None, records: list[RequestRecord], *, interrupted: bool = False
    ) -> StageResult:
        notes = list(self._settings.trace.notes if self._settings.trace is not None else ())
        silent = sum(record.outcome == "completed" and record.output_tokens == 0 for record in records)
        if silent:
            notes.append(f"{silent} answers had no token: is there an end-of-sequence the server does not ignore?")
        return StageResult.of(
            stage.name,
            records,
            requested_rate=stage.requested_rate,
            concurrency=stage.concurrency,
            load=load,
            limits=self._settings.limits,
            notes=tuple(notes),
            interrupted=interrupted,
        )

    # Capacity: closed loop, concurrency doubled until it brings nothing more or the server refuses.

    async def _search(self, seen: list[StageResult]) -> Capacity:
        settings = self._settings
        best: Capacity | None = None
        level = FIRST_CONCURRENCY
        while level <= settings.max_concurrency:
            name = f"capacity {level}"
            # Far more requests than can be sent; how many that is, the stage's own time decides.
            requests = self._sample(max(2000, level * math.ceil(10 * settings.capacity_stage_s)), name)
            stage = Stage(
                name=name,
                requests=requests,
                concurrency=level,
                steady_s=settings.capacity_stage_s,
                stop_after_s=60 + 4 * settings.capacity_stage_s,  # in case steady state never comes
                block_tokens=self._block_tokens,
            )
            result = await self._measure(stage, None)
            seen.append(result)
            if self._on_stage is not None:
                self._on_stage(result)
            if result.report.steady is None or result.invalid:
                break
            # Every level draws from the same lengths; one yardstick for all keeps their comparison fair.
            prompt, output = mean_lengths(requests)
            work = result.report.steady
            found = Capacity(concurrency=level, work=work, prompt_tokens=prompt, output_tokens=output)
            gained = best is None or found.requests_per_s >= GAIN * best.requests_per_s
            best = found if best is None else max(best, found, key=lambda capacity: capacity.requests_per_s)
            if not gained or result.report.rejected:
                break
            level *= 2
        if best is None:
            raise BadInput(
                field="capacity-stage", value=settings.capacity_stage_s,
                why="there was no steady state to measure" + (f": {seen[-1].invalid}" if seen[-1].invalid else ""),
                remedy="a longer time, or shorter requests",
            )  # fmt: skip
        return best

    @property
    def _block_tokens(self) -> int:
        return self._settings.trace.block_tokens if self._settings.trace is not None else MOONCAKE_BLOCK_TOKENS

    # Stages

    def _stages(self, capacity: Capacity | None) -> list[tuple[Stage, float | None]]:
        settings = self._settings
        if settings.loads:
            assert capacity is not None
            return [(self._at(load, f"load {load:g}", capacity), load) for load in settings.loads]
        if settings.rates:
            return [(self._at(rate, f"rate {rate:g}", None), None) for rate in settings.rates]
        if settings.concurrency is not None:
            return [(self._closed(settings.concurrency), None)]
        if settings.trace is not None:
            trace = settings.trace.at_speed(settings.speed)
            return [(replay(self._cut(trace), name="trace"), None)]
        return []

    def _cut(self, trace: Trace) -> Trace:
        settings = self._settings
        trace = trace if settings.duration_s is None else trace.within(settings.duration_s)
        return trace if settings.requests is None else trace.first(settings.requests)

    def _count(self, rate: float) -> int:
        settings = self._settings
        by_time = None if settings.duration_s is None else max(2, round(rate * settings.duration_s))
        bounds = [bound for bound in (by_time, settings.requests) if bound is not None]
        return min(bounds) if bounds else DEFAULT_REQUESTS

    def _at(self, amount: float, name: str, capacity: Capacity | None) -> Stage:
        """Open loop at `amount` requests per second, or that share of the capacity.

        A trace's first requests are stretched to that rate: first their number is set, then the rate, so that what is
        sent has the mean rate asked for. A generated workload follows the law of arrival.
        """
        settings = self._settings

        def rate_of(requests: Sequence[TraceRequest]) -> float:
            return amount if capacity is None else amount * capacity.rate_for(requests)

        if settings.trace is not None:
            part = settings.trace
            if settings.duration_s or settings.requests:
                part = part.first(self._count(rate_of(part.requests)))
            return replay(part.at_rate(rate_of(part.requests)), name=name)
        count = self._count(amount if capacity is None else amount * capacity.requests_per_s)
        requests = self._sample(count, name)
        rate = rate_of(requests)
        law = arrivals(settings.shape, rate, cv=settings.cv)
        timed = open_loop(requests, law, phase_seed(settings.seed, name))
        return Stage(name=name, requests=timed, requested_rate=rate)

    def _closed(self, concurrency: int) -> Stage:
        settings = self._settings
        name = f"concurrency {concurrency}"
        if settings.duration_s is not None and settings.requests is None:
            count = max(2000, concurrency * math.ceil(10 * settings.duration_s))
        else:
            count = settings.requests or (len(settings.trace) if settings.trace is not None else DEFAULT_REQUESTS)
        requests = self._sample(count * settings.turns, name)
        if settings.turns > 1:
            context = settings.workload.context_tokens or self._driver.endpoint.context_tokens
            requests = conversations(requests, settings.turns, context)
            name += f", {settings.turns} turns"
        return Stage(
            name=name,
            requests=requests,
            concurrency=concurrency,
            block_tokens=self._block_tokens,
            stop_after_s=settings.duration_s,
        )
