"""The two tenants of the overload benchmark: what they ask, what they are told, and what is counted of it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from penstock.workload.client import Answer, Client, Target

VOCABULARY = range(4, 1004)  # ids of the model in the box that are ordinary text
FLOOD_PROMPT, FLOOD_OUTPUT = 64, 48
QUIET_PROMPT, QUIET_OUTPUT = 1536, 8
EARLY, EARLY_AT = 0.1, 0.6


@dataclass
class Refusal:
    """What one request was told the first time, and when it was let in; None: not within its tries."""

    told_s: float
    place_kept: bool
    early: bool
    let_in_s: float | None = None

    @property
    def right(self) -> bool:
        return self.let_in_s is not None and abs(self.let_in_s - self.told_s) <= 0.3 * self.told_s + 0.02


@dataclass
class Stage:
    """What happened; times are of perf_counter."""

    name: str
    begin: float = 0.0
    end: float = 0.0
    flood_done: int = 0
    quiet_done: int = 0
    """Answers that ended in this stage, whichever asked."""
    quiet_ttft: list[float] = field(default_factory=list)
    quiet_failed: list[str] = field(default_factory=list)
    flood_failed: list[str] = field(default_factory=list)
    sent: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    unjudged_s: float = 0.0
    """What is told in the last seconds is not judged."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Share of a core that each process took from begin to end."""

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def throughput(self) -> float:
        """Work per second between begin and end, in mean requests of the flood."""
        quiet = self.quiet_done * (QUIET_PROMPT / FLOOD_PROMPT + QUIET_OUTPUT / FLOOD_OUTPUT) / 2
        return (self.flood_done + quiet) / self.seconds

    def per_cpu(self) -> float:
        """The same per second of the worker's CPU time."""
        return self.throughput() / self.cpu["worker"]


class Tenants:
    """Both tenants' clients, and the requests they send."""

    def __init__(self, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.flood = Client(Target.parse(url, "key-of-flood"), max_connections=2000, timeout_s=300)
        self.quiet = Client(Target.parse(url, "key-of-quiet"), timeout_s=300)
        self.flood_done: list[float] = []
        self.quiet_done: list[float] = []
        """When answers ended, of all stages."""
        self.open: set[asyncio.Task[Any]] = set()
        """Requests under way, also of stages before."""
        self.closing = asyncio.Event()
        """Nobody comes back any more."""

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self.open.add(task)
        task.add_done_callback(self.open.discard)

    async def settle(self) -> None:
        """All that was asked is answered. Raises what a client raised."""
        while self.open:
            await asyncio.gather(*self.open)

    def body(self, prompt: int, output: int) -> bytes:
        ids = self.random.choices(VOCABULARY, k=prompt)  # made at once: clients share the cores with the server
        return json.dumps(
            {"model": "millrace", "prompt": ids, "max_tokens": output, "ignore_eos": True, "temperature": 0,
             "stream": True, "stream_options": {"include_usage": True}}
        ).encode()  # fmt: skip

    async def ask_flood(self, stage: Stage, *, comes_back: bool, tries: int) -> Answer:
        """One request of the flood, and its returns."""
        body = self.body(FLOOD_PROMPT, FLOOD_OUTPUT)
        told: Refusal | None = None
        first = 0.0
        for attempt in range(tries):
            stage.sent += 1
            answer = await self.flood.send("/v1/completions", body)
            if answer.status != 429:
                break
            stage.refused += 1
            wait_s = answer.retry_after_s or 1.0
            if told is None:
                details = json.loads(answer.body)["error"]["details"]
                early = comes_back and self.random.random() < EARLY
                told, first = Refusal(wait_s, details["place_kept"], early), answer.end_s
                if comes_back and stage.begin <= answer.end_s < stage.end - stage.unjudged_s:
                    stage.refusals.append(told)
                if early:
                    wait_s *= EARLY_AT
            if not comes_back or attempt == tries - 1:
                return answer
            try:
                await asyncio.wait_for(self.closing.wait(), max(answer.end_s + wait_s - time.perf_counter(), 0.0))
            except TimeoutError:
                continue
            if told in stage.refusals:  # nobody will know whether that was right
                stage.refusals.remove(told)
            return answer
        if answer.done and not answer.error:
            self.flood_done.append(answer.end_s)
            if told is not None:
                told.let_in_s = answer.sent_s - first
        else:
            stage.flood_failed.append(f"{answer.status} {answer.error or answer.body[:200]!r}")
        return answer

    async def ask_quiet(self, stage: Stage) -> None:
        answer = await self.quiet.send("/v1/completions", self.body(QUIET_PROMPT, QUIET_OUTPUT))
        if answer.done and answer.token_s:
            self.quiet_done.append(answer.end_s)
            stage.quiet_ttft.append(answer.token_s[0] - answer.asked_s)
        else:
            stage.quiet_failed.append(f"{answer.status} {answer.error or answer.body[:200]!r}")
