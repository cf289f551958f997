"""The report of a simulated run as one HTML file: numbers, distributions, what happened over time, what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.report.charts import COLOURS, PIXELS, Curve, Floats, bar_chart, label, line_chart, stack_chart
from penstock.report.latency import FORMULAS
from penstock.report.simulation import ReplicaSeries, RequestColumns, SimulationResult, lane_name
from penstock.report.simulation_table import console_table
from penstock.report.summary import Latencies, basis_shares, present, shares, summary, token_gaps

LINES: Final = len(COLOURS)
"""More replicas or ranks than this are drawn as their sum or mean."""
_BANDS: Final = (
    "Seconds of simulated time. Where a curve has more samples than pixels, its band spans the least to the greatest."
)
_POINTS: Final = 400
_BINS: Final = PIXELS // 4
_STYLE: Final = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1060px;padding:0 1rem;color:#111;background:#fff}
pre{background:#f5f5f5;padding:1rem;overflow-x:auto;font-size:12px}
figure{display:inline-block;margin:0 1rem 1rem 0;vertical-align:top}figcaption{font-weight:600}
.key{font-size:12px;max-width:480px}.key span{margin-right:.8rem}
th{text-align:left;font-weight:600}td,th{padding:0 1rem 0 0;vertical-align:top}
.note{border-left:4px solid #d97706;padding:.2rem .8rem;margin:.4rem 0;background:#d977061a}
@media(prefers-color-scheme:dark){body{color:#eee;background:#111}pre{background:#222}svg text{fill:#ddd}}
"""


def html_report(result: SimulationResult, numbers: Mapping[str, Any] | None = None) -> str:
    """The whole page as text. Every string from outside is escaped. `numbers`: the summary, if it is there already."""
    numbers = numbers if numbers is not None else summary(result)
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in numbers["notes"])
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(text)}" for name, text in FORMULAS.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(result.title)}</title>"
        f"<style>{_STYLE}</style><h1>{escape(result.title)}</h1>{notes}"
        f"<h2>Deployment</h2><table>{_config(result)}</table>"
        f"<h2>Latency</h2>{_latency(result)}<h2>Over time</h2><p>{_BANDS}</p>{_over_time(result)}"
        f"<h2>Where the time goes, and what that rests on</h2>{_shares(result)}"
        f"<h2>Numbers</h2><pre>{escape(console_table(numbers))}</pre>"
        f"<h2>Definitions</h2><table>{rows}</table></html>\n"
    )


def _config(result: SimulationResult) -> str:
    return "".join(f"<tr><th>{escape(str(key))}<td>{escape(str(value))}" for key, value in result.config.items())


def _latency(result: SimulationResult) -> str:
    seen, limits = Latencies.of(result.requests), result.limits
    charts = [_cdf("TTFT", present(seen.ttft), limits.ttft_s), _cdf("TPOT", present(seen.tpot), limits.tpot_s)]
    gaps = token_gaps(result.requests, seen)
    if gaps is not None:
        charts.append(_cdf("Inter-token latency", gaps, None, of="gaps"))
    return "".join([*charts, _cdf("End-to-end latency", present(seen.e2e), limits.e2e_s)])


def _cdf(name: str, values: Floats, limit: float | None, of: str = "requests") -> str:
    """Up to the 99.5th percentile, so that the tail does not hide the rest; the caption says where it ends."""
    if not values.size:
        return ""
    levels = np.linspace(0, 1, min(_POINTS, values.size + 1))
    right, largest = float(np.quantile(values, 0.995)), float(values.max())
    scale, unit = (1.0, "s") if right >= 10 else (1e3, "ms")
    marks = {} if limit is None else {"limit": scale * limit}
    curve = Curve(name, np.quantile(values, levels) * scale, levels)
    title = f"{name} (largest: {label(largest * scale)} {unit})"
    return line_chart(title, unit, f"share of {of}", [curve], right=right * scale or None, top=1.0, marks=marks)


def _over_time(result: SimulationResult) -> str:
    edges = np.linspace(result.begin_s, max(result.end_s, result.begin_s + 1e-9), _BINS + 1)
    columns, series = result.requests, [one for one in result.series if one.t_s.size]
    figures = [
        _flow(columns, edges),
        line_chart("Requests arriving and ending", "s", "requests/s", [
            _per_s("arriving", columns.arrival_s, edges), _per_s("ending", present(columns.finish_s), edges),
        ]),
        stack_chart("Rows of a step, mean of the samples", "s", "tokens", *_composition(series, edges)),
        _curves("Waiting requests", "requests", series, "waiting", ranks=result.ranks, total=True),
        _curves("Running requests", "requests", series, "running", ranks=result.ranks, total=True),
        _curves("KV blocks in use", "share", series, "kv_used", ranks=result.ranks, total=False, top=1.0),
        _curves("Step time", "ms", series, "step_s", ranks=result.ranks, total=False, scale=1e3),
    ]  # fmt: skip
    if any(one.power_w.any() for one in series):
        figures.append(_curves("Power", "W", series, "power_w", ranks=result.ranks, total=True))
    return "".join(figures)


