"""Two runs side by side: each file that is written can be read, differences are what they say, traps are told."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import BadInput
from penstock.report.compare import METRICS, Distance, Row, Run, compare, samples
from penstock.report.compare_html import comparison_html
from penstock.report.compare_read import CLIENT, SIMULATED, read_run
from penstock.report.compare_table import TITLES, comparison_table
from penstock.report.latency import Limits, RequestRecord
from penstock.report.result import StageResult
from penstock.report.simulation import UNFINISHED, SimulationResult
from penstock.report.simulation_requests import request_lines
from penstock.report.summary import summary
from penstock.report.table import write_requests, write_text
from tests.report.simulated import columns, queue


def stage(name: str = "4 req/s", slower: float = 1.0, count: int = 40, **given: Any) -> StageResult:
    """Requests a quarter of a second apart; the first token after some 100 ms, four more 20 ms apart."""
    records = []
    for index in range(count):
        sent = 0.25 * index
        first = sent + slower * (0.1 + 0.001 * index)
        records.append(
            RequestRecord(
                index=index, arrival_s=sent, sent_s=sent, end_s=first + 0.08 * slower, prompt_tokens=30,
                output_tokens=5, token_s=[first + 0.02 * slower * gap for gap in range(5)], status=200,
            )
        )  # fmt: skip
    return StageResult.of(name, records, **given)


def run(result: StageResult, **given: Any) -> Run:
    return Run(
        **{"name": result.name, "source": CLIENT, "numbers": result.to_json(), "records": result.records, **given}
    )


def write(path: Path, result: StageResult, **more: Any) -> str:
    path.write_text(json.dumps(result.to_json() | {"model_id": "millrace", **more}))
    return str(path)


def test_each_metric_of_both_and_the_difference_of_the_second_to_the_first() -> None:
    found = compare(run(stage("a")), run(stage("b", 1.5)))
    for name in ("ttft_mean", "ttft_p50", "ttft_p99", "tpot_p90", "itl_p50", "e2el_p99"):
        row = found.row(name)
        assert row.relative == pytest.approx(0.5)
        assert row.difference == pytest.approx(row.b - row.a)
        assert (row.a, row.b) == (found.a.numbers[row.metric.key], found.b.numbers[row.metric.key])
    assert found.row("p50_ttft_ms") == found.row("ttft_p50")
    assert found.row("tpot_p50").a == pytest.approx(20.0)
    assert abs(found.row("requests_per_s").relative or 1) < 0.02
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["metrics"]["ttft_p50"]["key"] == "p50_ttft_ms"


@pytest.mark.parametrize(
    ("a", "b", "relative", "over"), [(2.0, 3.0, 0.5, True), (2.0, 2.1, 0.05, False), (0.0, 0.0, 0.0, False),
                                     (0.0, 0.1, None, True), (4.0, 2.0, -0.5, True)],
)  # fmt: skip
def test_a_difference_to_nothing_is_over_any_share(a: float, b: float, relative: float | None, over: bool) -> None:
    row = Row(METRICS[0], a, b)
    assert row.relative == (None if relative is None else pytest.approx(relative))
    assert row.over(0.1) is over


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=30), st.lists(st.integers(0, 12), min_size=1, max_size=30)
)  # fmt: skip
def test_the_distance_is_the_largest_gap_between_the_distribution_functions(a: list[int], b: list[int]) -> None:
    found = Distance.of(np.array(a, float), np.array(b, float))
    assert found is not None
    gaps = {at: sum(x <= at for x in a) / len(a) - sum(x <= at for x in b) / len(b) for at in range(13)}
    assert found.gap == pytest.approx(max(map(abs, gaps.values())))
    assert found.a_share - found.b_share == pytest.approx(gaps[int(found.at_s)])
    assert (found.a_count, found.b_count) == (len(a), len(b))
    assert Distance.of(np.array(a, float), np.empty(0)) is None


@pytest.mark.parametrize("packed", [False, True])
def test_the_requests_of_a_measurement_have_its_numbers(tmp_path: Path, packed: bool) -> None:
    result, path = stage(), tmp_path / "out.jsonl"
    write_requests(path, [result])
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    found = read_run(str(path))
    wanted = result.to_json()
    for metric in METRICS:
        if wanted[metric.key] is not None:
            assert found.number(metric.key) == pytest.approx(wanted[metric.key], rel=1e-4, abs=1e-2), metric.key
    distances = compare(run(result), found).distances
    assert distances.keys() == {"ttft", "tpot", "itl", "e2el"}
    assert found.source == CLIENT


def test_the_requests_of_a_simulation_have_its_numbers_and_no_gaps_that_nobody_knows(tmp_path: Path) -> None:
    result = queue(300, 20.0, 30.0, 0)
    (tmp_path / "out.jsonl").write_text(request_lines(result.requests))
    numbers = summary(result)
    (tmp_path / "out.json").write_text(json.dumps(numbers | {"config": {"model": "millrace, float32 weights"}}))
    requests, whole = read_run(str(tmp_path / "out.jsonl")), read_run(str(tmp_path / "out.json"))
    found = compare(whole, requests)
    assert {name for name, row in found.rows.items() if abs(row.relative or 0) > 1e-3} == set()
    assert {"ttft_p99", "tpot_p50", "e2el_mean", "output_tokens_per_s", "requests_per_s"} <= found.rows.keys()
    assert not [name for name in found.rows if name.startswith("itl")]
    assert samples(requests).keys() == {"ttft", "tpot", "e2el"}
    assert (requests.source, whole.source, whole.model) == (SIMULATED, SIMULATED, "millrace, float32 weights")
    assert any("ITL is exact in the mean only" in note for note in found.notes)


def test_a_simulation_that_kept_token_times_has_gaps_beside_a_measured_one(tmp_path: Path) -> None:
    times = np.linspace(0.5, 1.5, 11)
    kept = columns(3, token_s=np.concatenate([start + times for start in range(3)]), token_start=np.arange(4) * 11)
    path = tmp_path / "out.jsonl.gz"
    write_text(path, request_lines(kept), field="--out")
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    found = compare(run(stage()), read_run(str(path)))
    assert found.distances.keys() == {"ttft", "tpot", "itl", "e2el"}
    assert found.rows["itl_mean"].b == pytest.approx(100.0, rel=1e-3)
    assert not any("ITL" in note for note in found.notes)


def test_requests_cut_off_with_a_simulation_are_not_in_its_file() -> None:
    nothing = np.array([1.0, np.nan, np.nan])
    cut = columns(3, first_token_s=nothing, finish_s=nothing + 1, outcome=np.array([0, UNFINISHED, 1]))
    rows = [json.loads(line) for line in request_lines(cut).splitlines()[:1]]
    assert [row["index"] for row in rows] == [0]
    assert request_lines(columns(2, outcome=np.full(2, UNFINISHED))) == ""


def test_one_of_several_stages_by_name_or_number(tmp_path: Path) -> None:
    stages = [stage("1 req/s"), stage("2 req/s", 2.0)]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model_id": "m", "stages": [one.to_json() for one in stages]}))
    write_requests(tmp_path / "run.jsonl", stages)
    for file in (path, tmp_path / "run.jsonl"):
        named, numbered = read_run(f"{file}#2 req/s"), read_run(f"{file}#2")
        assert named.number("p50_tpot_ms") == numbered.number("p50_tpot_ms") == pytest.approx(40.0)
        with pytest.raises(BadInput, match=r"several runs.*#1 req/s"):
            read_run(str(file))
        with pytest.raises(BadInput, match="no such run"):
            read_run(f"{file}#3")
    points = [{"varied": {"workload.rate": "4"}, "error": None, **summary(queue(50, 4.0, 30.0, 0))},
              {"varied": {"workload.rate": "8"}, "error": "it did not fit"}]  # fmt: skip
    path.write_text(json.dumps({"points": points, "interrupted": False}))
    assert read_run(f"{path}#workload.rate=4").number("num_prompts") == 50
    with pytest.raises(BadInput, match="this point failed"):
        read_run(f"{path}#2")


def told(a: Run, b: Run) -> str:
    return "\n".join(compare(a, b).warnings)


def test_like_beside_like_is_not_warned_of() -> None:
    assert told(run(stage("a")), run(stage("b", 1.5))) == ""
    assert told(run(stage(), model="millrace"), run(stage(), model="models/Millrace, int8 weights")) == ""
    assert told(run(stage()), run(stage(limits=Limits(ttft_s=1.0)))) == ""


@pytest.mark.parametrize(
    ("b", "said"),
    [
        (run(stage(count=30)), "requests differ: A 40, B 30"),
        (run(stage(), model="models/llama"), "models differ: A Millrace, float32 weights, B models/llama"),
        (run(stage(), numbers=stage().to_json() | {"achieved_request_rate": 5.0}), "arrival rates differ"),
        (run(stage(), numbers=stage().to_json() | {"achieved_request_rate": None}), "B has no arrival rate"),
        (run(stage(), numbers=stage().to_json() | {"total_input_tokens": 1300}), "mean prompts differ: A 30, B 32.5"),
        (run(stage(), numbers=stage().to_json() | {"total_output_tokens": 100}), "mean outputs differ: A 5, B 2.5"),
        (run(stage(), numbers=stage().to_json() | {"invalid_because": "late"}), "B is INVALID: late"),
        (run(stage(), numbers=stage().to_json() | {"saturated": True}), "B is past saturation"),
        (run(stage(), numbers=stage().to_json() | {"interrupted": "events"}), "B was cut off: events"),
        (run(stage(limits=Limits(ttft_s=1.0))), "their limits (slo) differ"),
        (run(stage(), notes=("was cut off",)), "B was cut off"),
    ],
)
def test_what_makes_two_runs_unlike_is_told(b: Run, said: str) -> None:
    assert said in told(run(stage(limits=Limits(ttft_s=0.5)), model="Millrace, float32 weights"), b)


def test_the_table_has_the_names_of_the_reports_and_the_error() -> None:
    text = comparison_table(compare(run(stage("a")), run(stage("b", 1.5), source=SIMULATED)))
    assert re.search(r"Median TPOT \(ms\): +20\.00 +30\.00 +\+10\.00 +\+50\.0 %", text)
    assert re.search(r"TTFT \(share of values\): +\d\.\d{3} +at [\d.]+ ms: \d+ % of A's 40, \d+ % of B's 40", text)
    assert "Output token throughput (tok/s):" in text
    assert "note: A measured by a client, HTTP included; B simulated, without HTTP" in text
    assert set(TITLES) <= {metric.name for metric in METRICS}


def test_the_page_stands_alone_draws_both_and_escapes_names() -> None:
    page = comparison_html(compare(run(stage("<b>a</b>")), run(stage("b", 1.5))))
    assert not re.search(r"<script|src=|href=|url\(|@import", page)
    assert "<b>a" not in page
    assert "B: b</span>" in page
    for title in ("Time to First Token", "Inter-token Latency", "End-to-end Latency"):
        assert f"<figcaption>{title}" in page
    assert page.count("<polyline") == 8
    alone = comparison_html(compare(run(stage("a")), run(stage("b"), records=None)))
    assert alone.count("<polyline") == 4
    assert "Of B (b) only the numbers are known" in alone


ROW = '{"stage":"x","index":0,"outcome":"completed","arrival_s":0,"sent_s":0,"end_s":1,"prompt_tokens":3'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"TTFT was good", "not a run.*line per request"),
        (b"", "not a run"),
        (b"[1, 2]", "not a run"),
        (b'{"hello": 1}', "no metric of a run"),
        (b'{"p50_ttft_ms": "fast"}', "p50_ttft_ms = 'fast': not a number"),
        (f"{ROW}}}\n".encode(), r":1 = .*output_tokens"),
        (f'{ROW},"output_tokens":2}}\n{{"broken'.encode(), r":2 = "),
        (f'{ROW},"output_tokens":"two"}}\n'.encode(), r":1 = .*output_tokens"),
        (gzip.compress(b'{"p50_ttft_ms": 1.0}' * 50, mtime=0)[:-12], "cut off"),
        (b'{"event":"plan","t":0,"n":1}\n', "the first line is not a schedule's header"),
        (b'{"event":"header","format":99,"penstock":"9","deployment":{},"blocks":1,"block_tokens":1,'
         b'"max_sequence_tokens":1}\n', "reads format 1"),
        (gzip.compress(b'{"event":"header","format":1}', mtime=0)[:20], "not a run|header"),
        (b"\x1f\x8bnot really", "cannot be read"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)  # fmt: skip
def test_a_file_that_is_no_run_is_named_with_a_remedy(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said) as caught:
        read_run(str(path))
    assert caught.value.remedy
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_and_a_stage_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_run(str(tmp_path / "nothing.json"))
    with pytest.raises(BadInput, match="one run in the file"):
        read_run(write(tmp_path / "a.json", stage()) + "#2")


def test_runs_without_anything_in_common_do_not_compare() -> None:
    ttft, duration = Run(name="a", source=CLIENT, numbers={"p50_ttft_ms": 1.0}), {"duration": 3.0}
    with pytest.raises(BadInput, match="no metric in common with a"):
        compare(ttft, Run(name="b", source=CLIENT, numbers=duration))
    with pytest.raises(BadInput, match="no request was completed"):
        compare(run(stage()), run(stage(count=0)))
    with pytest.raises(BadInput, match=r"no such metric.*ttft_p50"):
        compare(run(stage()), run(stage())).row("tftt_p50")
    with pytest.raises(BadInput, match=r"goodput.*has none"):
        compare(run(stage()), run(stage())).row("goodput")


def test_a_simulated_result_stands_beside_a_measured_one(tmp_path: Path) -> None:
    path = tmp_path / "sim.json"
    path.write_text(json.dumps(summary(SimulationResult(title="t", requests=columns(20), config={"model": "m"}))))
    found = compare(read_run(str(path)), run(stage(count=20)))
    assert found.a.facts["prompt_tokens"] == 100
    assert found.row("ttft_p50").a == pytest.approx(500.0)
