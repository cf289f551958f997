"""Formats are told apart by content; a bad row is refused with file, line, column and remedy."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from penstock.errors import BadInput
from penstock.workload.formats import NAMES, read
from penstock.workload.trace import TraceRequest, read_trace

SHARED = Path(__file__).parents[3] / "shared" / "data"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
SERVING_SIM = {"input_toks": 35, "output_toks": 4, "arrival_time_ns": 1_500_000_000, "prefix_blocks_16": [3, 9]}


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_azure_2024_times_carry_an_offset(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,9,6\n"
    trace = read_trace(write(tmp_path / "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows))
    assert [request.arrival_s for request in trace.requests] == [0.0, 0.99007]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (BURST, "{},ChatGPT,472,18,490,Conversation log\n"),
        (BURST_3, '{},"a,b",1.5,GPT-4,472,18,490,API log\n'),
        ("\ufeff" + BURST, "{}.0,ChatGPT,472,18,490,API log\r\n"),
    ],
)
def test_burstgpt_columns_are_found_by_name(tmp_path: Path, header: str, row: str) -> None:
    trace = read_trace(write(tmp_path / "b.csv.gz", header + row.format(5) + row.format(45)))
    assert trace.requests == (TraceRequest(0.0, 472, 18), TraceRequest(40.0, 472, 18))


def test_burstgpt_3_begins_months_in_and_names_no_session_for_the_api(tmp_path: Path) -> None:
    """As the published file does: release v2.0, times from 19440110.0 on, no session in API rows, failures within."""
    rows = ("19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n"
            "19440161.0,,2,ChatGPT,36,29,65,API log\n19440192.0,,0,ChatGPT,12,0,12,API log\n")  # fmt: skip
    trace = read_trace(write(tmp_path / "b.csv", BURST_3 + rows))
    assert trace.requests == (TraceRequest(0.0, 906, 446), TraceRequest(51.0, 36, 29))


def test_burstgpt_failures_are_left_out(tmp_path: Path) -> None:
    rows = "5,ChatGPT,472,18,490,API log\n6,ChatGPT,10,0,10,API log\n7,GPT-4,0,0,0,API log\n"
    assert len(read_trace(write(tmp_path / "b", BURST + rows))) == 1


def test_vidur_columns_are_found_by_name_and_a_file_without_times_is_none(tmp_path: Path) -> None:
    rows = "0.0,374,44\n4.314579,396,109\n"
    trace = read_trace(write(tmp_path / "v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows))
    assert trace.requests == (TraceRequest(0.0, 374, 44), TraceRequest(4.314579, 396, 109))
    lengths = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.85\n"
    with pytest.raises(BadInput, match="no known trace begins so"):
        read_trace(write(tmp_path / "lengths.csv", lengths))
    with pytest.raises(BadInput, match=r"v\.csv:2 arrived_at"):
        read_trace(write(tmp_path / "v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\nsoon,1,1\n"))


def test_serving_sim_names_whole_blocks_of_16(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "s.jsonl", "\n".join([json.dumps(SERVING_SIM)] * 2)))
    assert trace.block_tokens == 16
    assert trace.requests[0] == TraceRequest(0.0, 35, 4, (3, 9))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (BURST + "5,ChatGPT,472,18,490\n", ":2 row"),
        (BURST + "5,ChatGPT,472,18,490,API log\n\n-1,ChatGPT,472,18,490,API log\n", ":4 Timestamp"),
        (BURST + "soon,ChatGPT,472,18,490,API log\n", ":2 Timestamp"),
        (BURST + "5,ChatGPT,,18,490,API log\n", ":2 Request tokens"),
        (BURST + "5,ChatGPT,0,18,490,API log\n", ":2 Request tokens"),
        (BURST + "5,ChatGPT,4,1.5,490,API log\n", ":2 Response tokens"),
        (json.dumps(SERVING_SIM | {"prefix_blocks_16": [3]}), ":1 prefix_blocks_16"),
        (json.dumps(SERVING_SIM | {"input_toks": 0}), ":1 input_toks"),
        (json.dumps(SERVING_SIM) + '\n{"arrival_time_ns": 3}', ":2 row"),
    ],
)
def test_a_bad_row_is_refused_with_place_and_remedy(tmp_path: Path, text: str, place: str) -> None:
    file = write(tmp_path / "bad", text)
    with pytest.raises(BadInput) as caught:
        read_trace(file)
    assert f"{file}{place}" in str(caught.value)
    assert caught.value.remedy


def test_a_format_asked_for_by_name_must_fit(tmp_path: Path) -> None:
    file = write(tmp_path / "b", BURST + "5,ChatGPT,472,18,490,API log\n")
    assert read(file, "burstgpt")[1].name == "burstgpt"
    with pytest.raises(BadInput, match="no azure trace"):
        read(file, "azure")
    with pytest.raises(BadInput, match="burstgpt"):
        read(file, "parrot")
    assert "burstgpt" in NAMES


def test_a_limit_stops_before_a_bad_row(tmp_path: Path) -> None:
    file = write(tmp_path / "b", BURST + "5,ChatGPT,4,1,5,API log\n6,ChatGPT,4,1,5,API log\nbad\n")
    assert len(read_trace(file, limit=2)) == 2
    with pytest.raises(BadInput, match=":4 row"):
        read_trace(file)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
def test_the_real_serving_sim_workload_shares_prefixes() -> None:
    trace = read_trace(SHARED / "llmservingsim" / "workloads" / "sharegpt-qwen3-300-sps10.jsonl.gz")
    assert len(trace) == 300
    seen: set[int] = set()
    hits = 0
    for request in trace.requests:
        hits += len(seen.intersection(request.prefix_blocks))
        seen.update(request.prefix_blocks)
    assert hits > 0
