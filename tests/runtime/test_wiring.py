"""What a deployment says of nodes, clusters, links and tiers has the effect it should have, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.catalog import hardware_load as catalog
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.report.simulation import SimulationResult
from penstock.runtime.modelled import model
from penstock.runtime.servable import require_servable
from penstock.runtime.simulate import simulate
from penstock.twin.operators import Collective, Elementwise, Gemm, Operator
from penstock.twin.price import Estimate
from penstock.twin.rewired import Rewired
from penstock.twin.roofline import Roofline
from penstock.twin.twin import StepLoad

SIXTEEN = {"layout.tensor_parallel": 16}
PRESSED = {"memory.kv_bytes": "100MB", "memory.host_bytes": "1GiB", "policy.evict": "swap", "hardware.name": "h100-sxm",
           "model.path": "llama-3.2-1b", "workload.requests": 30, "workload.rate": 500,
           "workload.prompt_tokens": "64", "workload.output_tokens": "400"}  # fmt: skip


@pytest.fixture(autouse=True)
def hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user's directory, empty."""
    monkeypatch.setenv("PENSTOCK_HARDWARE_DIR", str(tmp_path))
    return tmp_path


def deployment(**more: Any) -> Deployment:
    keys = {"model.path": "llama-3-70b", "twin.price": "roofline", "workload.requests": 20, "workload.rate": 5}
    return Deployment.load(None, {**keys, **more})


def run(**more: Any) -> SimulationResult:
    return simulate(deployment(**more))


def step_s(**more: Any) -> float:
    """Of 32 sequences that decode at 1,000 tokens."""
    return model(deployment(**more)).price.seconds(StepLoad(32, 32_000, 0, (), 32))


def refused(field: str, **more: Any) -> InvalidDeployment:
    with pytest.raises(InvalidDeployment) as error:
        model(deployment(**more))
    assert error.value.field == field
    assert error.value.remedy
    return error.value


def test_what_leaves_a_node_goes_over_the_network_and_only_that() -> None:
    node = {"hardware.node": "dgx-h100"}
    slow, fast = {"hardware.network": "ethernet-10"}, {"hardware.network": "infiniband-xdr"}
    assert step_s(**node, **SIXTEEN, **slow) > 2 * step_s(**node, **SIXTEEN, **fast)
    assert step_s(**node, **SIXTEEN, **fast) < step_s(**node, **SIXTEEN)  # Its own is infiniband-ndr.
    eight = {"layout.tensor_parallel": 8}
    assert step_s(**node, **eight, **slow) == step_s(**node, **eight)


def test_a_node_says_how_many_devices_its_link_joins() -> None:
    name = {"hardware.name": "tpu-v6e", **SIXTEEN}
    assert model(deployment(**name)).layout.nodes == 1
    assert model(deployment(**name, **{"hardware.node": "tpu-v6e-8"})).layout.nodes == 2
    assert step_s(**name, **{"hardware.node": "tpu-v6e-8"}) > step_s(**name)
    four = {"hardware.node": "tpu-v6e-8", "layout.devices_per_node": 4}
    assert model(deployment(**name, **four)).layout.nodes == 4
    refused("layout.devices_per_node", **name, **{"hardware.node": "tpu-v6e-8", "layout.devices_per_node": 9})


def test_the_link_inside_a_node_can_be_another() -> None:
    node = {"hardware.node": "dgx-h100", "layout.tensor_parallel": 8}
    assert step_s(**node, **{"hardware.link": "pcie-5-x16"}) > step_s(**node)
    assert step_s(**node, **{"hardware.link": "nvlink-4"}) == step_s(**node)
    assert "pcie-5-x16 between 8 devices" in run(**node, **{"hardware.link": "pcie-5-x16"}).config["links"]


def test_the_power_of_a_node_is_more_than_its_devices() -> None:
    eight = {"layout.tensor_parallel": 8}
    bare, whole = run(**eight, **{"hardware.name": "h100-sxm"}), run(**eight, **{"hardware.node": "dgx-h100"})
    assert bare.energy_j is not None
    assert whole.energy_j is not None
    assert bare.requests.finish_s.tolist() == whole.requests.finish_s.tolist()
    span = whole.end_s - whole.begin_s
    assert 2200.0 < (whole.energy_j - bare.energy_j) / span < 4600.0


