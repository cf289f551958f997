"""What came of a benchmark: its stages, and the capacity if one was searched for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from penstock.report.latency import FORMULAS, Steady
from penstock.report.result import StageResult
from penstock.workload.endpoint import Endpoint
from penstock.workload.trace import TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The most the server did in closed loop, in the steady part of the best stage."""

    concurrency: int
    work: Steady
    prompt_tokens: float
    output_tokens: float
    """Mean lengths of the requests of that stage."""

    @property
    def requests_per_s(self) -> float:
        return self.work.requests_per_s(self.prompt_tokens, self.output_tokens)

    def rate_for(self, requests: Sequence[TraceRequest]) -> float:
        """Requests like these per second: a piece of a trace may be heavier than the piece that was measured."""
        return self.work.requests_per_s(*mean_lengths(requests))


def mean_lengths(requests: Sequence[TraceRequest]) -> tuple[float, float]:
    """(mean prompt tokens, mean output tokens)."""
    prompts = sum(request.prompt_tokens for request in requests)
    return prompts / len(requests), sum(request.output_tokens for request in requests) / len(requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """All stages of a benchmark."""

    endpoint: Endpoint
    stages: tuple[StageResult, ...]
    search: tuple[StageResult, ...]
    """The closed-loop stages of the capacity search; empty without one."""
    capacity: Capacity | None
    generator_cpu_s: float
    token_events: int
    notes: tuple[str, ...]
    interrupted: bool = False
    """It was cancelled: the last stage is a part of one, and others may be missing."""

    @property
    def ok(self) -> bool:
        """Every stage valid and no request failed; refusals are not failures."""
        return all(not stage.invalid and not stage.report.failed for stage in self.stages or self.search[-1:])

    def to_json(self) -> dict[str, Any]:
        """A single stage flat, as other benchmark tools print it; several under `stages`."""
        stages = [stage.to_json() for stage in self.stages]
        shared: dict[str, Any] = {
            "model_id": self.endpoint.model,
            "endpoint": self.endpoint.path,
            "prompts_as": "token ids" if self.endpoint.takes_ids else "text",
            "capacity": None
            if self.capacity is None
            else {
                "concurrency": self.capacity.concurrency,
                "request_throughput": self.capacity.requests_per_s,
                "output_throughput": self.capacity.work.output_tokens_per_s,
                "total_token_throughput": self.capacity.work.total_tokens_per_s,
                "stages": [stage.to_json() for stage in self.search],
            },
            "generator_cpu_s": self.generator_cpu_s,
            "generator_cpu_us_per_token_event": 1e6 * self.generator_cpu_s / self.token_events
            if self.token_events
            else None,
            "formulas": FORMULAS,
            "run_notes": list(self.notes),
            "interrupted": "interrupted" if self.interrupted else None,
        }
        return {**stages[0], **shared} if len(stages) == 1 else {**shared, "stages": stages}
