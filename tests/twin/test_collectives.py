"""Collectives: GenZ's golden value, bounds, monotony, and measured times where the data is at hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import median
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.catalog.hardware_load import device
from penstock.twin import collectives as c
from penstock.twin.operators import Collective, CollectiveKind

DATA = Path(__file__).parents[2].parent / "shared/data/aiconfigurator/data"
KINDS: list[CollectiveKind] = list(get_args(CollectiveKind))
NAMES = ["h100-sxm", "l40s", "rtx-4090", "mi300x", "tpu-v5e", "gb200", "v100-sxm-32", "gaudi-3", "cpu"]
sizes = st.floats(1.0, 1e10)
wires = st.builds(
    c.Wire, bytes_per_s=st.floats(1e8, 1e12), latency_s=st.floats(0.0, 1e-4), base_s=st.floats(0.0, 1e-4),
    direct=st.booleans(), trees=st.booleans(),
)  # fmt: skip


def test_genz_ring_vectors() -> None:
    """collective_times.py: 8 MiB over 8 nodes, 450 GiB/s, 1 us a hop, 5 us base."""
    wire = c.Wire(450 * 2**30, 1e-6, 5e-6)
    assert c.ring_all_reduce(8 * 2**20, 8, wire) * 1e6 == pytest.approx(49.38, abs=0.005)
    assert c.ring_gather(8 * 2**20, 8, wire) == pytest.approx(5e-6 + 7e-6 + 7 / 8 * 2**23 / (450 * 2**30))
    assert c.point_to_point(2**20, wire) == pytest.approx(1e-6 + 2**20 / (450 * 2**30))
    assert c.ring_all_reduce(0, 8, wire) == c.ring_all_reduce(2**20, 1, wire) == 0.0


@given(st.sampled_from(KINDS), sizes, st.integers(1, 64), wires)
def test_no_algorithm_beats_the_bandwidth_bound(kind: CollectiveKind, size: float, ranks: int, wire: c.Wire) -> None:
    took = c.best(kind, size, ranks, wire).seconds
    if ranks == 1:
        assert took == 0.0
        return
    bound = Collective(kind, size, ranks).work().link_bytes / wire.bytes_per_s
    assert took >= bound * (1 - 1e-12)
    assert c.ring_all_reduce(size, ranks, wire) >= 2 * (ranks - 1) / ranks * size / wire.bytes_per_s


@given(st.sampled_from(KINDS), sizes, sizes, st.integers(2, 64), st.integers(1, 8), st.sampled_from(NAMES))
def test_more_bytes_never_take_less(
    kind: CollectiveKind, one: float, other: float, ranks: int, nodes: int, name: str
) -> None:
    less, more = sorted((one, other))
    hardware = device(name)
    first = c.collective_time(Collective(kind, less, ranks, nodes), hardware).seconds
    second = c.collective_time(Collective(kind, more, ranks, nodes), hardware).seconds
    assert 0.0 < first <= second * (1 + 1e-12)


@given(st.sampled_from(KINDS), sizes, st.sampled_from(NAMES))
def test_one_rank_and_no_bytes_are_free(kind: CollectiveKind, size: float, name: str) -> None:
    assert c.collective_time(Collective(kind, size, 1), device(name)).seconds == 0.0
    assert c.collective_time(Collective(kind, 0.0, 8), device(name)).seconds == 0.0


@given(sizes, st.sampled_from(["h100-sxm", "a100-sxm-80"]))
def test_leaving_the_node_costs(size: float, name: str) -> None:
    for kind in KINDS:
        inside = c.collective_time(Collective(kind, size, 8, 1), device(name)).seconds
        assert c.collective_time(Collective(kind, size, 8, 2), device(name)).seconds >= inside


def test_small_messages_take_one_shot_and_large_ones_two_or_a_ring() -> None:
    hardware = device("h100")
    picked = [c.collective_time(Collective("all_reduce", size, 8), hardware).algorithm for size in (4e3, 2e6, 1e9)]
    assert picked == ["one_shot", "two_shot", "ring"]
    assert c.collective_time(Collective("all_reduce", 1e6, 16, 2), hardware).algorithm == "hierarchical"
    staged = c.collective_time(Collective("all_reduce", 4e3, 8), device("rtx-4090"))
    assert staged.algorithm == "ring"  # no peer reaches another's memory


def test_the_tree_wins_between_many_nodes_only() -> None:
    wire = c.Wire(50e9, 5e-6, trees=True)
    assert c.best("all_reduce", 1e4, 64, wire).algorithm == "double_tree"
    assert c.best("all_reduce", 1e9, 64, wire).algorithm == "ring"
    assert c.best("all_reduce", 1e4, 64, dataclasses.replace(wire, trees=False, direct=False)).algorithm == "ring"


def test_a_mesh_gives_one_peer_one_cable() -> None:
    hardware = device("mi300x")
    link = hardware.scale_up
    assert link is not None
    assert c.wire_of(link, 2, hardware).bytes_per_s == pytest.approx(64e9 * 0.7)
    assert c.wire_of(link, 8, hardware).bytes_per_s == pytest.approx(448e9 * 0.7)
    pod = device("tpu-v5e")
    assert [c.wire_of(pod.scale_up, ranks, pod).bytes_per_s / 0.85 for ranks in (2, 8, 256)] == [50e9, 100e9, 200e9]


def test_a_hierarchical_all_reduce_by_hand() -> None:
    """16 ranks on 2 nodes: reduce-scatter over 8, all-reduce of an eighth over 2, all-gather over 8."""
    hardware, size = device("h100"), 64 * 2**20
    inner = 450e9 * 0.78
    by_hand = 4.5e-6 + 2 * (7 * 0.8e-6 + 7 / 8 * size / inner) + 2 * 5e-6 + size / 8 / (50e9 * 0.9)
    took = c.collective_time(Collective("all_reduce", size, 16, 2), hardware).seconds
    assert took == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
@pytest.mark.parametrize(
    ("system", "name"), [("a100_sxm", "a100"), ("h100_sxm", "h100"), ("h200_sxm", "h200"), ("b200_sxm", "b200")]
)
def test_measured_all_reduces_are_met(system: str, name: str) -> None:
    """All-reduces of 512 bytes to 512 MiB: median error below 25 %, NCCL's and, on H100 and H200, an engine's own."""
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    hardware = device(name)
    rows = parquet.read_table(next((DATA / system / "comm/nccl").glob("*/*.parquet"))).to_pylist()
    errors = []
    for row in rows:
        if row["op_name"] == "all_reduce" and row["nccl_dtype"] == "half":
            ranks = row["num_gpus"]
            wire = c.wire_of(hardware.scale_up, ranks, hardware)
            errors.append(abs(c.ring_all_reduce(2.0 * row["message_size"], ranks, wire) / row["latency"] * 1e3 - 1))
    assert median(errors) < 0.25
    if name in ("h100", "h200"):
        rows = parquet.read_table(next((DATA / system / "comm/vllm").glob("*/*.parquet"))).to_pylist()
        errors = []
        for row in rows:
            if row["backend"] == "vllm_graph":
                operator = Collective("all_reduce", 2.0 * row["message_size"], row["num_gpus"])
                errors.append(abs(c.collective_time(operator, hardware).seconds / row["latency"] * 1e3 - 1))
        assert median(errors) < 0.25