def test_a_cluster_gives_node_and_network_and_bounds_what_fits(hardware: Path) -> None:
    found = model(deployment(**{"hardware.cluster": "rtx-4090-ethernet", **SIXTEEN}))
    assert (found.device.name, found.layout.nodes) == ("rtx-4090", 2)
    assert found.device.network == catalog.link("ethernet-25")
    assert not found.device.peer_to_peer
    three = {"hardware.cluster": "rtx-4090-ethernet", **SIXTEEN, "cluster.replicas": 3}
    assert "has 32" in refused("cluster.replicas", **three).why
    over = "  oversubscription: {value: 4.0, basis: assumed, source: me}\nsources:\n  me: {title: A guess}\n"
    (hardware / "clusters.yaml").write_text(
        f"thin:\n  title: T\n  node: dgx-h100\n  nodes: 4\n  fabric: infiniband-ndr\n{over}"
    )
    thin, wide = ({"hardware.cluster": name, **SIXTEEN} for name in ("thin", "dgx-h100-superpod"))
    assert step_s(**thin) > step_s(**wide)


def test_swaps_are_as_fast_as_the_tier_that_holds_them() -> None:
    seconds = {}
    for tier in (None, "ddr5-8ch", "nvme-gen4", "sata-ssd"):
        result = run(**PRESSED, **({} if tier is None else {"memory.host_tier": tier}))
        assert result.requests.preemptions.sum() > 0
        seconds[tier] = sum(result.busy_s)
    assert seconds[None] == seconds["ddr5-8ch"]  # The link to it is slower than the memory.
    assert seconds[None] < seconds["nvme-gen4"] < seconds["sata-ssd"]


def test_what_cannot_be_is_refused_with_the_remedy() -> None:
    assert "dgx-h100" in refused("hardware.node", **{"hardware.node": "dgx-h10"}).remedy
    assert "nvlink-4" in refused("hardware.link", **{"hardware.link": "nvlnk-4"}).remedy
    assert "ethernet-10" in refused("hardware.network", **{"hardware.network": "ethernet"}).remedy
    assert "superpod" in refused("hardware.cluster", **{"hardware.cluster": "superpod"}).remedy
    assert "nvme-gen4" in refused("memory.host_tier", **PRESSED, **{"memory.host_tier": "nvme"}).remedy
    wrong = refused("hardware.name", **{"hardware.name": "a100-sxm-80", "hardware.node": "dgx-h100"})
    assert "h100-sxm" in wrong.remedy
    refused("hardware.node", **{"hardware.cluster": "l40s-roce", "hardware.node": "dgx-h100"})
    beyond = {**PRESSED, "memory.host_bytes": "300GiB", "hardware.node": "dgx-h100", "cluster.replicas": 8}
    assert "8 replicas" in refused("memory.host_bytes", **beyond).why
    with pytest.raises(InvalidDeployment, match="nothing reads it"):
        deployment(**{"memory.host_tier": "nvme-gen4"})
    with pytest.raises(InvalidDeployment, match="swaps to the memory it runs in"):
        require_servable(
            Deployment.load(
                None, {"policy.evict": "swap", "memory.host_bytes": "1GiB", "memory.host_tier": "nvme-gen4"}
            )
        )


class Tables:
    """A price that rests on measurements: it knows one link, whatever is named."""

    name, uses_spread = "tables", True

    def price(self, operator: Operator) -> Estimate:
        return Estimate(1e-3, self.name, "measured")


def test_measurements_over_another_link_are_not_used_for_the_one_that_was_named() -> None:
    links = Roofline(catalog.device("h100-sxm"))
    near, far = Collective("all_reduce", 1e6, 8, 1), Collective("all_reduce", 1e6, 16, 2)
    product, swap = Gemm("o", 1, 64, 64, "bfloat16"), Elementwise("swap", 1e9, 1e9)
    inside = Rewired(Tables(), links, inside=True)
    assert [inside.price(each).model for each in (near, far, product)] == ["roofline", "roofline", "tables"]
    between = Rewired(Tables(), links, between=True, tier=catalog.tier("nvme-gen4"), sharers=8)
    assert [between.price(each).model for each in (near, far, product)] == ["tables", "roofline", "tables"]
    assert between.price(swap).seconds == pytest.approx(80e-6 + 8e9 * (1 / 6.8e9 + 1 / 4e9) / 2)
    assert between.uses_spread


def test_whose_cached_prefixes_give_way_is_the_same_rule_in_a_simulation() -> None:
    tenants = {"model.path": "llama-3.2-1b", "hardware.name": "h100-sxm", "memory.kv_bytes": "150MB",
               "workload.requests": 300, "workload.rate": 200, "workload.prompt_tokens": "600",
               "workload.output_tokens": "8", "workload.shared_prefix.tokens": 512,
               "workload.shared_prefix.groups": 8}  # fmt: skip

    def found(**more: Any) -> int:
        return int(run(**tenants, **more).requests.cached_tokens.sum())

    alone = {rule: found(**{"memory.evict_idle": rule}) for rule in ("fair", "lru")}
    assert alone["fair"] == alone["lru"] > 0
    six = {rule: found(**{"memory.evict_idle": rule, "workload.tenants": 6}) for rule in ("fair", "lru")}
    assert 0 < six["fair"] != six["lru"]
    assert found(**{"workload.tenants": 6}) == six["fair"]
