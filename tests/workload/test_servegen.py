"""A ServeGen pool gives requests of its clients, at their rates and with their lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadInput
from penstock.workload.build import build_source
from penstock.workload.settings import ArrivalSettings, WorkloadSettings

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
SHARED = Path(__file__).parents[3] / "shared" / "data" / "servegen"
LAWS = [
    # client, begin, rate, pattern, shape
    (0, 0, 2.0, "Gamma", 1.0), (0, 600, 4.0, "Gamma", 0.2), (0, 1200, 1.0, "Gamma", 1.0),
    (5, 0, 1.0, "Weibull", 0.5), (5, 600, 0.0, "Weibull", 0.5), (9, 1200, 0.9, "Gamma", 0.5),
]  # fmt: skip
LENGTHS = [
    (0, 0, "input_tokens", 10.0, 0.25), (0, 0, "input_tokens", 20.0, 0.75), (0, 0, "output_tokens", 3.0, 1.0),
    (5, 0, "text_tokens", 7.0, 1.0), (5, 0, "image_count", 2.0, 1.0), (5, 0, "image_tokens", 100.0, 1.0),
    (5, 0, "output_tokens", 4.0, 1.0),
]  # fmt: skip


def write(folder: Path, laws: list[tuple[object, ...]] = LAWS, lengths: list[tuple[object, ...]] = LENGTHS) -> Path:  # type: ignore[assignment]
    trace = dict(
        zip(("chunk", "timestamp_s", "rate", "pattern", "arg1"), map(list, zip(*laws, strict=True)), strict=True)
    )
    dataset = dict(
        zip(("chunk", "window_s", "field", "value", "prob"), map(list, zip(*lengths, strict=True)), strict=True)
    )
    pq.write_table(pa.table(trace), folder / "p-trace.parquet")
    pq.write_table(pa.table(dataset), folder / "p-dataset.parquet")
    return folder / "p-trace.parquet"


def test_clients_keep_their_counts_and_lengths(tmp_path: Path) -> None:
    source = build_source(WorkloadSettings(trace=write(tmp_path), duration_s=1800.0))
    requests = list(source.initial())
    assert requests == list(source.initial())
    assert Counter(r.tenant for r in requests) == {"c0": 4200, "c5": 600, "c9": 540}
    assert [r.arrival_s for r in requests] == sorted(r.arrival_s for r in requests)
    own = [r.prompt_tokens for r in requests if r.tenant == "c0"]
    assert set(own) == {10, 20}
    assert np.mean(own) == pytest.approx(17.5, abs=0.3)
    assert {(r.prompt_tokens, r.output_tokens) for r in requests if r.tenant == "c5"} == {(207, 4)}
    assert {r.output_tokens for r in requests if r.tenant == "c9"} == {4}, "lengths of the client nearest in rate"
    assert any("lengths of its own" in note for note in source.notes)
    inside = [sum(begin <= r.arrival_s < begin + 600 for r in requests) for begin in (0, 600, 1200)]
    assert inside == [1800, 2400, 1140]
    gaps = np.diff([r.arrival_s for r in requests if r.tenant == "c0" and 600 <= r.arrival_s < 1200])
    assert gaps.std() / gaps.mean() == pytest.approx(5**0.5, rel=0.2)


def test_a_rate_scales_all_clients_over_the_time_the_run_covers(tmp_path: Path) -> None:
    file = write(tmp_path)
    source = build_source(
        WorkloadSettings(trace=file, duration_s=600.0, begin_s=600.0, arrivals=ArrivalSettings(rate=1.0))
    )
    requests = list(source.initial())
    assert len(requests) == pytest.approx(600, abs=1)
    assert {r.tenant for r in requests} == {"c0"}
    assert requests[0].arrival_s >= 0
    assert requests[-1].arrival_s < 600
    twice = list(build_source(WorkloadSettings(trace=file, duration_s=300.0, speed=2.0)).initial())
    assert len(twice) == 1800
    assert len(list(build_source(WorkloadSettings(trace=file, requests=11)).initial())) == 11


@pytest.mark.parametrize(
    ("laws", "lengths", "place"),
    [
        ([*LAWS, (1, 0, -1.0, "Gamma", 1.0)], LENGTHS, "row 7 rate"),
        ([*LAWS, (1, 0, 1.0, "Zipf", 1.0)], LENGTHS, "row 7 pattern"),
        ([*LAWS, (1, 0, 1.0, "Gamma", 0.0)], LENGTHS, "row 7 arg1"),
        (LAWS, [*LENGTHS, (0, 0, "input_tokens", 1.0, -0.1)], "row 8 prob"),
        (LAWS, [(3, 0, "output_tokens", 1.0, 1.0)], "both traffic and lengths"),
    ],
)
def test_a_bad_table_is_refused_with_its_row(tmp_path: Path, laws: list, lengths: list, place: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(BadInput, match=place):
        build_source(WorkloadSettings(trace=write(tmp_path, laws, lengths), requests=5))


def test_a_pool_without_an_end_or_with_half_its_files_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path)
    with pytest.raises(BadInput, match="days of traffic"):
        build_source(WorkloadSettings(trace=file))
    with pytest.raises(BadInput, match="begin_s"):
        build_source(WorkloadSettings(trace=file, requests=5, begin_s=1e6))
    (tmp_path / "p-dataset.parquet").unlink()
    with pytest.raises(BadInput, match="p-dataset"):
        build_source(WorkloadSettings(trace=file, requests=5))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
def test_the_reasoning_pool_has_its_published_lengths() -> None:
    settings = WorkloadSettings(
        trace=SHARED / "reason-deepseek-r1-trace.parquet", duration_s=86400.0, arrivals=ArrivalSettings(rate=0.5)
    )
    requests = list(build_source(settings).initial())
    assert len(requests) == pytest.approx(43_200, rel=0.01)
    assert np.mean([r.prompt_tokens for r in requests]) == pytest.approx(1268, rel=0.05)
    assert np.mean([r.output_tokens for r in requests]) == pytest.approx(1527, rel=0.05)
    assert np.median([r.output_tokens for r in requests]) == pytest.approx(792, rel=0.05)
