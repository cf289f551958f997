"""A report in one HTML file: numbers, distributions, throughput over time. No scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.report.latency import FORMULAS, RequestRecord, e2e_s, in_flight, itl_s, token_flow, tpot_s, ttft_s
from penstock.report.result import StageResult
from penstock.report.table import console_block

Curve = tuple[str, NDArray[np.float64], NDArray[np.float64]]
_COLOURS: Final = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 460, 260, 60, 40, 14
_POINTS: Final = 300
_BINS: Final = 120
_STYLE: Final = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1000px;padding:0 1rem;color:#111;background:#fff}
pre{background:#f5f5f5;padding:1rem;overflow-x:auto;font-size:12px}
figure{display:inline-block;margin:0 1rem 1rem 0}figcaption{font-weight:600}
td{padding:0 1rem 0 0}.invalid{color:#b91c1c;font-weight:600}
@media(prefers-color-scheme:dark){body{color:#eee;background:#111}pre{background:#222}svg text{fill:#ddd}}
"""


def html_report(results: Sequence[StageResult], *, title: str) -> str:
    """The whole page as text. Every string from outside is escaped."""
    cdfs = (
        ("TTFT", lambda records: _values(ttft_s, records)),
        ("TPOT", lambda records: _values(tpot_s, records)),
        ("ITL", _all_gaps),
        ("End-to-end latency", lambda records: _values(e2e_s, records)),
    )
    figures = [
        _figure(f"{name} (ms)", "ms", "share of samples", [_cdf(result, values) for result in results])
        for name, values in cdfs
    ]
    flows = [_flow(result) for result in results]
    loads = [_load(result) for result in results]
    figures += [
        _figure("Output tokens per second", "s since the stage began", "tok/s", flows),
        _figure("Requests in flight", "s since the stage began", "requests", loads),
    ]
    invalid = "".join(
        f"<p class=invalid>{escape(result.name)} is INVALID: {escape(result.invalid)}</p>"
        for result in results
        if result.invalid
    )
    blocks = "".join(f"<pre>{escape(console_block(result))}</pre>" for result in results)
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(text)}" for name, text in FORMULAS.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>{invalid}{_legend(results)}{''.join(figures)}{blocks}"
        f"<h2>Definitions</h2><table>{rows}</table></html>\n"
    )


def _values(metric: Callable[[RequestRecord], float | None], records: Iterable[RequestRecord]) -> NDArray[np.float64]:
    seen = (metric(record) for record in records)
    return np.array([value for value in seen if value is not None], dtype=np.float64)


def _all_gaps(records: Iterable[RequestRecord]) -> NDArray[np.float64]:
    gaps = [itl_s(record) for record in records]
    return np.concatenate(gaps) if gaps else np.empty(0)


def _cdf(result: StageResult, values: Callable[[list[RequestRecord]], NDArray[np.float64]]) -> Curve:
    sample = np.sort(values([record for record in result.records if record.outcome == "completed"])) * 1e3
    if not sample.size:
        return result.name, np.empty(0), np.empty(0)
    shares = np.linspace(0, 1, min(_POINTS, sample.size + 1))
    return result.name, np.quantile(sample, shares), shares


def _flow(result: StageResult) -> Curve:
    times, tokens = token_flow(result.records)
    if not times.size or times.max() <= 0:
        return result.name, np.empty(0), np.empty(0)
    sums, edges = np.histogram(times, bins=_BINS, range=(0.0, float(times.max())), weights=tokens)
    return result.name, (edges[1:] + edges[:-1]) / 2, sums / (edges[1] - edges[0])


def _load(result: StageResult) -> Curve:
    times, level = in_flight(result.records)
    if not times.size:
        return result.name, np.empty(0), np.empty(0)
    grid = np.linspace(times[0], times[-1], _POINTS)
    at = np.clip(np.searchsorted(times, grid, side="right") - 1, 0, None)
    return result.name, grid, level[at].astype(np.float64)


def _legend(results: Sequence[StageResult]) -> str:
    items = (
        f'<span style="color:{_COLOURS[number % len(_COLOURS)]}">&#9632;</span> {escape(result.name)} '
        for number, result in enumerate(results)
    )
    return f"<p>{'&ensp;'.join(items)}</p>"


def _figure(title: str, x_label: str, y_label: str, curves: Sequence[Curve]) -> str:
    """One chart with linear axes from 0; the x axis ends at the largest 99th percentile so a tail does not hide it."""
    right = max((float(np.quantile(x, 0.99)) for _, x, _ in curves if x.size), default=1.0) or 1.0
    top = max((float(y.max()) for _, _, y in curves if y.size), default=1.0) or 1.0

    def place(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
        across = _LEFT + x / right * (_WIDTH - _LEFT - 10)
        down = _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _BOTTOM - _TOP)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))

    lines = []
    for number, (_, x, y) in enumerate(curves):
        shown = x <= right
        if shown.any():
            colour = _COLOURS[number % len(_COLOURS)]
            lines.append(
                f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{place(x[shown], y[shown])}"/>'
            )
    base = _HEIGHT - _BOTTOM
    marks = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        across, down = _LEFT + part * (_WIDTH - _LEFT - 10), base - part * (base - _TOP)
        marks.append(f'<text x="{across:.0f}" y="{base + 15}" text-anchor="middle">{part * right:.4g}</text>')
        marks.append(f'<text x="{_LEFT - 5}" y="{down + 4:.0f}" text-anchor="end">{part * top:.3g}</text>')
        marks.append(f'<path d="M{_LEFT} {down:.0f}H{_WIDTH - 10}" stroke="#8884" fill="none"/>')
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="11" role="img" '
        f'aria-label="{escape(title)}">{"".join(marks)}{"".join(lines)}'
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(12 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        "</svg></figure>"
    )
