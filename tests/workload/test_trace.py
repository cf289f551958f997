"""Traces are read as they are, refused with a place and a remedy, and changed only as documented."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadInput
from penstock.workload.trace import Trace, TraceRequest, read_trace

SHARED = Path(__file__).parents[3] / "shared" / "data"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "no-extension"])
def test_azure_csv_keeps_all_seven_digits_of_a_second(tmp_path: Path, name: str) -> None:
    rows = "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:46.6805901,396,109\r\n2023-11-16 18:16:00,1,2\r\n"
    trace = read_trace(write(tmp_path / name, AZURE + rows))
    assert [request.arrival_s for request in trace.requests] == [0.0, 1e-7, 13.31941]
    assert [(r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(374, 44), (396, 109), (1, 2)]


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_mooncake_jsonl_keeps_prefix_blocks(tmp_path: Path, name: str) -> None:
    row = {"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}
    text = "\n".join(json.dumps(row | {"timestamp": stamp}) for stamp in (3000, 6001))
    trace = read_trace(write(tmp_path / name, text))
    assert trace.requests[1] == TraceRequest(3.001, 600, 5, (0, 7))
    assert trace.block_tokens == 512


def test_rows_out_of_order_are_sorted_by_arrival(tmp_path: Path) -> None:
    rows = "2023-11-16 18:15:48,1,1\n2023-11-16 18:15:46,2,2\n"
    trace = read_trace(write(tmp_path / "a.csv", AZURE + rows))
    assert [(r.arrival_s, r.prompt_tokens) for r in trace.requests] == [(0.0, 2), (2.0, 1)]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (AZURE + "2023-11-16 18:15:46,1,1\nyesterday,1,1\n", ":3 TIMESTAMP"),
        (AZURE + "2023-13-16 18:15:46,1,1\n", ":2 TIMESTAMP"),
        (AZURE + "2023-11-16 18:15:46,-4,1\n", ":2 ContextTokens"),
        (AZURE + "2023-11-16 18:15:46,4,1.5\n", ":2 GeneratedTokens"),
        (AZURE + "2023-11-16 18:15:46,4\n", ":2 row"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 0}', ":1 output_length"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp"', ":2 row"),
        ('{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]}', ":1 hash_ids"),
        ("when,in,out\n1,2,3\n", ":1"),
        ("", ":1"),
        (AZURE, "holds no request"),
    ],
)
def test_a_bad_file_is_refused_with_place_and_remedy(tmp_path: Path, text: str, place: str) -> None:
    file = write(tmp_path / "bad", text)
    with pytest.raises(BadInput) as caught:
        read_trace(file)
    assert place in str(caught.value)
    assert str(file) in str(caught.value)
    assert caught.value.remedy


def test_a_missing_truncated_or_binary_file_is_the_callers_fault(tmp_path: Path) -> None:
    whole = gzip.compress(AZURE.encode() * 100)
    for content in (None, whole[: len(whole) // 2], b"\xff\xfe\x00"):
        file = tmp_path / "f"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(BadInput, match="trace"):
            read_trace(file)


def some(*lengths: tuple[int, int]) -> Trace:
    return Trace("t", tuple(TraceRequest(float(i), *pair) for i, pair in enumerate(lengths)))


def test_fitting_scales_all_lengths_by_one_factor_and_everything_fits() -> None:
    trace = some((1000, 100), (2000, 50), (3600, 400)).fit(1000)
    factor = 1000 / np.quantile([1100, 2050, 4000], 0.999)
    assert [r.prompt_tokens for r in trace.requests[:2]] == [round(1000 * factor), round(2000 * factor)]
    assert all(r.prompt_tokens + r.output_tokens <= 1000 for r in trace.requests)


def test_fitting_never_stretches_and_never_leaves_zero_tokens() -> None:
    assert [(r.prompt_tokens, r.output_tokens) for r in some((10, 5)).fit(4096).requests] == [(10, 5)]
    tiny = some((1, 1), (100_000, 100_000)).fit(2).requests
    assert [(r.prompt_tokens, r.output_tokens) for r in tiny] == [(1, 1), (1, 1)]


def test_fitting_shrinks_prefix_blocks_by_the_same_factor() -> None:
    trace = Trace("t", (TraceRequest(0.0, 1024, 10, (1, 2)), TraceRequest(1.0, 4096, 10, tuple(range(8))))).fit(1027)
    assert trace.block_tokens == 128
    assert [len(r.prefix_blocks) for r in trace.requests] == [2, 8]


def test_rate_and_speed_stretch_time_and_keep_the_pattern() -> None:
    trace = Trace("t", tuple(TraceRequest(t, 1, 1) for t in (0.0, 1.0, 4.0)))
    assert [r.arrival_s for r in trace.at_speed(2).requests] == [0.0, 0.5, 2.0]
    assert trace.at_rate(4).rate == pytest.approx(4)
    assert len(trace.first(2)) == 2
    assert len(trace.within(4.0)) == 2


def test_a_trace_without_time_cannot_be_given_a_rate() -> None:
    with pytest.raises(BadInput, match="no time between"):
        Trace("t", (TraceRequest(0.0, 1, 1), TraceRequest(0.0, 1, 1))).at_rate(1.0)


def test_dequantising_spreads_a_tick_forward_deterministically_and_within_it() -> None:
    trace = Trace("t", tuple(TraceRequest(3.0 * (i // 100), 1, 1) for i in range(200)))
    spread = trace.dequantised(3.0, seed=1)
    times = np.array([r.arrival_s for r in spread.requests])
    assert len(set(times)) == 200
    assert times.max() < 6.0
    assert (np.diff(times) >= 0).all()
    assert spread == trace.dequantised(3.0, seed=1)
    assert spread != trace.dequantised(3.0, seed=2)


@real
def test_the_azure_conversation_trace_has_its_published_statistics() -> None:
    trace = read_trace(SHARED / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz")
    gaps = np.diff([r.arrival_s for r in trace.requests])
    assert len(trace) == 19_366
    assert trace.rate == pytest.approx(5.53, abs=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(1.094, abs=0.001)
    assert np.mean([r.prompt_tokens for r in trace.requests]) == pytest.approx(1154.7, abs=0.1)
    assert np.mean([r.output_tokens for r in trace.requests]) == pytest.approx(211.1, abs=0.1)


@real
def test_the_mooncake_conversation_is_poisson_once_its_ticks_are_spread() -> None:
    file = SHARED / "mooncake" / "conversation_trace.jsonl.gz"
    raw, spread = read_trace(file), read_trace(file, dequantise=True)
    assert len(raw) == 12_031
    for trace, low, high in ((raw, 3.0, 3.1), (spread, 0.97, 1.07)):
        gaps = np.diff([r.arrival_s for r in trace.requests])
        assert low < gaps.std() / gaps.mean() < high


@real
def test_fitting_the_real_trace_to_a_small_context_keeps_its_shape() -> None:
    trace = read_trace(SHARED / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz")
    small = trace.fit(2048)
    assert all(2 <= r.prompt_tokens + r.output_tokens <= 2048 for r in small.requests)
    ratio = np.mean([r.prompt_tokens for r in small.requests]) / np.mean([r.output_tokens for r in small.requests])
    assert ratio == pytest.approx(5.47, rel=0.02)
