"""What a result says about itself: the common keys, INVALID when the generator was late, HTML that fetches nothing."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest

from penstock.errors import BadInput
from penstock.report.compare_read import read_run
from penstock.report.html import html_report
from penstock.report.latency import FORMULAS, Limits, RequestRecord
from penstock.report.result import StageResult
from penstock.report.table import console_block, sweep_table, write_requests, write_text


def done(index: int, delay_s: float = 0.001) -> RequestRecord:
    sent = index * 0.5 + delay_s
    return RequestRecord(
        index=index, arrival_s=index * 0.5, sent_s=sent, end_s=sent + 0.3, prompt_tokens=7, output_tokens=3,
        token_s=(sent + 0.1, sent + 0.2, sent + 0.3), status=200,
    )  # fmt: skip


def refused(index: int) -> RequestRecord:
    return RequestRecord(
        index=index, arrival_s=0.0, sent_s=0.0, end_s=0.01, prompt_tokens=7, output_tokens=0, outcome="rejected",
        status=429, retry_after_s=2.5,
    )  # fmt: skip


def failed(index: int, reason: str) -> RequestRecord:
    return RequestRecord(
        index=index, arrival_s=0.0, sent_s=0.0, end_s=0.01, prompt_tokens=7, output_tokens=0, outcome="failed",
        reason=reason,
    )  # fmt: skip


def test_the_json_has_every_key_that_other_tools_read() -> None:
    data = StageResult.of("x", [done(0), done(1)], requested_rate=2.0, limits=Limits(ttft_s=1.0)).to_json()
    names = ["completed", "failed", "duration", "request_throughput", "request_goodput", "output_throughput",
             "total_token_throughput"]  # fmt: skip
    statistics = ("mean", "median", "std", "p50", "p90", "p95", "p99")
    names += [f"{s}_{m}_ms" for s in statistics for m in ("ttft", "tpot", "itl", "e2el")]
    assert [name for name in names if data.get(name) is None] == []
    assert data["mean_ttft_ms"] == pytest.approx(100.0)
    assert data["median_tpot_ms"] == pytest.approx(100.0)
    assert data["p99_e2el_ms"] == pytest.approx(300.0)


def test_a_run_with_nothing_completed_is_valid_json_without_invented_numbers() -> None:
    result = StageResult.of("x", [refused(0)])
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["mean_ttft_ms"] is None
    assert data["valid"] is False
    assert data["retry_after_s"] == {"count": 1, "p50": 2.5, "max": 2.5}


@pytest.mark.parametrize(("delay_s", "valid"), [(0.001, True), (0.0099, True), (0.010, False), (0.5, False)])
def test_a_generator_that_was_ten_milliseconds_late_invalidates_its_run(delay_s: float, valid: bool) -> None:
    result = StageResult.of("x", [done(i, delay_s) for i in range(4)])
    assert (result.invalid == "") is valid
    assert ("INVALID" in console_block(result)) is not valid


def test_refusals_are_counted_apart_from_failures_and_failures_by_reason() -> None:
    result = StageResult.of("x", [done(0), refused(1), failed(2, "boom"), failed(3, "boom"), failed(4, "lost")])
    data = result.to_json()
    assert (data["completed"], data["rejected"], data["failed"]) == (1, 1, 3)
    assert data["failures"] == {"boom": 2, "lost": 1}
    assert data["status_codes"] == {"200": 1, "429": 1, "none": 3}
    assert "failed: 2 x boom" in console_block(result)


def test_the_achieved_rate_is_measured_on_what_was_sent() -> None:
    assert StageResult.of("x", [done(i) for i in range(5)]).achieved_rate == pytest.approx(2.0)
    assert StageResult.of("x", [done(0)]).achieved_rate is None


def test_the_console_block_has_the_lines_that_scripts_look_for() -> None:
    lines = console_block(StageResult.of("x", [done(0), done(1)])).splitlines()
    assert lines[0] == " Serving Benchmark Result ".center(50, "=")
    for label in ("Successful requests:", "Benchmark duration (s):", "Mean TTFT (ms):", "P99 ITL (ms):"):
        assert sum(line.startswith(label) and len(line) == 50 for line in lines) == 1


def test_the_html_escapes_names_fetches_nothing_and_runs_nothing() -> None:
    page = html_report([StageResult.of("<script>alert(1)</script>", [done(0), done(1)])], title="a & b")
    assert "<script" not in page
    assert "a &amp; b" in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<svg") == 6


def test_the_html_holds_the_formulas() -> None:
    page = html_report([StageResult.of("x", [done(0), done(1)])], title="x")
    for name, formula in FORMULAS.items():
        assert escape(name) in page
        assert escape(formula) in page


def test_the_html_of_a_run_without_an_answer_still_renders() -> None:
    assert "INVALID" in html_report([StageResult.of("x", [refused(0)]), StageResult.of("y", [])], title="t")


def test_a_sweep_has_a_row_per_stage() -> None:
    assert sweep_table([StageResult.of("x", [done(0)]), StageResult.of("y", [refused(0)])]).row_count == 2


def test_each_request_of_each_stage_is_one_json_line(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    write_requests(file, [StageResult.of("x", [done(0), done(1)]), StageResult.of("y", [refused(0)])])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["stage"], row["outcome"]) for row in rows] == [("x", "completed")] * 2 + [("y", "rejected")]


def test_a_file_that_cannot_be_written_is_the_callers_fault(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--report"):
        write_text(tmp_path / "no" / "such.html", "x", field="--report")


def test_the_rows_of_an_interrupted_stage_say_so_and_no_others(tmp_path: Path) -> None:
    stages = [StageResult.of("one", [done(0)]), StageResult.of("two", [done(0), done(1)], interrupted=True)]
    write_requests(tmp_path / "rows.jsonl", stages)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["stage"], row.get("interrupted")) for row in rows] == [("one", None), ("two", True), ("two", True)]
    assert read_run(f"{tmp_path / 'rows.jsonl'}#one").numbers["interrupted"] is None
    assert read_run(f"{tmp_path / 'rows.jsonl'}#two").numbers["interrupted"], "what compares runs warns of it"
    assert [stage.to_json()["interrupted"] for stage in stages] == [None, "interrupted"]
    assert list(sweep_table(stages).columns[-1].cells) == ["", "interrupted"]
