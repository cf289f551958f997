"""Two runs side by side as one HTML file: their distributions over each other, then the table. Nothing is fetched."""

from __future__ import annotations

from html import escape

from penstock.report.compare import Comparison
from penstock.report.compare_table import comparison_table
from penstock.report.html import STYLE, cdf, figure
from penstock.report.latency import FORMULAS
from penstock.report.simulation_table import SECTIONS


def comparison_html(found: Comparison) -> str:
    """The whole page as text. Every string from outside is escaped."""
    title = f"{found.a.name} beside {found.b.name}"
    warnings = "".join(f"<p class=invalid>{escape(warning)}</p>" for warning in found.warnings)
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(text)}" for name, text in FORMULAS.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1>{warnings}{_figures(found)}<pre>{escape(comparison_table(found))}</pre>"
        f"<h2>Definitions</h2><table>{rows}</table></html>\n"
    )


def _figures(found: Comparison) -> str:
    """A chart for each metric that a side has values of; what a side lacks is said, not guessed."""
    sides = (("A", found.a, found.curves[0]), ("B", found.b, found.curves[1]))
    charts = []
    for key, _, title in SECTIONS:
        curves = [cdf(f"{side}: {run.name}", samples[key]) for side, run, samples in sides if key in samples]
        charts.append(figure(f"{title} (ms)", "ms", "share of samples", curves))
    lacking = [f"{side} ({run.name})" for side, run, samples in sides if not samples]
    told = f"<p>Of {escape(' and '.join(lacking))} only the numbers are known, not each request: no curve.</p>"
    return "".join(charts) + (told if lacking else "")
