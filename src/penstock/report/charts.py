"""Charts as inline SVG: lines, envelopes, stacks and bars. No scripts, no fonts, nothing fetched.

A curve with more samples than the chart has pixels across is drawn as its envelope, for every pixel column the least
to the greatest value in it, with a line through the means: no peak and no gap is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLOURS: Final = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
WIDTH, HEIGHT = 480, 260
_LEFT, _RIGHT, _BOTTOM, _TOP = 60, 18, 40, 12
PIXELS: Final = WIDTH - _LEFT - _RIGHT
_ACROSS, _DOWN = PIXELS, HEIGHT - _BOTTOM - _TOP


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line through ([N] x ascending, [N] y)."""

    name: str
    x: Floats
    y: Floats


@dataclass(frozen=True, slots=True)
class Axes:
    """Titles, and where the axes end; both begin at 0 unless `left` says otherwise."""

    x_label: str
    y_label: str
    left: float
    right: float
    top: float

    def place(self, x: Floats, y: Floats) -> str:
        """Points for SVG."""
        across = _LEFT + (x - self.left) / ((self.right - self.left) or 1) * _ACROSS
        down = _TOP + _DOWN - y / (self.top or 1) * _DOWN
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across.tolist(), down.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a curve does in each pixel column that holds samples; all arrays [columns]."""

    x: Floats
    """Middles of the columns."""
    least: Floats
    mean: Floats
    most: Floats


def envelope(x: Floats, y: Floats, left: float, right: float) -> Envelope | None:
    """Least, mean and greatest sample per pixel column; None where there are few enough samples to draw them all."""
    if x.size <= 2 * PIXELS:
        return None
    column = np.clip(((x - left) / ((right - left) or 1) * PIXELS).astype(np.int64), 0, PIXELS - 1)
    begins = np.flatnonzero(np.concatenate([[True], np.diff(column) > 0]))
    counts = np.diff(np.concatenate([begins, [x.size]]))
    middles = left + (column[begins] + 0.5) / PIXELS * (right - left)
    return Envelope(
        middles, np.minimum.reduceat(y, begins), np.add.reduceat(y, begins) / counts, np.maximum.reduceat(y, begins)
    )


def ticks(low: float, high: float) -> list[float]:
    """Three to six round values in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** np.floor(np.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5.5)
    return [float(step * number) for number in range(int(np.ceil(low / step)), int(np.floor(high / step + 1e-9)) + 1)]


def label(value: float) -> str:
    """
    >>> label(12500), label(0.25), label(3e6)
    ('12.5k', '0.25', '3M')
    """
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{value:.4g}"


