"""Eight constants of an engine on a system, fitted on the training half of the configurations.

How kernels inside an engine compare with kernels alone (with prompts, and without), the host's times (between steps,
launches, sequences), and those of the way in and out (the front, streaming, reading prompts). Predictions are nearly
straight in each constant, so one simulation per constant and row gives slopes, and the fit is done on those: the sum of
|log(predicted / measured)| of TPOT and TTFT is brought down by coordinate search inside bounds that physics sets.
Twice, the second time around the first result, from two starts. No randomness: rows are taken evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace

from silicon_loop import Costs
from silicon_model import simulate
from silicon_rows import Point

from penstock.errors import InvalidDeployment

START = Costs(
    device=1.05, prompt=1.25, step_s=0.4e-3, launch_s=30e-6, request_s=2e-6, front_s=0.03, stream_s=0.2e-3, read_s=1e-6
)
STARTS = (replace(START, launch_s=12e-6, front_s=0.02), replace(START, launch_s=45e-6))
"""A step waits for its device or for its launches, whichever takes longer: from one side the other cannot be seen."""
MOVES = Costs(
    device=0.1, prompt=0.1, step_s=0.5e-3, launch_s=15e-6, request_s=5e-6, front_s=0.03, stream_s=0.2e-3, read_s=1e-6
)
LOWEST = Costs(
    device=0.8, prompt=0.9, step_s=0.0, launch_s=3e-6, request_s=0.0, front_s=0.005, stream_s=0.05e-3, read_s=0.2e-6
)
HIGHEST = Costs(
    device=1.5, prompt=1.8, step_s=3e-3, launch_s=80e-6, request_s=20e-6, front_s=0.3, stream_s=1e-3, read_s=4e-6
)
TTFT_WEIGHT = 0.8


@dataclass(frozen=True, slots=True)
class Slopes:
    """One row around some constants: predictions there and their change per constant."""

    system: str
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


def training_sample(points: list[Point], most: int) -> list[Point]:
    """Up to `most` rows of each system. Long runs cost the most and say the least."""
    sample = []
    for system in sorted({point.system for point in points}):
        there = [point for point in points if point.system == system]
        sample += spread_out([point for point in there if point.concurrency <= 128] or there, most)
    return sample


Spread = Callable[[Callable[..., object], Iterable[tuple[Point, Costs]]], list[object]]
"""Maps a function over arguments, on as many processes as it likes."""


def fit(sample: list[Point], spread: Spread) -> dict[str, Costs]:
    """Constants of one engine by system: of the searches from STARTS, those whose own simulations come nearest."""
    systems = sorted({point.system for point in sample})
    best: dict[str, tuple[float, Costs]] = {}
    for start in STARTS:
        costs = dict.fromkeys(systems, start)
        for last in (False, False, True):
            asked = [(point, costs[point.system]) for point in sample]
            found = spread(here if last else slopes, asked)
            rows = [row for row in found if isinstance(row, Slopes)]
            for system, at in costs.items():
                mine = [row for row in rows if row.system == system]
                if not mine:
                    continue
                loss = _loss(mine, [0.0] * len(astuple(at)))
                if system not in best or loss < best[system][0]:
                    best[system] = loss, at
                if not last:
                    costs[system] = _search(mine, at)
    return {system: found for system, (_, found) in best.items()}


def here(point: Point, at: Costs) -> Slopes | None:
    """Without slopes, which are dear."""
    try:
        base = simulate(point, at)
    except InvalidDeployment:
        return None
    level = ((0.0, 0.0),) * len(fields(Costs))
    return Slopes(point.system, base.ttft, base.tpot, level, (point.ttft, point.tpot))


def slopes(point: Point, at: Costs) -> Slopes | None:
    """None: the deployment does not fit."""
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
    return Slopes(point.system, base.ttft, base.tpot, tuple(by), (point.ttft, point.tpot))


def _loss(rows: list[Slopes], steps: Sequence[float]) -> float:
    """`steps`: changes of the constants from where the slopes were taken."""
    total = 0.0
    for row in rows:
        ttft = row.ttft + sum(step * slope[0] for step, slope in zip(steps, row.by, strict=True))
        tpot = row.tpot + sum(step * slope[1] for step, slope in zip(steps, row.by, strict=True))
        total += min(0.7, abs(math.log(max(tpot, 0.05 * row.tpot) / row.measured[1])))
        total += TTFT_WEIGHT * min(1.0, abs(math.log(max(ttft, 0.05 * row.ttft) / row.measured[0])))
    return total


def _search(rows: list[Slopes], at: Costs) -> Costs:
    """Coordinate search with steps that halve when nothing gets better."""
    start, low, high, move = astuple(at), astuple(LOWEST), astuple(HIGHEST), astuple(MOVES)
    steps = [0.0] * len(start)
    size, best = 0.5, _loss(rows, steps)
    while size > 0.02:
        before = best
        for place in range(len(start)):
            for sign in (1, -1, 3, -3):
                wanted = start[place] + steps[place] + sign * size * move[place]
                tried = steps.copy()
                tried[place] = min(high[place], max(low[place], wanted)) - start[place]
                if (loss := _loss(rows, tried)) < best - 1e-9:
                    steps, best = tried, loss
        if best > before - 1e-6:
            size /= 2
    return Costs(*(value + step for value, step in zip(start, steps, strict=True)))
