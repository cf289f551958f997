"""Where saturation begins, measured and predicted, apart from the error of single points.

A ladder is one deployment and one pair of lengths at four loads or more. Of a closed loop the asymptotes are N / R0
under light load and the largest throughput under heavy load (Denning and Buzen 1978); they cross at N* = X_max x R0,
the concurrency of the knee. X = N / R, R = TTFT + (o - 1) TPOT.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable

from silicon_rows import Point

LEAST = 4
"""Loads of a ladder."""
SPREAD = 8
"""The heaviest load of a ladder over the lightest, at least: else there is no knee between them."""


def knees(pairs: Iterable[tuple[Point, float, float]]) -> list[tuple[float, float]]:
    """(measured, predicted) concurrency of the knee, one a ladder."""
    ladders: dict[tuple[object, ...], list[tuple[Point, float, float]]] = defaultdict(list)
    for pair in pairs:
        point = pair[0]
        ladders[point.group, point.prompt, point.output].append(pair)
    found = []
    for ladder in ladders.values():
        loads = {point.concurrency for point, _, _ in ladder}
        if len(loads) < LEAST or max(loads) < SPREAD * min(loads):
            continue
        measured = [(p.concurrency, p.ttft + (p.output - 1) * p.tpot) for p, _, _ in ladder]
        predicted = [(p.concurrency, ttft + (p.output - 1) * tpot) for p, ttft, tpot in ladder]
        found.append((_knee(measured), _knee(predicted)))
    return found


def _knee(points: list[tuple[int, float]]) -> float:
    return max(load / seconds for load, seconds in points) * min(points)[1]


def knee_errors(pairs: Iterable[tuple[Point, float, float]]) -> dict[str, float | int]:
    """How far the predicted knees lie from the measured ones, in per cent, median and mean."""
    errors = [100 * abs(predicted / measured - 1) for measured, predicted in knees(pairs)]
    if not errors:
        return {"ladders": 0}
    return {
        "ladders": len(errors),
        "median": round(statistics.median(errors), 1),
        "mean": round(statistics.fmean(errors), 1),
    }
