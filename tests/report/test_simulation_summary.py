"""A simulated run has the numbers a measured one would have, and says when it is past saturation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.report.latency import Limits, RequestRecord
from penstock.report.result import StageResult
from penstock.report.saturation import saturation
from penstock.report.simulation import CANCELLED, COMPLETED, FAILED, OUTCOMES, UNFINISHED, SimulationResult
from penstock.report.simulation_table import console_table
from penstock.report.summary import summary
from tests.report.simulated import columns, queue, series

requests = st.lists(
    st.tuples(
        st.floats(0, 50), st.floats(0.01, 5), st.floats(0, 5), st.integers(1, 20),
        st.sampled_from([COMPLETED, COMPLETED, COMPLETED, CANCELLED, FAILED]),
    ),
    min_size=1, max_size=30,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(requests, st.booleans())
def test_every_shared_key_equals_that_of_a_measured_run(rows: list[tuple[Any, ...]], tokens_kept: bool) -> None:
    limits = Limits(ttft_s=1.0, tpot_s=0.1, e2e_s=4.0)
    times = [[a + w + (d * i / max(n - 1, 1)) for i in range(n)] for a, w, d, n, _ in rows]
    records = [
        RequestRecord(
            index=i, arrival_s=row[0], sent_s=row[0], end_s=times[i][-1], prompt_tokens=100, output_tokens=row[3],
            token_s=times[i], outcome=OUTCOMES[row[4]], cached_tokens=7,  # type: ignore[arg-type]
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    kept = {} if not tokens_kept else {
        "token_s": np.concatenate(times), "token_start": np.cumsum([0, *map(len, times)])
    }  # fmt: skip
    result = SimulationResult(
        title="t", limits=limits,
        requests=columns(
            len(rows), arrival_s=np.array([row[0] for row in rows]), first_token_s=np.array([t[0] for t in times]),
            finish_s=np.array([t[-1] for t in times]), output_tokens=np.array([row[3] for row in rows]),
            cached_tokens=np.full(len(rows), 7), outcome=np.array([row[4] for row in rows]), **kept,
        ),
    )  # fmt: skip
    measured, simulated = StageResult.of("s", records, limits=limits).to_json(), summary(result)
    # An approximate ITL has the true mean only; rejected requests and the like have no counterpart.
    own = {"notes", "achieved_request_rate", "saturated"} | {
        key for key in measured if key.endswith("_itl_ms") and not tokens_kept and key != "mean_itl_ms"
    }
    for key in sorted((measured.keys() & simulated.keys()) - own):
        wanted = measured[key]
        same = simulated[key] == (pytest.approx(wanted, rel=1e-6, abs=1e-6) if isinstance(wanted, float) else wanted)
        assert same, (key, simulated[key], wanted)
    assert {"p99_ttft_ms", "p50_tpot_ms", "request_goodput", "output_throughput"} <= measured.keys() & simulated.keys()
    assert simulated["itl_approximate"] is not tokens_kept


def test_prefix_hits_utilisation_cost_and_energy() -> None:
    result = SimulationResult(
        title="t", requests=columns(10, cached_tokens=np.full(10, 25), preemptions=np.array([2, 1] + [0] * 8)),
        busy_s=(5.25, 10.5), price_per_hour=3.6, energy_j=2100.0, steps=7, wall_s=0.5,
        operator_s={"attention": 1.0, "gemm": 3.0}, basis_s={"measured": 3.0, "assumed": 1.0},
    )  # fmt: skip
    seen = summary(result)
    assert seen["duration"] == 10.5
    assert seen["prefix_hit_share"] == 0.25
    assert (seen["preemptions"], seen["requests_preempted"]) == (3, 2)
    assert seen["utilisation"] == pytest.approx(0.75)
    assert seen["cost"] == pytest.approx(0.0105)
    assert seen["cost_per_million_output_tokens"] == pytest.approx(0.0105 / 110 * 1e6)
    assert seen["energy_j_per_output_token"] == pytest.approx(2100 / 110)
    assert seen["energy_kwh_per_million_output_tokens"] == pytest.approx(2100 / 110 * 1e6 / 3.6e6)
    assert seen["mean_power_w"] == pytest.approx(200.0)
    assert seen["basis_share"] == {"measured": 0.75, "assumed": 0.25}
    assert list(seen["operator_seconds"]) == ["gemm", "attention"]
    table = console_table(seen)
    assert all(line in table for line in ("Simulated Serving Result", "75.0%", "P99 TPOT (ms):"))
    assert max(len(line) for line in table.splitlines() if not line.startswith("note:")) == 50


def test_an_empty_or_interrupted_run_has_a_summary_too() -> None:
    empty = summary(SimulationResult(title="t", requests=columns(0)))
    assert empty["completed"] == 0
    assert empty["p99_ttft_ms"] is None
    nothing = np.full(4, np.nan)
    cut = SimulationResult(
        title="t", interrupted="Ctrl-C", series=(series(),),
        requests=columns(4, first_token_s=nothing, finish_s=nothing, outcome=np.full(4, UNFINISHED)),
    )  # fmt: skip
    seen = summary(cut)
    assert (seen["completed"], seen["unfinished"], seen["duration"]) == (0, 4, 10.0)
    assert seen["notes"][0].startswith("interrupted: Ctrl-C")
    for one in (empty, seen):
        assert "TTFT" in console_table(one)


def test_a_token_rate_without_token_times_is_not_judged() -> None:
    seen = summary(SimulationResult(title="t", requests=columns(3), limits=Limits(token_rate=4.0)))
    assert seen["request_goodput"] is None
    assert any("token rate" in note for note in seen["notes"])


@pytest.mark.parametrize("seed", range(4))
def test_a_queue_is_past_saturation_just_when_it_is(seed: int) -> None:
    for capacity, past in ((40.0, False), (24.0, False), (22.0, False), (18.5, True), (10.0, True)):
        verdict = saturation(queue(20_000, 20.0, capacity, seed))
        assert verdict.past is past, (capacity, verdict.why)
    assert "past saturation" in summary(queue(20_000, 20.0, 10.0, seed))["notes"][0]


def test_a_backlog_of_decodes_counts_once_the_system_is_full_and_not_before() -> None:
    arrival = np.arange(2000) * 0.05
    first = arrival + 0.01
    filling = columns(2000, arrival_s=arrival, first_token_s=first, finish_s=first + 200.0)
    assert not saturation(SimulationResult(title="t", requests=filling)).past
    slower = columns(2000, arrival_s=arrival, first_token_s=first, finish_s=first + 0.3 * arrival)
    assert saturation(SimulationResult(title="t", requests=slower)).past


def test_a_closed_loop_a_batch_and_a_handful_are_never_past_saturation() -> None:
    assert not saturation(queue(5000, 20.0, 5.0, 0, open_loop=False)).past
    assert not saturation(queue(30, 20.0, 5.0, 0)).past
    at_once = columns(500, arrival_s=np.zeros(500), first_token_s=np.arange(500.0), finish_s=np.arange(500.0) + 1)
    assert not saturation(SimulationResult(title="t", requests=at_once)).past
