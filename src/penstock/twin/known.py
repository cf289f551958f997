"""What a price remembers: seconds by a count, and straight lines over contexts."""

from __future__ import annotations

import bisect
from typing import Final

CONTEXT_RATIO: Final = 1.125
"""Decode attention is priced at contexts this far apart and interpolated: costs are straight or gently bent, and the
error of the chord of a parabola over such a step is below 0.4 %."""
UNKNOWN: Final = -1.0
_LISTED: Final = 4096


class ByCount:
    """Seconds by a number of rows: a list for the usual ones, a dict for those beyond."""

    __slots__ = ("_few", "_many")

    def __init__(self) -> None:
        self._few = [UNKNOWN] * _LISTED
        self._many: dict[int, float] = {}

    def get(self, count: int) -> float:
        """UNKNOWN where nothing was put."""
        return self._few[count] if count < _LISTED else self._many.get(count, UNKNOWN)

    def put(self, count: int, seconds: float) -> float:
        """Remember, and give back, `seconds`."""
        if count < _LISTED:
            self._few[count] = seconds
        else:
            self._many[count] = seconds
        return seconds


class Line:
    """Seconds as a straight line over contexts from `start` up to `stop`."""

    __slots__ = ("base", "slope", "start", "stop")

    def __init__(self, start: float, stop: float, base: float, slope: float) -> None:
        self.start, self.stop = start, stop
        self.base = base
        """At `start`."""
        self.slope = slope

    def at(self, context: int) -> float:
        """Seconds."""
        return self.base + self.slope * (context - self.start)


class Lines:
    """What is known of one batch size, ascending, and where each line starts."""

    __slots__ = ("_lines", "_starts")

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._lines: list[Line] = []

    def find(self, context: int) -> Line | None:
        """The line over `context`, if there is one."""
        at = bisect.bisect_right(self._starts, context)
        if not at:
            return None
        line = self._lines[at - 1]
        return line if context < line.stop else None

    def add(self, line: Line) -> None:
        """Where there was none."""
        at = bisect.bisect_right(self._starts, line.start)
        self._starts.insert(at, line.start)
        self._lines.insert(at, line)


NO_LINE: Final = Line(0.0, 0.0, 0.0, 0.0)


def around(mean: float) -> tuple[float, float]:
    """The two mean contexts of the grid around `mean`: 1, 2, 3, ... and from 8 on, geometric.

    >>> around(5.5)
    (5.0, 6.0)
    """
    mean = max(1.0, mean)
    low = float(int(mean)) if mean < 8 else 8.0
    if low < 8:
        return low, low + 1
    while low * CONTEXT_RATIO <= mean:
        low *= CONTEXT_RATIO
    return low, low * CONTEXT_RATIO
