"""A histogram that costs one bisection per value, as one value comes with every streamed token.

prometheus_client's own takes a lock and resolves labels each time; the front end is one thread and its labels never
change, so counts are plain lists and only the scrape builds families of the library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts of values by upper bound, inclusive, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound as Prometheus writes it, values up to it), ending with +Inf."""
        names = [repr(float(bound)) for bound in self.bounds] + ["+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))
