"""What the overload benchmark makes of its stages: a flood that costs, a tenant that waits, a time that was wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from overload_judged import of_the_peaks_around, row, together, verdicts
from overload_tenants import Refusal, Stage


def stage(name: str, done: int, ttft_s: float = 0.3, refusals: list[Refusal] | None = None) -> Stage:
    """Ten seconds, ten answers of the quiet tenant."""
    found = Stage(name, 0.0, 10.0, flood_done=done, quiet_ttft=[ttft_s] * 10, refusals=refusals or [])
    found.cpu = {"worker": 1.0}
    return found


def kept(right: int, wrong: int) -> list[Refusal]:
    """Refusals with a place kept: let in when told, or at twice that time."""
    return [Refusal(2.0, True, False, 2.1)] * right + [Refusal(2.0, True, False, 4.0)] * wrong


def judged(flood: Stage, crowd: Stage) -> dict[str, bool]:
    found = [stage("alone", 0), stage("peak 0", 400), flood, stage("peak 1", 400)]
    paired, _ = of_the_peaks_around(found, Stage.throughput)
    return verdicts([row(one, 40.0, found[0]) for one in (*found, together("all", [flood]), crowd)], paired)


@pytest.fixture
def good() -> dict[str, Any]:
    return {"flood": stage("flood 1", 400, refusals=kept(9, 1)), "crowd": stage("crowd", 400, refusals=kept(10, 0))}


def test_a_server_that_keeps_its_word_holds_in_all(good: dict[str, Any]) -> None:
    assert all(judged(**good).values())


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"flood": stage("flood 1", 370, refusals=kept(10, 0))}, "throughput"),
        ({"flood": stage("flood 1", 400, ttft_s=0.7, refusals=kept(10, 0))}, "quiet p99"),
        ({"crowd": stage("crowd", 400, refusals=kept(8, 2))}, "Retry-After"),
        ({"crowd": stage("crowd", 400)}, "Retry-After"),
    ],
)
def test_each_bound_is_seen_to_be_missed(change: dict[str, Any], fails: str, good: dict[str, Any]) -> None:
    missed = [name for name, holds in judged(**good | change).items() if not holds]
    assert [name.startswith(fails) for name in missed] == [True]


def test_a_failed_request_is_told(good: dict[str, Any]) -> None:
    good["flood"].quiet_failed.append("503")
    assert [name for name, holds in judged(**good).items() if not holds] == ["nobody failed, nothing quiet refused"]


def test_a_drifting_machine_is_compared_with_the_peaks_beside_each_flood() -> None:
    found = [stage(name, done) for name, done in
             (("peak 0", 400), ("flood 1", 300), ("peak 1", 200), ("flood 2", 150), ("peak 2", 100))]  # fmt: skip
    assert of_the_peaks_around(found, Stage.throughput) == (pytest.approx(1.0), pytest.approx(0.0))


def test_who_came_early_is_counted_apart() -> None:
    told = [Refusal(2.0, True, True, 1.2), Refusal(2.0, True, True, 3.0), *kept(1, 0)]
    shown = row(stage("crowd", 400, refusals=told), 40.0, stage("alone", 0))
    assert (shown["early"], shown["early_let_in"], shown["told"], shown["kept_right"]) == (2, 1, 1, 1.0)
