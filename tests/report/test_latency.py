"""Definitions of section 11 on token times made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.report.latency import (
    Distribution,
    Limits,
    RequestRecord,
    analyse,
    as_row,
    e2e_s,
    in_flight,
    itl_s,
    ntpot_s,
    saturated,
    steady,
    tpot_s,
    ttft_s,
)


def record(index: int = 0, *, sent: float = 0.0, tokens: tuple[float, ...] = (), **fields: object) -> RequestRecord:
    values: dict[str, object] = {
        "arrival_s": sent, "end_s": tokens[-1] if tokens else sent, "prompt_tokens": 10, "output_tokens": len(tokens),
    }  # fmt: skip
    return RequestRecord(index=index, sent_s=sent, token_s=tokens, **(values | fields))  # type: ignore[arg-type]


def test_each_metric_of_one_request_follows_its_definition() -> None:
    seen = record(sent=1.0, tokens=(1.5, 1.6, 1.9, 2.0))
    assert ttft_s(seen) == pytest.approx(0.5)
    assert e2e_s(seen) == pytest.approx(1.0)
    assert tpot_s(seen) == pytest.approx(0.5 / 3)
    assert ntpot_s(seen) == pytest.approx(1.0 / 4)
    assert itl_s(seen) == pytest.approx([0.1, 0.3, 0.1])


def test_a_single_token_has_a_ttft_but_no_tpot_and_no_gap() -> None:
    seen = record(tokens=(0.25,))
    assert ttft_s(seen) == 0.25
    assert tpot_s(seen) is None
    assert itl_s(seen).size == 0


def test_tpot_divides_by_the_token_count_of_usage_not_by_the_number_of_events() -> None:
    seen = record(tokens=(1.0, 2.0, 3.0), output_tokens=9)
    assert tpot_s(seen) == pytest.approx(2.0 / 8)
    assert itl_s(seen) == pytest.approx([1.0, 1.0])


def test_a_request_without_a_token_has_no_latency_at_all() -> None:
    seen = record(outcome="failed")
    assert (ttft_s(seen), e2e_s(seen), tpot_s(seen), ntpot_s(seen)) == (None, None, None, None)


def test_refusals_and_failures_do_not_count_as_fast_answers() -> None:
    records = [
        record(0, sent=0.0, tokens=(1.0, 2.0)),
        record(1, sent=0.1, outcome="rejected", status=429, end_s=0.2),
        record(2, sent=0.1, tokens=(0.2,), outcome="failed", end_s=4.0),
        record(3, sent=0.1, tokens=(0.2, 0.3), outcome="cancelled"),
    ]
    report = analyse(records)
    assert (report.completed, report.rejected, report.failed, report.cancelled) == (1, 1, 1, 1)
    assert report.ttft is not None
    assert report.ttft.mean == 1.0
    assert report.duration_s == 4.0
    assert report.output_tokens == 2
    assert report.output_tokens_per_s == 0.5
    assert report.total_tokens_per_s == 3.0
    assert report.requests_per_s == 0.25


def test_an_empty_run_has_zero_counts_and_no_distributions() -> None:
    report = analyse([])
    assert report.completed == 0
    assert report.requests_per_s == 0.0
    assert report.ttft is None
    assert report.itl is None
    assert report.peak_in_flight == 0


def test_goodput_counts_a_request_only_when_every_stated_limit_holds() -> None:
    fast, slow_start, slow_tokens = (
        record(0, tokens=(0.1, 0.2, 0.3)),
        record(1, tokens=(0.9, 1.0, 1.1)),
        record(2, tokens=(0.1, 1.0, 2.0)),
    )
    records = [fast, slow_start, slow_tokens]
    assert analyse(records, limits=Limits(ttft_s=0.5)).goodput_per_s == pytest.approx(2 / 2.0)
    assert analyse(records, limits=Limits(ttft_s=0.5, tpot_s=0.2)).goodput_per_s == pytest.approx(1 / 2.0)
    assert analyse(records, limits=Limits()).goodput_per_s is None
    assert not Limits(ttft_s=9).met(record(outcome="rejected"))


def test_a_limit_on_tpot_cannot_be_broken_by_a_one_token_answer() -> None:
    assert Limits(tpot_s=1e-9).met(record(tokens=(5.0,)))


def test_effective_throughput_wants_the_prompt_rate_and_a_moving_average_of_the_token_rate() -> None:
    limits = Limits(token_rate=4.0)
    steady_stream = tuple(1.0 + 0.2 * i for i in range(50))
    assert limits.met(record(tokens=steady_stream, prompt_tokens=512))
    assert not limits.met(record(tokens=steady_stream, prompt_tokens=511))  # first token later than 511/512 s
    one_pause = (*steady_stream, steady_stream[-1] + 0.5)  # 2/17 of 0.3 s over: the average stays below 0.25 s
    long_pause = (*steady_stream, steady_stream[-1] + 0.7)
    assert limits.met(record(tokens=one_pause, prompt_tokens=512))
    assert not limits.met(record(tokens=long_pause, prompt_tokens=512))


def test_percentiles_interpolate_between_order_statistics() -> None:
    found = Distribution.of([1.0, 2.0, 3.0, 4.0])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.p90, found.max) == (4, 2.5, 2.5, pytest.approx(3.7), 4.0)
    assert found.std == pytest.approx(np.std([1, 2, 3, 4]))
    assert Distribution.of([]) is None


def test_send_delay_is_what_lies_between_due_and_sent() -> None:
    report = analyse([record(0, sent=1.25, arrival_s=1.0, tokens=(2.0,))])
    assert report.send_delay is not None
    assert report.send_delay.p50 == 0.25


def test_in_flight_counts_back_to_back_requests_once() -> None:
    times, level = in_flight([record(0, sent=0.0, tokens=(1.0,)), record(1, sent=1.0, tokens=(2.0,))])
    assert list(times) == [0.0, 1.0, 1.0, 2.0]
    assert level.max() == 1
    assert level[-1] == 0


def test_the_steady_window_leaves_out_the_ramp_and_the_drain() -> None:
    records = [record(i, sent=float(i), tokens=(i + 0.25, i + 0.75)) for i in range(9)]
    found = steady(records, ramp=0.25)
    assert found is not None
    assert (found.begin_s, found.end_s) == (2.0, 8.0)
    assert found.prompt_tokens_per_s == pytest.approx(10.0)
    assert found.output_tokens_per_s == pytest.approx(2.0)
    assert found.requests_per_s(prompt_tokens=10, output_tokens=2) == pytest.approx(1.0)


def test_the_ramp_of_a_closed_loop_ends_when_there_are_as_many_answers_as_users() -> None:
    records = [record(i, sent=float(i), tokens=(i + 0.25, i + 0.75)) for i in range(9)]
    found = steady(records, users=3)
    assert found is not None
    assert (found.begin_s, found.end_s) == (2.75, 8.0)
    assert steady(records, users=10) is None


def test_what_the_client_cut_still_counts_as_work_of_the_server() -> None:
    whole = [record(i, sent=float(i), tokens=(i + 0.25, i + 0.75)) for i in range(9)]
    cut = [record(i, sent=float(i), tokens=(i + 0.25, i + 0.75), outcome="cancelled") for i in range(9)]
    assert steady(whole) == steady(cut)


def test_saturation_is_load_and_ttft_rising_together() -> None:
    growing = [record(i, sent=i * 0.1, tokens=(i * 0.1 + 0.1 + 0.1 * i, i * 0.1 + 0.2 + 0.1 * i)) for i in range(80)]
    level = [record(i, sent=i * 0.1, tokens=(i * 0.1 + 0.3, i * 0.1 + 0.5)) for i in range(80)]
    assert saturated(growing)
    assert not saturated(level)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.lists(st.floats(0, 10), min_size=1, max_size=20), st.integers(1, 40)),
        min_size=1,
        max_size=20,
    )
)
def test_whatever_the_times_token_counts_and_rates_agree(runs: list[tuple[float, list[float], int]]) -> None:
    records = []
    for index, (sent, gaps, n) in enumerate(runs):
        tokens = tuple(sent + float(t) for t in np.cumsum(gaps))
        records.append(record(index, sent=sent, tokens=tokens, output_tokens=n))
    report = analyse(records)
    assert report.output_tokens == sum(n for _, _, n in runs)
    assert report.peak_in_flight <= len(runs)
    assert report.itl is None or report.itl.count == sum(len(gaps) - 1 for _, gaps, _ in runs)
    assert report.output_tokens_per_s * report.duration_s == pytest.approx(
        report.output_tokens if report.duration_s else 0
    )


def test_a_row_is_plain_data_with_the_metrics_beside_the_record() -> None:
    row = as_row(record(3, sent=1.0, tokens=(1.5, 2.0)))
    assert (row["index"], row["ttft_s"], row["tpot_s"], row["token_s"]) == (3, 0.5, 0.5, [1.5, 2.0])
