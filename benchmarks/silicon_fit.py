"""A few constants per engine and system, fitted on the training half of the configurations.

Predictions are nearly straight in each constant, so one simulation per constant and row gives slopes, and the fit is
done on those: the sum of |log(predicted / measured)| of TPOT and TTFT is brought down by coordinate search inside
bounds that physics sets. Twice, the second time around the first result. No randomness: rows are taken evenly.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields

from silicon_loop import Costs
from silicon_model import simulate
from silicon_rows import Point

from penstock.errors import InvalidDeployment

START = Costs(device=1.1, step_s=0.4e-3, launch_s=5e-6, request_s=2e-6, front_s=0.03, stream_s=0.1e-3)
MOVES = Costs(device=0.1, step_s=0.5e-3, launch_s=10e-6, request_s=10e-6, front_s=0.03, stream_s=0.5e-3)
LOWEST = Costs(device=0.8, step_s=0.0, launch_s=0.0, request_s=0.0, front_s=0.002, stream_s=0.0)
HIGHEST = Costs(device=1.8, step_s=6e-3, launch_s=80e-6, request_s=150e-6, front_s=0.3, stream_s=3e-3)
TTFT_WEIGHT = 0.6


@dataclass(frozen=True, slots=True)
class Slopes:
    """One row around some constants: predictions there and their change per constant."""

    ttft: float
    tpot: float
    by: tuple[tuple[float, float], ...]
    measured: tuple[float, float]


def spread_out(points: list[Point], most: int) -> list[Point]:
    """At most so many, evenly from the list ordered by configuration, load and lengths."""
    ordered = sorted(points, key=lambda point: (point.group, point.prompt, point.output, point.concurrency, point.id))
    if len(ordered) <= most:
        return ordered
    return [ordered[i * len(ordered) // most] for i in range(most)]


def fit(points: list[Point], most: int = 36) -> Costs:
    """Constants for one engine on one system. `points` are its training rows."""
    # Long runs cost the most and say the least.
    sample = spread_out([point for point in points if point.concurrency <= 256] or points, most)
    costs = START
    for _ in range(2):
        rows = [row for point in sample if (row := _slopes(point, costs)) is not None]
        if not rows:
            return costs
        costs = _search(rows, costs)
    return costs


def _slopes(point: Point, at: Costs) -> Slopes | None:
    try:
        base = simulate(point, at)
        by = []
        for place in range(len(fields(Costs))):
            values, moves = list(astuple(at)), astuple(MOVES)
            values[place] += moves[place]
            moved = simulate(point, Costs(*values))
            by.append(((moved.ttft - base.ttft) / moves[place], (moved.tpot - base.tpot) / moves[place]))
    except InvalidDeployment:
        return None
    return Slopes(base.ttft, base.tpot, tuple(by), (point.ttft, point.tpot))


def _loss(rows: list[Slopes], steps: list[float]) -> float:
    total = 0.0
    for row in rows:
        ttft = row.ttft + sum(step * slope[0] for step, slope in zip(steps, row.by, strict=True))
        tpot = row.tpot + sum(step * slope[1] for step, slope in zip(steps, row.by, strict=True))
        total += min(1.0, abs(math.log(max(tpot, 0.05 * row.tpot) / row.measured[1])))
        total += TTFT_WEIGHT * min(1.5, abs(math.log(max(ttft, 0.05 * row.ttft) / row.measured[0])))
    return total


def _search(rows: list[Slopes], at: Costs) -> Costs:
    start, low, high = astuple(at), astuple(LOWEST), astuple(HIGHEST)
    steps, best = [0.0] * len(start), math.inf
    size = [0.5 * move for move in astuple(MOVES)]
    best = _loss(rows, steps)
    for _ in range(60):
        better = False
        for place in range(len(steps)):
            for sign in (1, -1, 3, -3):
                tried = steps.copy()
                wanted = start[place] + tried[place] + sign * size[place]
                tried[place] = min(high[place], max(low[place], wanted)) - start[place]
                loss = _loss(rows, tried)
                if loss < best - 1e-9:
                    best, steps, better = loss, tried, True
        if not better:
            size = [value / 2 for value in size]
            if size[0] < 1e-3:
                break
    return Costs(*(value + step for value, step in zip(start, steps, strict=True)))
