"""From a deployment to what a simulation runs: shape, device, layout, price, memory. Nothing is loaded but data.

Everything that cannot work is refused here, with the numbers, before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from penstock.catalog import model_shape, models_in_the_box
from penstock.catalog.demand import kv_bytes_per_token
from penstock.catalog.device import Device, Figure
from penstock.catalog.hardware_load import device as catalog_device
from penstock.catalog.hardware_load import devices
from penstock.catalog.shape import ModelShape
from penstock.control.cluster.router import build_router
from penstock.control.replica import Replica
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.runtime.build import replica_for
from penstock.runtime.driven import Driven
from penstock.runtime.instance import Instance, Observer
from penstock.runtime.lockstep import Lockstep, Unpriced
from penstock.runtime.prices import operator_price
from penstock.runtime.wiring import Wiring
from penstock.twin.energy import PowerModel
from penstock.twin.host import HostTime
from penstock.twin.layout import Layout, Precision
from penstock.twin.memory import (
    Fit,
    Reserve,
    check_layout,
    fit,
    kv_bytes_per_token_per_device,
    weight_bytes_per_device,
)
from penstock.twin.step_graph import StepGraph
from penstock.twin.step_price import CUDA_GRAPH_SIZES, StepPrice
from penstock.twin.twin import Twin
from penstock.units import format_bytes

THIS_MACHINE: Final = "this-machine"
"""Name that `penstock calibrate` gives unless told otherwise."""
UNCALIBRATED: Final = "cpu"


@dataclass(frozen=True, slots=True)
class Modelled:
    """One replica of a deployment as the twin sees it, and how to make more of them. Where attention is data-parallel,
    blocks are those of one rank."""

    deployment: Deployment
    shape: ModelShape
    device: Device
    """With the links and the share of a node's power that the deployment names."""
    wiring: Wiring
    layout: Layout
    precision: Precision
    price: StepPrice
    room: Fit | None
    """How the device's memory is shared out; None where the file states memory.kv_bytes."""
    blocks: int
    host_blocks: int
    max_sequence_tokens: int
    notes: tuple[str, ...]

    def driven(self, number: int, observer: Observer, *, coast: bool = True) -> Driven:
        """Replica `number` of a cluster, ready to run; its ranks report to lanes of that number times their count."""
        ahead, layout = self.deployment.policy.plan_ahead, self.layout
        ranks = layout.attention_dp
        if ranks == 1:
            return Instance(number, self.replica(), self.twin(), observer, plan_ahead=ahead, coast=coast)
        squares, first = self.price.uses_spread, number * ranks
        return Lockstep(
            number,
            [Instance(lane, self.replica(), Twin(Unpriced(), squares=squares), observer, plan_ahead=ahead)
             for lane in range(first, first + ranks)],
            self.price, build_router(self.deployment.layout.attention_dp_router), plan_ahead=ahead, coast=coast,
        )  # fmt: skip

    def replica(self) -> Replica:
        """A fresh brain, built as serving builds it."""
        return replica_for(
            self.deployment, blocks=self.blocks, max_sequence_tokens=self.max_sequence_tokens,
            host_blocks=self.host_blocks,
        )  # fmt: skip

    def twin(self) -> Twin:
        """A fresh executor. All of them share one price and what it remembers."""
        return Twin(self.price, squares=self.price.uses_spread)


def model(deployment: Deployment) -> Modelled:
    """Raises InvalidDeployment: unknown model or hardware, or a deployment that does not fit, with the remedy."""
    shape = model_shape(deployment.model.path)
    wiring = Wiring.of(deployment)
    device, wiring = wiring.onto(_device(deployment, wiring))
    layout = _layout(deployment, shape, wiring.devices_per_node(deployment, device))
    wiring.check(deployment, layout)
    precision = _precision(deployment, shape)
    blocks, host_blocks, room = _blocks(deployment, shape, device, layout, precision)
    longest = blocks * deployment.memory.block_tokens
    wanted = deployment.model.max_sequence_tokens
    context = min(wanted or shape.max_context or longest, longest)
    price, notes = operator_price(deployment, device, shape)
    price = wiring.price(price, device, layout)
    graph = StepGraph(shape, layout, precision)
    block_bytes = kv_bytes_per_token_per_device(shape, layout, precision) * deployment.memory.block_tokens
    step_price = StepPrice(
        graph, price, _host(deployment, device), swap_block_bytes=block_bytes,
        graph_sizes=CUDA_GRAPH_SIZES if deployment.twin.cuda_graphs and device.kind == "gpu" else (),
        power=PowerModel.of(device, dtype=precision.weights) if device.idle_watts and device.peak_watts else None,
    )  # fmt: skip
    return Modelled(
        deployment, shape, device, wiring, layout, precision, step_price, room, blocks, host_blocks, context,
        tuple(notes),
    )  # fmt: skip


def _device(deployment: Deployment, wiring: Wiring) -> Device:
    name = deployment.hardware.name
    if name is None and wiring.node is not None:
        name = wiring.node.device
    if name is None:
        name = THIS_MACHINE if THIS_MACHINE in devices() else UNCALIBRATED
    found = catalog_device(name)
    twin = deployment.twin
    given = {
        key: Figure(value, "assumed", "deployment", note="set in the deployment file")
        for key, value in (
            ("idle_watts", twin.idle_watts), ("peak_watts", twin.peak_watts), ("price_per_hour", twin.price_per_hour)
        )
        if value is not None
    }  # fmt: skip
    return replace(found, **given) if given else found  # type: ignore[arg-type]


