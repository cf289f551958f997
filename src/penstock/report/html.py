"""A report in one HTML file: numbers, distributions, throughput over time. No scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.report.charts import Curve, line_chart
from penstock.report.latency import FORMULAS, RequestRecord, e2e_s, in_flight, itl_s, token_flow, tpot_s, ttft_s
from penstock.report.result import StageResult
from penstock.report.table import console_block

_POINTS: Final = 300
_BINS: Final = 120
STYLE: Final = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1060px;padding:0 1rem;color:#111;background:#fff}
pre{background:#f5f5f5;padding:1rem;overflow-x:auto;font-size:12px}
figure{display:inline-block;margin:0 1rem 1rem 0;vertical-align:top}figcaption{font-weight:600}
.key{font-size:12px;max-width:480px}.key span{margin-right:.8rem}
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
        figure(f"{name} (ms)", "ms", "share of samples", [_cdf(result, values) for result in results])
        for name, values in cdfs
    ]
    flows = [_flow(result) for result in results]
    loads = [_load(result) for result in results]
    figures += [
        figure("Output tokens per second", "s since the stage began", "tok/s", flows),
        figure("Requests in flight", "s since the stage began", "requests", loads),
    ]
    invalid = "".join(
        f"<p class=invalid>{escape(result.name)} is INVALID: {escape(result.invalid)}</p>"
        for result in results
        if result.invalid
    )
    blocks = "".join(f"<pre>{escape(console_block(result))}</pre>" for result in results)
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(text)}" for name, text in FORMULAS.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1>{invalid}{''.join(figures)}{blocks}"
        f"<h2>Definitions</h2><table>{rows}</table></html>\n"
    )


def _values(metric: Callable[[RequestRecord], float | None], records: Iterable[RequestRecord]) -> NDArray[np.float64]:
    seen = (metric(record) for record in records)
    return np.array([value for value in seen if value is not None], dtype=np.float64)


def _all_gaps(records: Iterable[RequestRecord]) -> NDArray[np.float64]:
    gaps = [itl_s(record) for record in records]
    return np.concatenate(gaps) if gaps else np.empty(0)


def _cdf(result: StageResult, values: Callable[[list[RequestRecord]], NDArray[np.float64]]) -> Curve:
    return cdf(result.name, values([record for record in result.records if record.outcome == "completed"]))


def cdf(name: str, sample_s: NDArray[np.float64]) -> Curve:
    """The distribution of [N] seconds, in ms."""
    if not sample_s.size:
        return Curve(name, np.empty(0), np.empty(0))
    shares = np.linspace(0, 1, min(_POINTS, sample_s.size + 1))
    return Curve(name, np.quantile(sample_s * 1e3, shares), shares)


def _flow(result: StageResult) -> Curve:
    times, tokens = token_flow(result.records)
    if not times.size or times.max() <= 0:
        return Curve(result.name, np.empty(0), np.empty(0))
    sums, edges = np.histogram(times, bins=_BINS, range=(0.0, float(times.max())), weights=tokens)
    return Curve(result.name, (edges[1:] + edges[:-1]) / 2, sums / (edges[1] - edges[0]))


def _load(result: StageResult) -> Curve:
    times, level = in_flight(result.records)
    if not times.size:
        return Curve(result.name, np.empty(0), np.empty(0))
    grid = np.linspace(times[0], times[-1], _POINTS)
    at = np.clip(np.searchsorted(times, grid, side="right") - 1, 0, None)
    return Curve(result.name, grid, level[at].astype(np.float64))


def figure(title: str, x_label: str, y_label: str, curves: Sequence[Curve]) -> str:
    """One chart; the x axis ends at the largest 99th percentile so that a tail does not hide the rest."""
    right = max((float(np.quantile(curve.x, 0.99)) for curve in curves if curve.x.size), default=1.0) or 1.0
    return line_chart(title, x_label, y_label, curves, right=right)
