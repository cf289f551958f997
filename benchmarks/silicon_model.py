"""One measured point, simulated: prices of its GPU and engine, its scheduler, its closed loop."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from silicon_loop import ClosedLoop, Costs, Rules
from silicon_pools import Pools
from silicon_rows import Point, Pool, rules, shape_of

from penstock.catalog.demand import kv_bytes_per_token
from penstock.errors import InvalidDeployment
from penstock.twin.host import HostTime
from penstock.twin.layout import Layout, Precision
from penstock.twin.measured import Database, Measured
from penstock.twin.measured.database import installed_folder
from penstock.twin.memory import Reserve, fit
from penstock.twin.operators import Collective, Elementwise, Operator
from penstock.twin.price import Estimate
from penstock.twin.step_graph import StepGraph
from penstock.twin.step_price import CUDA_GRAPH_SIZES, StepPrice

WIDE_GRAPHS = (*CUDA_GRAPH_SIZES, *range(544, 2049, 32))


class Limits:
    """What no table holds: bytes over bandwidth and the shortest kernel, from the system's own description.

    Source: systems/*.yaml of aiconfigurator-core: mem_bw, mem_bw_empirical_scaling_factor, flops, link bandwidths.
    """

    name = "limits"

    def __init__(self, system: str, kernel_s: float = 2.0e-6) -> None:
        spec = system_spec(system)
        gpu, node = spec["gpu"], spec["node"]
        self._bytes = gpu["mem_bw"] * gpu["mem_bw_empirical_scaling_factor"]
        self._flop = gpu["bfloat16_tc_flops"]
        self._link, self._network = node["intra_node_bw"], node["inter_node_bw"]
        self._latency, self._kernel = node["p2p_latency"], kernel_s

    def price(self, operator: Operator) -> Estimate:
        work = operator.work()
        if isinstance(operator, Collective):
            slow = self._network if operator.nodes > 1 else self._link
            return Estimate(self._latency + work.link_bytes / slow, self.name, "assumed")
        seconds = max(work.flop / self._flop, work.bytes / self._bytes) + self._kernel
        if operator.kind == "attention_linear" and work.flop > 2.0 * work.read_bytes:
            # Chunked delta rule over a prompt: 33 ns a token and 1.5 ns a head more on B200 (gdn_perf under SGLang, one
            # prompt of 8192 tokens), slower elsewhere as matrix products are. A head's state is 128 x 128.
            rows = operator.rows if isinstance(operator, Elementwise) else 0
            heads = work.flop / (4.0 * rows * 128 * 128) if rows else 0.0
            seconds += rows * (33e-9 + 1.5e-9 * heads) * 2.25e15 / self._flop
        return Estimate(seconds, self.name, "assumed")


@cache
def system_spec(system: str) -> dict[str, Any]:
    """The package's description of one system."""
    spec: dict[str, Any] = yaml.safe_load((installed_folder().parent / f"{system}.yaml").read_text())
    return spec


@cache
def operator_price(system: str, backend: str) -> Measured:
    """Kept, since many rows share it."""
    return Measured(Database(system, backend), Limits(system))


@cache
def step_price(model: str, layout: Layout, precision: Precision, system: str, backend: str) -> StepPrice:
    """Kept too. Only vLLM runs steps with prompts as captured graphs, where ranks pad to the largest of them."""
    graph = StepGraph(shape_of(model), layout, precision)
    return StepPrice(graph, operator_price(system, backend), HostTime(), graph_sizes=WIDE_GRAPHS)


@cache
def kv_tokens(
    model: str, layout: Layout, precision: Precision, system: str, step_tokens: int, fraction: float
) -> float:
    """KV capacity by the engine's formula. Raises InvalidDeployment where the weights do not fit."""
    memory = system_spec(system)["gpu"]["mem_capacity"]
    room = fit(shape_of(model), layout, precision, memory, reserve=Reserve(step_tokens=step_tokens, fraction=fraction))
    return float(room.kv_tokens)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds, mean over requests, bursts included: what the rows turn out to hold."""

    ttft: float
    tpot: float
    steps: int
    median_ttft: float = 0.0


def lengths_of(point: Point, per_client: int, seed: int = 0) -> list[tuple[int, int]]:
    """Prompt and output tokens of the run's requests."""
    rng = random.Random(f"{seed}|{point.id}")
    count = max(24, per_client * point.concurrency)
    # The non-public runs give one length. SGLang, which computes all waiting prompts before any decode, then keeps all
    # requests in step, and its TTFT in the campaign over powers of two shows it. Under engines that mix prompts with
    # decodes few clients stay in step and many come apart (TTFT ratios of the training half of TensorRT-LLM with one
    # length: 1.0 at 8 clients, 2.5 at 32; with lengths that vary as in public runs: 0.5 and 1.0).
    if not point.public and point.backend == "sglang" and not point.prompt % 128:
        return [(point.prompt, point.output)] * count
    vary = 0.2 if point.public else 0.2 * min(1.0, (point.concurrency / 32) ** 2)
    shortest = int(0.8 * point.prompt) if point.public else point.prompt
    return [
        (rng.randint(shortest, point.prompt), rng.randint(int((1 - vary) * point.output), point.output))
        for _ in range(count)
    ]


def decode_places(point: Point, decode: Pool) -> int:
    """Sequences that all decode workers may hold. TensorRT-LLM's recipes for public runs are made for batches of
    powers of two (they are in their names: gen4tep8_batch16), and the heaviest load of each is a little more than these
    hold: in the training half, TTFT leaps to seconds where concurrency is 1.0 to 1.4 times a power of two a worker."""
    groups = decode.workers * decode.layout.attention_dp
    each = point.concurrency / groups
    batch = 1 << max(0, int(each).bit_length() - 1)
    return groups * batch if point.backend == "trtllm" and each <= 1.4 * batch else 1 << 30


def simulate(point: Point, costs: Costs, per_client: int = 10, how: Rules | None = None) -> Outcome:
    """One row. Raises InvalidDeployment where it cannot be."""
    how = how or rules(point)
    if point.decode is not None:
        return _simulate_pools(point, point.decode, costs, per_client, how)
    price = step_price(point.model, point.pool.layout, point.precision, point.system, point.backend)
    capacity = kv_tokens(
        point.model, point.pool.layout, point.precision, point.system, min(how.budget, 16384), how.memory
    )
    loop = ClosedLoop(price, how, costs, capacity, point.concurrency, lengths_of(point, per_client))
    return _outcome(loop)


def _simulate_pools(point: Point, decode: Pool, costs: Costs, per_client: int, how: Rules) -> Outcome:
    prefill = step_price(point.model, point.pool.layout, point.precision, point.system, point.backend)
    decoding = step_price(point.model, decode.layout, point.precision, point.system, point.backend)
    # Weights must fit either kind of worker; decode workers of these runs are sized to hold all their sequences.
    for layout in (point.pool.layout, decode.layout):
        kv_tokens(point.model, layout, point.precision, point.system, 8192, 0.95)
    bytes_per_token = kv_bytes_per_token(shape_of(point.model), point.precision.kv)
    transfer_s = bytes_per_token / point.pool.layout.devices / system_spec(point.system)["node"]["inter_node_bw"]
    loop = Pools(
        prefill, how, point.pool.workers, decoding, decode.workers, costs, point.concurrency,
        lengths_of(point, per_client), transfer_s, decode_places(point, decode),
    )  # fmt: skip
    return _outcome(loop)


def _outcome(loop: ClosedLoop) -> Outcome:
    timings = loop.run()
    return Outcome(
        statistics.fmean(timing.ttft for timing in timings), statistics.fmean(timing.tpot for timing in timings),
        loop.steps, statistics.median(timing.ttft for timing in timings),
    )  # fmt: skip


__all__ = ["InvalidDeployment", "Outcome", "simulate", "step_price"]
