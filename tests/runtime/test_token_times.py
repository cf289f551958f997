"""When each token of a simulated request came: nothing else changes, and the steps bear it out."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from penstock.report.simulation import CANCELLED, COMPLETED, REJECTED, UNFINISHED
from penstock.report.simulation_requests import request_lines
from penstock.report.summary import summary
from penstock.runtime.simulate import simulate
from penstock.runtime.virtual import Limits
from tests.runtime.test_simulate import deployment, digest

TIGHT = {"memory__kv_bytes": 200 * 2**20}
CASES: list[dict[str, Any]] = [
    {},
    {"policy__plan_ahead": False},
    {"cluster__replicas": 3, "cluster__router": "round_robin", "workload__cancel_fraction": 0.3},
    {**TIGHT, "policy__plan_ahead": False},
    {**TIGHT, "memory__host_bytes": 2**28, "policy__evict": "swap"},
    {**TIGHT, "memory__kind": "paged", "policy__name": "splitfuse", "workload__max_tokens": 200},
    {"layout__attention_dp": 2, "layout__devices_per_node": 8, "model__path": "deepseek-v2-lite"},
]


@pytest.mark.parametrize("overrides", CASES)
def test_each_token_came_at_the_end_of_a_step_that_had_room_for_it(overrides: dict[str, Any]) -> None:
    asked = deployment(**overrides)
    steps: Counter[tuple[int, float]] = Counter()
    plain: Counter[tuple[int, float]] = Counter()

    def seen(lane: int, started: float, ended: float, decoding: int, chunks: int, tokens: int) -> None:
        steps[lane, ended] += decoding + chunks
        plain[lane, ended] += decoding

    result = simulate(asked, token_times=True, on_step=seen)
    columns = result.requests
    assert digest(result) == digest(simulate(asked)), "asking for token times changed the run"
    assert digest(simulate(asked, token_times=True, coast=False), samples=False) == digest(result, samples=False)
    if "memory__kv_bytes" in overrides:
        assert columns.preemptions.sum() > 0, "nobody had to give way"
    came: Counter[tuple[int, float]] = Counter()
    for row in range(len(columns)):
        times = columns.times(row)
        if columns.outcome[row] == REJECTED:
            assert times == []
            continue
        assert columns.outcome[row] in {COMPLETED, CANCELLED}
        assert len(times) == columns.output_tokens[row]
        assert (times[0], times[-1]) == (columns.first_token_s[row], columns.finish_s[row])
        assert (np.diff(times) > 0).all()
        came.update((int(columns.replica[row]), time) for time in times)
    assert all(steps[moment] >= count for moment, count in came.items())
    if not asked.policy.plan_ahead:
        # Nobody decodes whose end was not known when the step was planned.
        assert all(came[moment] >= count for moment, count in plain.items())


def test_what_a_swapped_or_evicted_request_waited_is_one_long_gap() -> None:
    columns = simulate(deployment(**TIGHT), token_times=True).requests
    assert columns.token_start is not None
    longest = np.array([max(np.diff(columns.times(row)), default=0.0) for row in range(len(columns))])
    evicted = columns.preemptions > 0
    assert longest[evicted].min() > np.median(longest[~evicted])


def test_the_summary_has_an_exact_itl_and_the_lines_have_all_tokens() -> None:
    asked = deployment()
    kept, ends = simulate(asked, token_times=True), simulate(asked)
    exact, rough = summary(kept), summary(ends)
    assert (exact["itl_approximate"], rough["itl_approximate"]) == (False, True)
    assert exact["mean_itl_ms"] == pytest.approx(rough["mean_itl_ms"])
    assert exact["p99_itl_ms"] > rough["p99_itl_ms"], "a chunk of a prompt delays one token, not all of a request"
    rows = [json.loads(line) for line in request_lines(kept.requests).splitlines()]
    assert [len(row["token_s"]) for row in rows] == kept.requests.output_tokens.tolist()
    for row, short in zip(rows, map(json.loads, request_lines(ends.requests).splitlines()), strict=True):
        assert (row["token_s"][0], row["token_s"][-1]) == (short["first_token_s"], short["last_token_s"])


def test_of_a_run_that_is_cut_off_only_what_has_happened_is_kept() -> None:
    columns = simulate(deployment(), token_times=True, limits=Limits(virtual_s=4.0)).requests
    open_rows = np.flatnonzero(columns.outcome == UNFINISHED)
    assert len(open_rows)
    assert columns.token_s is not None
    assert not np.isnan(columns.token_s).any()
    assert columns.token_s.max() <= 4.0
    for row in open_rows:
        assert columns.output_tokens[row] - 1 <= len(columns.times(row)) <= columns.output_tokens[row]
