"""Is the machine undisturbed right now? A small product, timed again and again, against the fastest it ever was.

Two threads of one core, or a neighbour on the last cache, can halve the speed of a program that nobody preempts. What
is measured meanwhile is of another machine than the one that will serve, so it is left out where there is better.
"""

from __future__ import annotations

import statistics
from time import perf_counter
from typing import Final

import torch

DISTURBED: Final = 1.12
"""Slower than this times the best: somebody else was at work. The product itself varies by 3 %."""


class Probe:
    """Under a millisecond a look, with as many threads as torch uses."""

    def __init__(self) -> None:
        self._a, self._b = torch.randn(128, 384), torch.randn(384, 384)
        self._best = float("inf")
        for _ in range(50):
            self.slowness()

    def slowness(self, looks: int = 3) -> float:
        """Time of the product now over the best there ever was: 1 is undisturbed."""
        found = []
        for _ in range(looks):
            started = perf_counter()
            torch.mm(self._a, self._b)
            found.append(perf_counter() - started)
        self._best = min(self._best, *found)
        return statistics.median(found) / self._best