def line_chart(
    title: str, x_label: str, y_label: str, curves: Sequence[Curve], *, right: float | None = None,
    top: float | None = None, marks: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """A figure with a line per curve, straight from sample to sample. `marks`: vertical lines, such as a limit."""
    drawn = [curve for curve in curves if curve.x.size]
    if not drawn:
        return ""
    left = min(0.0, min(float(curve.x[0]) for curve in drawn))
    end = right if right is not None else max(float(curve.x[-1]) for curve in drawn)
    axes = Axes(x_label, y_label, left, end, top if top is not None else max(float(curve.y.max()) for curve in drawn))
    parts = []
    for number, curve in enumerate(curves):  # a curve without samples keeps its colour for the other charts
        inside = curve.x <= end
        x, y, colour = curve.x[inside], curve.y[inside].astype(np.float64), COLOURS[number % len(COLOURS)]
        band = envelope(x, y, left, end)
        if band is not None:
            outline = axes.place(np.concatenate([band.x, band.x[::-1]]), np.concatenate([band.most, band.least[::-1]]))
            parts.append(f'<polygon fill="{colour}" fill-opacity="0.25" points="{outline}"/>')
            x, y = band.x, band.mean
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.2" points="{axes.place(x, y)}"/>')
    for name, at in (marks or {}).items():
        if left <= at <= end:
            spot = axes.place(np.array([at, at]), np.array([0.0, axes.top])).split()
            (low, bottom), (_, high) = spot[0].split(","), spot[1].split(",")
            parts.append(f'<path d="M{low} {bottom}V{high}" stroke="#dc2626" stroke-dasharray="4 3"/>')
            parts.append(f'<text x="{float(low) + 3:.1f}" y="{float(high) + 10:.1f}">{escape(name)}</text>')
    return _figure(title, axes, parts, [curve.name for curve in curves])


def stack_chart(title: str, x_label: str, y_label: str, edges: Floats, layers: Sequence[tuple[str, Floats]]) -> str:
    """Layers on top of one another: `edges` [N + 1] of the bins, each layer [N] values, drawn as steps."""
    if edges.size < 2 or not layers:
        return ""
    base = np.zeros(edges.size - 1)
    top = float(np.sum([values for _, values in layers], axis=0).max())
    axes = Axes(x_label, y_label, min(0.0, float(edges[0])), float(edges[-1]), top)
    parts = []
    across = np.repeat(edges, 2)[1:-1]
    for number, (_, values) in enumerate(layers):
        upper = base + values
        outline = np.concatenate([np.repeat(upper, 2), np.repeat(base, 2)[::-1]])
        points = axes.place(np.concatenate([across, across[::-1]]), outline)
        parts.append(f'<polygon fill="{COLOURS[number % len(COLOURS)]}" fill-opacity="0.75" points="{points}"/>')
        base = upper
    return _figure(title, axes, parts, [name for name, _ in layers])


def bar_chart(title: str, shares: Mapping[str, float]) -> str:
    """Horizontal bars of shares of 1, in the order given."""
    if not shares:
        return ""
    row, names = 24, 130
    height = row * len(shares) + 8
    longest = max(shares.values()) or 1.0
    parts = []
    for number, (name, share) in enumerate(shares.items()):
        top, length = 4 + row * number, share / longest * (WIDTH - names - 60)
        parts.append(
            f'<text x="{names - 6}" y="{top + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{names}" y="{top}" width="{max(length, 0.5):.1f}" height="{row - 6}" '
            f'fill="{COLOURS[number % len(COLOURS)]}"/>'
            f'<text x="{names + length + 5:.1f}" y="{top + 14}">{share:.1%}</text>'
        )
    return _frame(title, height, parts, ())


def _figure(title: str, axes: Axes, parts: Sequence[str], names: Sequence[str]) -> str:
    base = HEIGHT - _BOTTOM
    marks = []
    for at in ticks(axes.left, axes.right):
        across = _LEFT + (at - axes.left) / ((axes.right - axes.left) or 1) * _ACROSS
        marks.append(f'<text x="{across:.0f}" y="{base + 15}" text-anchor="middle">{label(at)}</text>')
        marks.append(f'<path d="M{across:.1f} {base}v3" stroke="#888" fill="none"/>')
    for at in ticks(0.0, axes.top):
        down = base - at / (axes.top or 1) * _DOWN
        marks.append(f'<text x="{_LEFT - 5}" y="{down + 4:.0f}" text-anchor="end">{label(at)}</text>')
        marks.append(f'<path d="M{_LEFT} {down:.0f}H{WIDTH - _RIGHT}" stroke="#8884" fill="none"/>')
    labels = (
        f'<text x="{_LEFT + _ACROSS / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axes.x_label)}</text>'
        f'<text transform="translate(12 {_TOP + _DOWN / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes.y_label)}</text>"
    )
    return _frame(title, HEIGHT, [*marks, *parts, labels], names if len(names) > 1 else ())


def _frame(title: str, height: int, parts: Sequence[str], names: Sequence[str]) -> str:
    keys = " ".join(
        f'<span><b style="color:{COLOURS[number % len(COLOURS)]}">&#9632;</b> {escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-size="11" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>{f"<div class=key>{keys}</div>" if keys else ""}</figure>'
    )
