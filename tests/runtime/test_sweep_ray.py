"""A sweep on Ray gives what it gives in processes of this machine. Runs where ray is installed (penstock[ray])."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from penstock.runtime.sweep import Point, sweep

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

DATA = {"model": {"path": "llama-3-8b"}, "hardware": {"name": "h100-sxm"}, "twin": {"price": "roofline"},
        "workload": {"rate": 30, "requests": 20}}  # fmt: skip
POINTS: list[dict[str, Any]] = [{"workload.rate": 10}, {"workload.rate": 40}, {"hardware.name": "t4"}]


@pytest.fixture
def address() -> Iterator[str]:
    """Of a Ray of one core on this machine."""
    # Ray is nice to others by default: on a busy machine its tasks would hardly run.
    settings = {"worker_niceness": 0}
    started = ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _system_config=settings)
    yield started.address_info["gcs_address"]
    ray.shutdown()


def timeless(points: list[Point]) -> list[dict[str, Any]]:
    """Their results in order, without what the clock on the wall says."""
    points.sort(key=lambda point: point.number)
    clocks = ("wall_s", "simulated_requests_per_wall_s")
    return [
        {"varied": dict(one.varied), "error": one.error}
        | {key: value for key, value in one.summary.items() if key not in clocks}
        for one in points
    ]


def test_points_on_ray_are_those_of_processes(address: str) -> None:
    there = timeless(list(sweep(DATA, POINTS, ray_address=address)))
    here = timeless(list(sweep(DATA, POINTS, processes=1)))
    assert there == here
    assert [bool(point["error"]) for point in there] == [False, False, True]
    assert not ray.is_initialized()


def test_a_sweep_that_is_left_cancels_what_is_under_way(address: str) -> None:
    endless = [{"workload.requests": 20}, {"workload.requests": 10**9}, {"workload.requests": 10**9}]
    points = sweep(DATA, endless, ray_address=address)
    assert next(points).number == 0
    points.close()  # type: ignore[attr-defined]
    assert not ray.is_initialized()
