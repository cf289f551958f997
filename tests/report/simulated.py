"""Small simulated results with numbers one can check."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.report.simulation import ReplicaSeries, RequestColumns, SimulationResult


def columns(count: int, **given: Any) -> RequestColumns:
    """`count` requests a second apart, each 100 in, 11 out, first token after 0.5 s, then 0.1 s per token."""
    arrival = np.asarray(given.pop("arrival_s", np.arange(count, dtype=np.float64)))
    base: dict[str, Any] = {
        "arrival_s": arrival,
        "first_token_s": arrival + 0.5,
        "finish_s": arrival + 1.5,
        "prompt_tokens": np.full(count, 100),
        "output_tokens": np.full(count, 11),
        "cached_tokens": np.zeros(count, dtype=np.int64),
        "preemptions": np.zeros(count, dtype=np.int64),
        "replica": np.zeros(count, dtype=np.int64),
        "outcome": np.zeros(count, dtype=np.int64),
    }
    return RequestColumns(**(base | given))


def series(replica: int = 0, samples: int = 50, end_s: float = 10.0) -> ReplicaSeries:
    t = np.linspace(end_s / samples, end_s, samples)
    ones = np.ones(samples, dtype=np.int64)
    return ReplicaSeries(
        replica=replica, t_s=t, waiting=ones, running=2 * ones, decoding=ones, prefill_tokens=100 * ones,
        kv_used=0.5 * ones, power_w=300.0 * ones, step_s=0.01 * ones,
    )  # fmt: skip


def queue(count: int, rate: float, capacity: float, seed: int, **given: Any) -> SimulationResult:
    """One server with exponential gaps and service times (M/M/1): a first token at the begin of service."""
    generator = np.random.default_rng(seed)
    arrival = np.cumsum(generator.exponential(1 / rate, count))
    service = generator.exponential(1 / capacity, count)
    work = np.cumsum(service)
    begin = work - service + np.maximum.accumulate(arrival - (work - service))
    return SimulationResult(
        title="queue",
        requests=columns(count, arrival_s=arrival, first_token_s=begin, finish_s=begin + service),
        **given,
    )
