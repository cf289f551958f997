"""What a simulation hands to the report: columns and series, in plain arrays; it knows no simulator.

R requests, S samples of a replica, T output tokens. Seconds of virtual time on one clock, tokens, watts, joules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.report.latency import Limits

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

OUTCOMES: Final = ("completed", "rejected", "failed", "cancelled", "unfinished")
COMPLETED, REJECTED, FAILED, CANCELLED, UNFINISHED = range(5)
"""Codes of `RequestColumns.outcome`; unfinished: under way when the run was cut off."""


def lane_name(number: int, ranks: int) -> str:
    """What to call scheduler `number` where each replica has so many.

    >>> lane_name(5, 1), lane_name(5, 4)
    ('replica 5', 'replica 1, rank 1')
    """
    replica, rank = divmod(number, ranks)
    return f"replica {replica}" + (f", rank {rank}" if ranks > 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestColumns:
    """All requests, a row each in any order; every array is [R]."""

    arrival_s: Floats
    first_token_s: Floats
    """NaN where there was none."""
    finish_s: Floats
    """When it ended, whatever the outcome; NaN while unfinished."""
    prompt_tokens: Ints
    output_tokens: Ints
    """Made so far, not asked for."""
    cached_tokens: Ints
    """Prompt tokens whose KV was found in a cache."""
    preemptions: Ints
    replica: Ints
    outcome: Ints
    """Codes: `OUTCOMES[code]`."""
    token_s: Floats | None = None
    """[T] times of all output tokens, request after request, ascending within each. None: not kept."""
    token_start: Ints | None = None
    """[R + 1] where each request's tokens begin in `token_s`."""

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    def times(self, row: int) -> list[float]:
        """When the tokens of one request came; the first and the end, where the others are not kept."""
        if self.token_s is None or self.token_start is None:
            first = float(self.first_token_s[row])
            return [] if math.isnan(first) else [first, float(self.finish_s[row])]
        begin, end = self.token_start[row : row + 2].tolist()
        kept: list[float] = self.token_s[begin:end].tolist()
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeries:
    """Samples of one replica, or of one rank of it, each at the end of a step or less often, and both ends of each rest
    in which there was nothing to do: a step of no time. Every array is [S]."""

    replica: int
    t_s: Floats
    waiting: Ints
    """Requests that have no KV yet or lost it."""
    running: Ints
    decoding: Ints
    """Rows of the step that decode."""
    prefill_tokens: Ints
    """Rows of the step that are prompt."""
    kv_used: Floats
    """Share of the KV blocks in use, 0 to 1."""
    power_w: Floats
    step_s: Floats
    """How long the step took; 0 in a rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """A simulated run, whole or interrupted."""

    title: str
    requests: RequestColumns
    series: tuple[ReplicaSeries, ...] = ()
    steps: int = 0
    busy_s: tuple[float, ...] = ()
    """Seconds each replica spent in steps; each rank, where there are ranks."""
    ranks: int = 1
    """Schedulers of a replica, stepping together (attention data parallelism). `RequestColumns.replica`, series and
    `busy_s` count ranks through: rank j of replica i is i * ranks + j."""
    operator_s: Mapping[str, float] = field(default_factory=dict)
    """Operator kind -> seconds, host time included, over all replicas."""
    basis_s: Mapping[str, float] = field(default_factory=dict)
    """measured, extrapolated, assumed -> seconds of the priced time that rest on it."""
    open_loop: bool = True
    """Whether requests arrive whatever becomes of the others; only then can a run be past saturation."""
    interrupted: str = ""
    """Why the run was cut off; empty when it came to its end."""
    notes: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    """The deployment in words: model, hardware, layout, policy, memory, workload, cost model."""
    limits: Limits = field(default_factory=Limits)
    price_per_hour: float | None = None
    """US dollars for all devices together; None: not stated."""
    energy_j: float | None = None
    """Of all devices over the whole run, and of the nodes around them where one is named; None: not modelled."""
    wall_s: float = 0.0
    """Real seconds the simulation took."""

    @property
    def begin_s(self) -> float:
        """First arrival."""
        return float(self.requests.arrival_s.min()) if len(self.requests) else 0.0

    @property
    def end_s(self) -> float:
        """Last event that is known."""
        columns = self.requests
        ends = [float(np.nanmax(times)) for times in (columns.finish_s, columns.first_token_s, columns.arrival_s)
                if times.size and not np.isnan(times).all()]  # fmt: skip
        return max([*ends, *(float(series.t_s[-1]) for series in self.series if series.t_s.size)], default=0.0)