def _flow(columns: RequestColumns, edges: Floats) -> str:
    """Tokens per second. Without token times a request's tokens are spread evenly from its first to its end."""
    seconds = np.diff(edges)
    begun = ~np.isnan(columns.first_token_s)
    first = columns.first_token_s[begun]
    read = np.histogram(first, edges, weights=(columns.prompt_tokens - columns.cached_tokens)[begun])[0] / seconds
    if columns.token_s is not None:
        made = np.histogram(columns.token_s, edges)[0] / seconds
    else:
        end = np.where(np.isnan(columns.finish_s[begun]), edges[-1], columns.finish_s[begun])
        made = np.diff(_spread(first, np.maximum(end, first), columns.output_tokens[begun], edges)) / seconds
    middles = (edges[1:] + edges[:-1]) / 2
    return line_chart("Tokens per second", "s", "tok/s", [
        Curve("output", middles, made), Curve("prompt, computed", middles, read),
    ])  # fmt: skip


def _spread(begins: Floats, ends: Floats, tokens: NDArray[np.integer], at: Floats) -> Floats:
    """[at.size] tokens made up to each time: the first of a request at `begins`, the rest evenly until `ends`."""
    rest = np.maximum(tokens - 1, 0)
    rates = np.where(ends > begins, rest / np.where(ends > begins, ends - begins, 1.0), 0.0)
    moments, slopes = np.concatenate([begins, ends]), np.concatenate([rates, -rates])
    order = np.argsort(moments, kind="stable")
    moments, slope = moments[order], np.cumsum(slopes[order])
    made = np.concatenate([[0.0], np.cumsum(slope[:-1] * np.diff(moments))])
    whole = np.interp(at, moments, made) if moments.size else np.zeros(at.size)
    jumps = np.searchsorted(np.sort(begins), at, side="right")
    at_once = np.sort(ends[(ends <= begins) & (rest > 0)])  # no time to spread over: all at the end
    return whole + jumps + np.searchsorted(at_once, at, side="right")


def _per_s(name: str, times: Floats, edges: Floats) -> Curve:
    return Curve(name, (edges[1:] + edges[:-1]) / 2, np.histogram(times, edges)[0] / np.diff(edges))


def _composition(series: list[ReplicaSeries], edges: Floats) -> tuple[Floats, list[tuple[str, Floats]]]:
    if not series:
        return np.empty(0), []
    times = np.concatenate([one.t_s[one.step_s > 0] for one in series])
    steps = np.maximum(np.histogram(times, edges)[0], 1)
    layers = []
    for name, column in (("decode", "decoding"), ("prefill", "prefill_tokens")):
        rows = np.concatenate([getattr(one, column)[one.step_s > 0] for one in series])
        layers.append((name, np.histogram(times, edges, weights=rows)[0] / steps))
    return edges, layers


def _curves(
    title: str, unit: str, series: list[ReplicaSeries], column: str, *, ranks: int, total: bool, scale: float = 1.0,
    top: float | None = None,
) -> str:  # fmt: skip
    """A line per replica, or rank; of many one line, their sum (`total`) or mean."""
    if len(series) <= LINES:
        curves = [Curve(lane_name(one.replica, ranks), one.t_s, getattr(one, column) * scale) for one in series]
        return line_chart(title, "s", unit, curves, top=top)
    # Values hold from sample to sample; on the union of all times no peak is lost.
    times = np.unique(np.concatenate([one.t_s for one in series]))
    whole = np.zeros(times.size)
    for one in series:
        at = np.searchsorted(one.t_s, times, side="right") - 1
        whole += np.where(at >= 0, getattr(one, column)[np.maximum(at, 0)], 0) * scale
    name = f"{'sum' if total else 'mean'} of {len(series)} {'replicas' if ranks == 1 else 'ranks'}"
    curve = Curve(name, times, whole if total else whole / len(series))
    return line_chart(f"{title}, {name}", "s", unit, [curve], top=top)


def _shares(result: SimulationResult) -> str:
    kinds = dict(sorted(shares(result.operator_s).items(), key=lambda pair: -pair[1]))
    return bar_chart("Time by operator kind", kinds) + bar_chart("Time by basis of its price", basis_shares(result))
