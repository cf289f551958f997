"""Prompts in, choices out: n sequences per prompt, run side by side until the last one has ended.

`Generation.run` reports each piece as it comes (`emit`) and pauses for `flush` once per step, however many of its
sequences moved in that step; so the pieces of one step can leave in one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from penstock.control.request import Request
from penstock.errors import DeadlinePassed, InvalidRequest, Overloaded, Unavailable
from penstock.runtime.facts import Output, TimeBounds
from penstock.runtime.stream import AtOnce
from penstock.serve.choice import Choice, Piece
from penstock.serve.express import Collected, Express, Way
from penstock.serve.metrics import Metrics
from penstock.serve.quota import Quota

if TYPE_CHECKING:
    from penstock.runtime.service import Service

Emit = Callable[[Choice, Piece], None]
Flush = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the text they stand for where `echo` wants it."""

    ids: tuple[int, ...]
    text: str = ""
    begun: str = ""
    """Of a chat whose last turn is to go on: that turn."""


class Generation:
    """One HTTP request's work. `prompts[i]` has the choices i * n to i * n + n - 1."""

    def __init__(
        self, service: Service, metrics: Metrics, prompts: Sequence[Prompt], choices: Sequence[Choice], n: int, *,
        bounds: TimeBounds, quota: Quota,
    ) -> None:  # fmt: skip
        self.bounds, self.quota = bounds, quota
        self.service, self.metrics, self.prompts, self.choices, self.n = service, metrics, prompts, choices, n

    async def run(self, emit: Emit, flush: Flush, way: Way) -> None:
        """Run all choices to their end. Cancelling this cancels them in the worker.

        `way`: how the pieces of a single choice may leave without `flush`.

        Raises:
            Overloaded, Unavailable, InvalidRequest, DeadlinePassed: refused before the first token.
            RequestFailed: one of them failed; the others are cancelled then.
        """
        self.metrics.choices.observe(self.n)
        requests = [choice.request for choice in self.choices]
        with self.quota.hold(requests, self.service.info.kv_capacity_tokens, self._made):
            self.bounds = self._left_of(self.bounds)
            if len(self.choices) == 1:
                await self._follow(self.choices[0], emit, flush, way)
            else:
                await self._together(emit, flush)
        self.metrics.longest.observe(max(len(choice.token_ids) for choice in self.choices))

    def _left_of(self, bounds: TimeBounds) -> TimeBounds:
        """What is left now, after reading and checking, of times that count from the arrival. Raises DeadlinePassed."""
        if bounds.ttft_s is None and bounds.deadline_s is None:
            return bounds
        past_s = monotonic() - min(choice.arrived for choice in self.choices)
        if bounds.deadline_s is not None and past_s >= bounds.deadline_s:
            wait_s = self.service.retry_after_s
            raise DeadlinePassed(
                f"the deadline of {bounds.deadline_s * 1e3:g} ms passed while the request was read, which took "
                f"{past_s * 1e3:.0f} ms. Remedy: come back in {wait_s:.2f} s, or a longer deadline",
                retry_after_s=wait_s,
            )  # fmt: skip
        return replace(
            bounds, ttft_s=None if bounds.ttft_s is None else max(bounds.ttft_s - past_s, 0.0),
            deadline_s=None if bounds.deadline_s is None else bounds.deadline_s - past_s,
        )  # fmt: skip

    def _made(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices)

    def usage(self) -> dict[str, Any]:
        """Tokens so far: each prompt counts once, whatever n is."""
        prompt_tokens = sum(len(prompt.ids) for prompt in self.prompts)
        completion_tokens = sum(len(choice.token_ids) for choice in self.choices)
        reasoning = sum(one.reader.reasoning_tokens for one in self.choices if one.reader is not None)
        cached = [self.choices[first : first + self.n] for first in range(0, len(self.choices), self.n)]
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            # Of the n sequences of a prompt all but one find it in the cache; what was there before is the smallest.
            "prompt_tokens_details": {
                "cached_tokens": sum(min(one.cached_tokens for one in group) for group in cached)
            },
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    def slowest(self) -> Choice:
        """The choice that ended last."""
        return max(self.choices, key=lambda choice: choice.last_at)

    async def _follow(self, choice: Choice, emit: Emit, flush: Flush, way: Way) -> None:
        """One sequence from submission to its end, counted."""
        metrics = self.metrics
        express = Express(choice, metrics, emit, way)
        metrics.entered(choice.request.tenant)
        outcome = "failed"
        try:
            async with aclosing(self._outputs(choice.request, express)) as outputs:
                async for output in outputs:
                    if express.error is not None:
                        raise express.error
                    if choice.finish_reason is not None:  # a stop string, in a token that came by express
                        break
                    now = monotonic()
                    if choice.first_at is not None:
                        metrics.itl.observe(now - choice.last_at)
                    elif output.tokens:
                        choice.first_at = now
                        prompt_tokens = len(choice.request.prompt)
                        metrics.first_token(choice.request.tenant, prompt_tokens, now - choice.arrived)
                    choice.last_at = now
                    piece = choice.take(output)
                    metrics.generated_tokens += len(piece.tokens)
                    emit(choice, piece)
                    if choice.finish_reason is not None:
                        break
                    await flush()
            outcome = "stop" if choice.finish_reason == "tool_calls" else choice.finish_reason or outcome
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except (Overloaded, Unavailable, InvalidRequest, DeadlinePassed):
            outcome = "failed" if choice.first_at else "refused"
            raise
        finally:
            self._left(choice, outcome)

    def _left(self, choice: Choice, outcome: str) -> None:
        self.metrics.left(
            outcome, prompt_tokens=len(choice.request.prompt), output_tokens=len(choice.token_ids),
            cached_tokens=choice.cached_tokens, max_tokens=choice.request.max_tokens,
            ttft_s=None if choice.first_at is None else choice.first_at - choice.arrived,
            total_s=choice.last_at - choice.arrived, timings=choice.timings, tenant=choice.request.tenant,
        )  # fmt: skip

    def _outputs(self, request: Request, at_once: AtOnce) -> AsyncGenerator[Output, None]:
        # An iterator by its interface; that it can be closed is part of the contract.
        return cast("AsyncGenerator[Output, None]", self.service.generate(request, self.bounds, at_once))

    async def _together(self, emit: Emit, flush: Flush) -> None:
        """All are admitted before any is computed: a refusal halfway would throw work away, on every retry again."""
        requests = [choice.request for choice in self.choices]
        with ExitStack() as reserved:
            try:
                field = "n" if self.n > 1 else "prompt"
                reserved.enter_context(self.service.reserve(requests, field=field, bounds=self.bounds))
            except (Overloaded, Unavailable, InvalidRequest):
                for choice in self.choices:
                    self.metrics.entered(choice.request.tenant)
                    self._left(choice, "refused")
                raise
            await self._side_by_side(emit, flush)

    async def _side_by_side(self, emit: Emit, flush: Flush) -> None:
        """One task per sequence. All that moved in one step have emitted before this one wakes up to flush."""
        news = asyncio.Event()

        def emit_and_wake(choice: Choice, piece: Piece) -> None:
            emit(choice, piece)
            news.set()

        async def go_on() -> None:
            return

        way = Collected()
        tasks = [asyncio.create_task(self._follow(choice, emit_and_wake, go_on, way)) for choice in self.choices]
        try:
            for task in tasks:
                task.add_done_callback(lambda _: news.set())
            while True:
                await news.wait()
                news.clear()
                done = [task for task in tasks if task.done()]
                for task in done:
                    task.result()
                if len(done) == len(tasks):
                    return
                await flush()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
