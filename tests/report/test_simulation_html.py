"""The HTML report stands alone, shows everything there is, escapes what it is given and loses no peak."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from penstock.report.charts import PIXELS, Curve, bar_chart, envelope, label, line_chart, stack_chart, ticks
from penstock.report.latency import Limits
from penstock.report.simulation import UNFINISHED, SimulationResult
from penstock.report.simulation_html import _spread, html_report
from tests.report.simulated import columns, queue, series

FIGURES = (
    "TTFT", "TPOT", "End-to-end latency", "Tokens per second", "Requests arriving and ending", "Rows of a step",
    "Waiting requests", "Running requests", "KV blocks in use", "Step time", "Power", "Time by operator kind",
    "Time by basis",
)  # fmt: skip


class Balanced(HTMLParser):
    """Counts open tags of the kinds that must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("figure", "svg", "pre", "table", "figcaption", "style", "div", "span", "b"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("figure", "svg", "pre", "table", "figcaption", "style", "div", "span", "b"):
            assert self.open.pop() == tag


def full(**given: object) -> SimulationResult:
    return queue(
        2000, 20.0, 30.0, 0, series=(series(0, 5000, 100.0), series(1, 300, 100.0)), operator_s={"gemm": 2.0},
        basis_s={"measured": 2.0, "assumed": 1.0}, limits=Limits(ttft_s=0.1), config={"model": "<b>evil</b>"}, **given,
    )  # fmt: skip


@pytest.mark.parametrize("replicas", [2, 12])
def test_it_stands_alone_and_shows_everything(replicas: int) -> None:
    result = full()
    many = tuple(series(number, 400, 100.0) for number in range(replicas))
    page = html_report(
        SimulationResult(**{name: getattr(result, name) for name in result.__slots__} | {"series": many})
    )
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert not re.search(r"<script|src=|href=|url\(|@import", page)
    for figure in FIGURES:
        assert f"<figcaption>{figure}" in page
    assert "<b>evil" not in page
    assert "&lt;b&gt;evil" in page
    assert "nan" not in page.lower().replace("resonance", "")
    assert len(page) < 400_000


def test_empty_and_interrupted_runs_have_a_page() -> None:
    nothing = np.full(3, np.nan)
    cut = SimulationResult(
        title="t", interrupted="stopped by the user",
        requests=columns(3, first_token_s=nothing, finish_s=nothing, outcome=np.full(3, UNFINISHED)),
    )  # fmt: skip
    assert "stopped by the user" in html_report(cut)
    assert "Deployment" in html_report(SimulationResult(title="t", requests=columns(0)))


def test_an_envelope_keeps_every_peak_and_the_mean_of_every_column() -> None:
    x = np.linspace(0, 10, 50_000)
    y = np.zeros(50_000)
    y[31_234] = 7.0
    band = envelope(x, y, 0.0, 10.0)
    assert band is not None
    assert band.x.size <= PIXELS
    assert (band.most.max(), band.least.min()) == (7.0, 0.0)
    assert band.x[band.most.argmax()] == pytest.approx(x[31_234], abs=10 / PIXELS)
    assert envelope(x[:100], y[:100], 0.0, 10.0) is None


def test_tokens_are_spread_from_the_first_to_the_end_and_none_is_lost() -> None:
    made = _spread(
        np.array([0.0, 2.0, 5.0]), np.array([4.0, 2.0, 6.0]), np.array([5, 1, 3]), np.array([0.0, 2.0, 4.0, 6.0])
    )  # fmt: skip
    assert made.tolist() == [1.0, 4.0, 6.0, 9.0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.037), (0.0, 12345.0), (-3.0, 8.0), (0.0, 3e9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low <= found[0]
    assert found[-1] <= high * (1 + 1e-9)
    assert all(len(label(value)) <= 6 for value in found)


def test_charts_of_nothing_are_nothing_and_flat_ones_are_finite() -> None:
    assert line_chart("t", "x", "y", [Curve("c", np.empty(0), np.empty(0))]) == ""
    assert stack_chart("t", "x", "y", np.empty(0), []) == ""
    assert bar_chart("t", {}) == ""
    flat = line_chart("t", "x", "y", [Curve("c", np.zeros(3), np.zeros(3))])
    assert "nan" not in flat
    assert "inf" not in flat