def _layout(deployment: Deployment, shape: ModelShape, devices_per_node: int) -> Layout:
    asked = deployment.layout
    ranks = asked.tensor_parallel * asked.attention_dp
    if ranks % asked.expert_parallel:
        raise InvalidDeployment(
            field="layout.expert_parallel", value=asked.expert_parallel,
            why=f"a stage has {ranks} devices (tensor_parallel x attention_dp)", remedy=f"a divisor of {ranks}",
        )  # fmt: skip
    sparse = any(group.feed_forward.experts for group in shape.groups)
    moe = asked.moe_tensor_parallel or (ranks // asked.expert_parallel if sparse else 1)
    if sparse and moe * asked.expert_parallel != ranks:
        raise InvalidDeployment(
            field="layout.moe_tensor_parallel", value=moe,
            why=f"with expert_parallel {asked.expert_parallel} it must use all {ranks} devices of a stage",
            remedy=f"{ranks // asked.expert_parallel}, or leave it out",
        )  # fmt: skip
    return Layout(
        tensor_parallel=asked.tensor_parallel, pipeline_parallel=asked.pipeline_parallel,
        attention_dp=asked.attention_dp, moe_tensor_parallel=moe, expert_parallel=asked.expert_parallel,
        sequence_parallel=asked.sequence_parallel, devices_per_node=devices_per_node,
    )  # fmt: skip


def _precision(deployment: Deployment, shape: ModelShape) -> Precision:
    """Types as the file says; else as a server computes (a checkpoint that can be served) or as published."""
    asked, model = deployment.precision, deployment.model
    served = model.dtype is not None or model.path in models_in_the_box() or Path(model.path).is_dir()
    weights = asked.weights or (model.weights_dtype if served else shape.dtype)
    own = model.compute_dtype if served and not asked.weights else "float32" if weights == "float32" else "bfloat16"
    activations = asked.activations or own
    experts = asked.experts or (weights if served or asked.weights else shape.experts_dtype or weights)
    return Precision(
        weights=weights, experts=experts, activations=activations, kv=asked.kv or activations,
        head=asked.head or (weights if served and not asked.weights else activations),
    )  # fmt: skip


def _blocks(
    deployment: Deployment, shape: ModelShape, device: Device, layout: Layout, precision: Precision
) -> tuple[int, int, Fit | None]:
    """KV blocks and host blocks of one scheduler: of a replica, or of one rank of its attention groups; and the account
    if there is one."""
    memory, policy, ranks = deployment.memory, deployment.policy, layout.attention_dp
    check_layout(shape, layout)
    block_bytes = kv_bytes_per_token(shape, precision.kv) * memory.block_tokens
    host_blocks = int(memory.host_bytes / ranks // block_bytes) if block_bytes else 0
    if memory.kv_bytes is not None or device.kind == "cpu":
        blocks = int(memory.pool_bytes / ranks // block_bytes)
        if blocks < 1:
            raise InvalidDeployment(
                field="memory.kv_bytes", value=memory.pool_bytes,
                why=f"not one KV block fits: {memory.block_tokens} tokens need {block_bytes:,.0f} bytes"
                + (f" in each of {ranks} ranks" if ranks > 1 else ""),
                remedy=f"{ranks * block_bytes * 64:,.0f} bytes hold {ranks * 64 * memory.block_tokens} tokens",
            )  # fmt: skip
        weights = weight_bytes_per_device(shape, layout, precision)
        needed = weights + memory.pool_bytes / layout.devices
        if needed > device.memory_bytes.value:
            raise InvalidDeployment(
                field="memory.kv_bytes", value=memory.pool_bytes,
                why=f"each device holds {format_bytes(weights)} of weights and {format_bytes(needed - weights)} of KV, "
                f"and has {format_bytes(device.memory_bytes.value)}",
                remedy="fewer bytes, more devices (layout.tensor_parallel), or a narrower precision.weights",
            )  # fmt: skip
        return blocks, host_blocks, None
    reserve = Reserve(fraction=memory.device_share, step_tokens=policy.token_budget, sampled=policy.max_seqs)
    context = deployment.model.max_sequence_tokens
    room = fit(
        shape, layout, precision, device.memory_bytes.value, context=context, block_tokens=memory.block_tokens,
        reserve=reserve,
    )  # fmt: skip
    return room.blocks, host_blocks, room


def _host(deployment: Deployment, device: Device) -> HostTime:
    asked = deployment.twin
    overlapped = deployment.policy.plan_ahead if asked.overlap_host is None else asked.overlap_host
    # On a CPU the host is the device: nothing can be done beside it unless the file says so.
    host = HostTime.of(device, overlapped=overlapped and (device.kind != "cpu" or asked.overlap_host is True))
    step, request, token = asked.host_step, asked.host_request, asked.host_token
    if step is None and request is None and token is None:
        return host
    return replace(
        host, step_s=host.step_s if step is None else step, request_s=host.request_s if request is None else request,
        first_requests=host.first_requests if request is None else 0,
        token_s=host.token_s if token is None else token, basis="assumed",
    )  # fmt: skip
