"""Sends a stage of load and records what comes back.

Open loop: each request leaves at its time, whether or not earlier ones were answered; that is how users behave, and
the only way to see an overload. Closed loop: a fixed number of users, each sends when its last answer is complete, or
after the time a refusal told it to wait. The next body is made before its time comes. Whatever the generator itself
loses between a request's time and its first byte on the wire is recorded as send delay, never hidden.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from penstock.report.latency import Outcome, RequestRecord
from penstock.workload.client import Answer, Client, error_message
from penstock.workload.endpoint import Endpoint
from penstock.workload.plan import Stage
from penstock.workload.prompts import phase_seed
from penstock.workload.trace import TraceRequest

_CANCELS = 5
LEAD_S: Final = 0.02
"""Between the call and the first request's time: enough to make its body."""
OnRecord = Callable[[RequestRecord], None]


@dataclass(slots=True, kw_only=True)
class Driver:
    """A client, the server it talks to, and what users do besides asking."""

    client: Client
    endpoint: Endpoint
    seed: int = 0
    cancel_fraction: float = 0.0
    """Share of requests whose user leaves after some of the tokens."""
    retries: int = 0
    """Times a refused request (429, 503) is sent again after the time it was told to wait."""
    think_s: float = 0.0
    """Closed loop: pause between the turns of a session."""
    events: int = 0
    """Token events so far."""
    cpu_s: float = 0.0
    """CPU time of this process over all stages."""

    async def run(self, stage: Stage, on_record: OnRecord | None = None) -> list[RequestRecord]:
        """All records of the stage, in order of request; times count from the start of the stage."""
        run = _Run(self, stage, on_record)
        cpu = time.process_time()
        try:
            await (run.open_loop() if stage.concurrency is None else run.closed_loop(stage.concurrency))
        finally:
            self.cpu_s += time.process_time() - cpu
            self.events += sum(len(record.token_s) for record in run.records)
        return sorted(run.records, key=lambda record: record.index)


class _Run:
    """One stage under way."""

    def __init__(self, driver: Driver, stage: Stage, on_record: OnRecord | None) -> None:
        self._driver, self._stage, self._on_record = driver, stage, on_record
        seed = phase_seed(driver.seed, stage.name)
        self._prompts = driver.endpoint.prompts(seed, stage.block_tokens)
        self._cuts = _cuts(stage, driver.cancel_fraction, np.random.default_rng([seed, _CANCELS]))
        self._start_s = time.perf_counter() + LEAD_S
        self.records: list[RequestRecord] = []

    def _body(self, index: int) -> bytes:
        request = self._stage.requests[index]
        return self._driver.endpoint.body(self._prompts.make(index, request), request.output_tokens)

    async def open_loop(self) -> None:
        tasks = []
        try:
            for index, request in enumerate(self._stage.requests):
                body = self._body(index)
                due_s = self._start_s + request.arrival_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                tasks.append(asyncio.create_task(self._one(index, body, due_s)))
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def closed_loop(self, concurrency: int) -> None:
        chains = self._stage.chains()
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        answers = 0

        def end() -> None:
            over.set()
            self._driver.client.cut_all()

        async def pause(seconds: float) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), seconds)

        async def user() -> None:
            nonlocal answers
            # Users share one iterator: whoever is free takes the next chain.
            for chain in chains:
                for turn, index in enumerate(chain):
                    if turn and self._driver.think_s:
                        await pause(self._driver.think_s)
                    if over.is_set():
                        return
                    body = self._body(index)
                    record = await self._one(index, body, time.perf_counter())
                    if record.outcome == "completed":
                        answers += 1
                        if answers == concurrency and self._stage.steady_s is not None:
                            timers.append(loop.call_later(self._stage.steady_s, end))
                    if record.outcome == "rejected":
                        await pause(record.retry_after_s or 1.0)

        if self._stage.stop_after_s is not None:
            timers.append(loop.call_later(self._stage.stop_after_s + LEAD_S, end))
        try:
            await asyncio.gather(*(user() for _ in range(concurrency)))
        finally:
            for timer in timers:
                timer.cancel()

    async def _one(self, index: int, body: bytes, due_s: float) -> RequestRecord:
        driver, request = self._driver, self._stage.requests[index]
        answer = await driver.client.send(
            driver.endpoint.path, body, asked_s=due_s, cut_after=self._cuts[index] or None
        )
        sent_s, retries = answer.sent_s, 0
        while answer.status in (429, 503) and retries < driver.retries:
            await asyncio.sleep(answer.retry_after_s or 1.0)
            answer = await driver.client.send(driver.endpoint.path, body, cut_after=self._cuts[index] or None)
            retries += 1
        record = _record(index, request, answer, self._start_s, due_s, sent_s)
        record.retries = retries
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record)
        return record


def _cuts(stage: Stage, fraction: float, generator: np.random.Generator) -> list[int]:
    """Per request, the token event after which its user leaves; 0: stays."""
    leaves = generator.uniform(0, 1, len(stage.requests)) < fraction
    share = generator.uniform(0, 1, len(stage.requests))
    return [
        1 + int(part * (request.output_tokens - 1)) if leave and request.output_tokens > 1 else 0
        for leave, part, request in zip(leaves.tolist(), share.tolist(), stage.requests, strict=True)
    ]


def _record(
    index: int, request: TraceRequest, answer: Answer, start_s: float, due_s: float, sent_s: float
) -> RequestRecord:
    outcome, reason = _outcome(answer)
    usage = answer.usage
    return RequestRecord(
        index=index,
        arrival_s=due_s - start_s,
        sent_s=sent_s - start_s,
        end_s=answer.end_s - start_s,
        prompt_tokens=usage.prompt_tokens if usage else request.prompt_tokens,
        output_tokens=usage.completion_tokens if usage else len(answer.token_s),
        token_s=[stamp - start_s for stamp in answer.token_s],
        outcome=outcome,
        status=answer.status,
        reason=reason,
        cached_tokens=usage.cached_tokens if usage else 0,
        retry_after_s=answer.retry_after_s if outcome == "rejected" else None,
    )


def _outcome(answer: Answer) -> tuple[Outcome, str]:
    if answer.cut:
        return "cancelled", ""
    if answer.status == 429:
        return "rejected", error_message(answer.body)
    if answer.error:
        return "failed", answer.error
    if answer.status != 200:
        return "failed", f"HTTP {answer.status}: {error_message(answer.body)}"
    if not answer.done and answer.finish is None:
        return "failed", "the stream ended before the answer was finished"
    if not answer.token_s and answer.usage is None:
        return "failed", "an answer without a token"
    return "completed", ""
