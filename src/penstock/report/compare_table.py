"""Two runs side by side as text, under the names and in the units of the reports of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.report.compare import Comparison, Row, Run
from penstock.report.simulation_table import SECTIONS

_WIDTH: Final = 80
_LABEL, _VALUE, _RELATIVE = 34, 12, 10
_STATISTICS: Final = (("Mean", "mean"), ("Median", "p50"), ("P90", "p90"), ("P99", "p99"))
_FACTS: Final = (
    ("requests", "Requests:", 0), ("completed", "Completed requests:", 0), ("rate", "Arrival rate (req/s):", 2),
    ("prompt_tokens", "Mean prompt (tokens):", 1), ("output_tokens", "Mean output (tokens):", 1),
)  # fmt: skip
_WHOLE: Final = {
    "duration": "Duration (s):", "requests_per_s": "Request throughput (req/s):",
    "goodput": "Request goodput (req/s):", "output_tokens_per_s": "Output token throughput (tok/s):",
    "total_tokens_per_s": "Total token throughput (tok/s):", "in_flight": "Requests in flight, mean:",
    "cached_tokens": "Input tokens from prefix cache:",
}  # fmt: skip
TITLES: Final = _WHOLE | {
    f"{key}_{statistic}": f"{title} {short} (ms):" for key, short, _ in SECTIONS for title, statistic in _STATISTICS
}
"""Names of the metrics in the table, and what they are called there."""


def comparison_table(found: Comparison) -> str:
    """The block, 80 columns: what ran, latencies, throughput, distances; then warnings and notes."""
    shown = {name: row for name, row in found.rows.items() if name in TITLES and (row.a or row.b)}
    lines = [f"{' A beside B ':=^{_WIDTH}}", f"A: {found.a.name}", f"B: {found.b.name}"]
    lines.append(f"{'':{_LABEL}}{'A':>{_VALUE}}{'B':>{_VALUE}}{'B - A':>{_VALUE}}{'of A':>{_RELATIVE}}")
    lines += _facts(found.a, found.b)
    for key, _, title in SECTIONS:
        rows = [_row(name, row) for name, row in shown.items() if name.rpartition("_")[0] == key]
        lines += [f"{title:-^{_WIDTH}}", *rows] if rows else []
    whole = [_row(name, shown[name]) for name in _WHOLE if name in shown]
    lines += [f"{'Whole Run':-^{_WIDTH}}", *whole] if whole else []
    lines += _distances(found)
    lines.append("=" * _WIDTH)
    lines += [f"warning: {warning}" for warning in found.warnings]
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join(lines)


def percent(relative: float | None) -> str:
    """With its sign.

    >>> percent(0.0312), percent(None)
    ('+3.1 %', '-')
    """
    return "-" if relative is None else f"{100 * relative:+.1f} %"


def _facts(a: Run, b: Run) -> Iterator[str]:
    for name, label, digits in _FACTS:
        values = [run.facts[name] for run in (a, b)]
        if values != [None, None]:
            shown = ("-" if value is None else f"{value:.{digits}f}" for value in values)
            yield f"{label:{_LABEL}}" + "".join(f"{value:>{_VALUE}}" for value in shown)


def _row(name: str, row: Row) -> str:
    digits = 0 if name == "cached_tokens" else 2
    values = f"{row.a:>{_VALUE}.{digits}f}{row.b:>{_VALUE}.{digits}f}{row.difference:>+{_VALUE}.{digits}f}"
    return f"{TITLES[name]:{_LABEL}}{values}{percent(row.relative):>{_RELATIVE}}"


def _distances(found: Comparison) -> Iterator[str]:
    if not found.distances:
        return
    yield f"{'Largest Gap between the Distributions':-^{_WIDTH}}"
    for key, short, _ in SECTIONS:
        one = found.distances.get(key)
        if one is not None:
            where = f"{100 * one.a_share:.0f} % of A's {one.a_count}, {100 * one.b_share:.0f} % of B's {one.b_count}"
            label = f"{short} (share of values):"
            yield f"{label:{_LABEL}}{one.gap:>{_VALUE}.3f}   at {1e3 * one.at_s:.1f} ms: {where}"
