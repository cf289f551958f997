"""Interpolation over measured points: curves of one axis, surfaces of two, blocks of three.

Plain lists and bisection: a look-up takes about a microsecond, with no array library on the way. Between points a
curve runs straight, in its own axes or (`log=True`) in logarithms, where power laws are straight. Past its last point
it goes on with the slope of its last stretch, never falling; before its first point it keeps that point's value, since
what a kernel costs at least is a floor. Each answer says whether it lay inside the measured points.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from typing import Final

_LARGEST: Final = 700.0
"""Of a logarithm: e to this is still a number."""


class Curve:
    """Seconds along one axis.

    Args:
        points: (x, seconds), x > 0, any order; of two with the same x the faster counts (an engine takes its best
            kernel).
        log: straight lines between logarithms.
    """

    __slots__ = ("_log", "_xs", "_ys")

    def __init__(self, points: Iterable[tuple[float, float]], *, log: bool = False) -> None:
        best: dict[float, float] = {}
        for x, y in points:
            if y > 0 and y < best.get(x, math.inf):
                best[x] = y
        if not best:
            raise ValueError("a curve needs at least one point with a time above zero")
        self._log = log
        self._xs = sorted(best)
        self._ys = [best[x] for x in self._xs]
        if log:
            self._xs = [math.log(x) for x in self._xs]
            self._ys = [math.log(y) for y in self._ys]

    def at(self, x: float) -> tuple[float, bool]:
        """Seconds at x, and whether x lies between the measured points."""
        xs, ys = self._xs, self._ys
        if self._log:
            x = math.log(x) if x > 0 else -math.inf
        if x <= xs[0]:
            return (math.exp(ys[0]) if self._log else ys[0]), x == xs[0]
        last = len(xs) - 1
        inside = x <= xs[last]
        if not last:
            # One point only: in proportion.
            return (math.exp(ys[0] + x - xs[0]) if self._log else ys[0] * x / xs[0]), inside
        i = min(bisect.bisect_left(xs, x), last)
        slope = (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])
        y = ys[i - 1] + (x - xs[i - 1]) * slope if inside else ys[last] + (x - xs[last]) * max(0.0, slope)
        return (math.exp(min(y, _LARGEST)) if self._log else y), inside

    @property
    def last(self) -> float:
        """The largest x that was measured."""
        return math.exp(self._xs[-1]) if self._log else self._xs[-1]


class Surface:
    """Seconds over two axes: a curve along the second for each measured value of the first; straight lines between.

    Args:
        points: (first, second, seconds).
        log: of the curves along the second axis.
    """

    __slots__ = ("_curves", "_keys")

    def __init__(self, points: Iterable[tuple[float, float, float]], *, log: bool = False) -> None:
        by_first: dict[float, list[tuple[float, float]]] = {}
        for first, second, seconds in points:
            if seconds > 0:
                by_first.setdefault(first, []).append((second, seconds))
        if not by_first:
            raise ValueError("a surface needs at least one point with a time above zero")
        self._keys = sorted(by_first)
        self._curves = [Curve(by_first[key], log=log) for key in self._keys]

    def at(self, first: float, second: float) -> tuple[float, bool]:
        """Seconds at a point, and whether it lies among the measured ones."""
        keys = self._keys
        i = bisect.bisect_left(keys, first)
        if i < len(keys) and keys[i] == first:
            return self._curves[i].at(second)
        if i == 0:
            return self._curves[0].at(second)[0], False
        if i == len(keys):
            if i == 1:
                return self._curves[0].at(second)[0] * (first / keys[0] if keys[0] else 1.0), False
            (low, _), (high, _) = self._curves[-2].at(second), self._curves[-1].at(second)
            slope = max(0.0, (high - low) / (keys[-1] - keys[-2]))
            return high + slope * (first - keys[-1]), False
        low, low_in = self._curves[i - 1].at(second)
        high, high_in = self._curves[i].at(second)
        share = (first - keys[i - 1]) / (keys[i] - keys[i - 1])
        return low + share * (high - low), low_in and high_in

    def curve(self, first: float) -> Curve | None:
        """The curve measured at just this value of the first axis."""
        i = bisect.bisect_left(self._keys, first)
        return self._curves[i] if i < len(self._keys) and self._keys[i] == first else None


class Products:
    """Matrix products over (columns, inner), each with a curve over rows.

    Between measured widths seconds are taken as bilinear, as work and weights are; a corner that was not measured (the
    largest products did not fit) counts as the nearest one that was, in proportion to its weights.
    """

    def __init__(self, curves: Mapping[tuple[int, int], Curve]) -> None:
        if not curves:
            raise ValueError("no products were measured")
        self._curves = dict(curves)
        self._columns = sorted({columns for columns, _ in curves})
        self._inner = sorted({inner for _, inner in curves})
        self._corners: dict[tuple[int, int], list[tuple[Curve, float, bool]]] = {}

    def at(self, rows: int, columns: int, inner: int) -> tuple[float, bool]:
        """Seconds of [rows, inner] x [inner, columns], and whether all of it lay among measured points."""
        corners = self._corners.get((columns, inner))
        if corners is None:
            corners = self._corners[columns, inner] = self._weigh(columns, inner)
        seconds, inside = 0.0, True
        for curve, weight, measured in corners:
            one, within = curve.at(rows)
            seconds += weight * one
            inside = inside and measured and within
        return seconds, inside

    def _weigh(self, columns: int, inner: int) -> list[tuple[Curve, float, bool]]:
        corners = []
        for n, n_share, n_in in _neighbours(self._columns, columns):
            for k, k_share, k_in in _neighbours(self._inner, inner):
                share = n_share * k_share
                if not share:
                    continue
                found = self._curves.get((n, k))
                if found is not None:
                    corners.append((found, share, n_in and k_in))
                    continue
                near = min(self._curves, key=lambda key: abs(math.log(key[0] * key[1] / (n * k))))
                corners.append((self._curves[near], share * n * k / (near[0] * near[1]), False))
        return corners


def _neighbours(keys: list[int], x: int) -> list[tuple[int, float, bool]]:
    """The two measured values around x with the share of each. Past the last: the last, in proportion."""
    if x <= keys[0]:
        return [(keys[0], 1.0, x == keys[0])]
    if x > keys[-1]:
        return [(keys[-1], x / keys[-1], False)]
    i = bisect.bisect_left(keys, x)
    if keys[i] == x:
        return [(x, 1.0, True)]
    share = (x - keys[i - 1]) / (keys[i] - keys[i - 1])
    return [(keys[i - 1], 1.0 - share, True), (keys[i], share, True)]
