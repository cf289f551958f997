"""A deployment, simulated: the same control plane at virtual time over modelled hardware.

    result = simulate(Deployment.load(Path("deployment.yaml")))

Same file, same seed, same bits, in whichever process it runs.
"""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.control.cluster.router import build_router
from penstock.deployment import Deployment
from penstock.report.latency import Limits as SloLimits
from penstock.report.simulation import ReplicaSeries, RequestColumns, SimulationResult
from penstock.runtime.collect import Collector, OnStep, Sample
from penstock.runtime.modelled import Modelled, model
from penstock.runtime.token_times import TokenTimes
from penstock.runtime.virtual import Cluster, Limits, Stop
from penstock.runtime.wiring import words as link_words
from penstock.runtime.workload_of import source_of, stated_bound
from penstock.twin.step_price import StepPrice
from penstock.units import format_bytes

EXPLAINED: Final = 400
"""Sampled steps that are taken apart operator by operator; each stands for the busy time around it."""
_CLOSED: Final = ("closed", "sessions")


def simulate(
    deployment: Deployment, *, limits: Limits | None = None, on_progress: Callable[[int, float], None] | None = None,
    on_step: OnStep | None = None, modelled: Modelled | None = None, coast: bool = True, token_times: bool = False,
) -> SimulationResult:  # fmt: skip
    """Run the deployment's workload to its end.

    Args:
        limits: budgets; a run that meets one is marked so in the result, as is one that Ctrl-C ended.
        on_progress: told (requests ended, virtual seconds) now and then.
        on_step: told of each step, for a timeline.
        modelled: what `model(deployment)` gave, if the caller has it: prices stay remembered between runs.
        coast: go through stretches of plain decodes at once; the result is the same without.
        token_times: keep when each token came, 8 bytes a token.

    Raises:
        InvalidDeployment: it cannot work: unknown names, or it does not fit; with the remedy.
        BadInput: the workload cannot be made or read.
        Stuck: requests are left that no replica will ever run.
    """
    modelled = model(deployment) if modelled is None else modelled
    source = source_of(deployment)
    count, ranks = deployment.cluster.replicas, modelled.layout.attention_dp
    tokens = TokenTimes(count * ranks) if token_times else None
    collector = Collector(count * ranks, _told(on_step, tokens))
    cluster = Cluster(
        build_router(deployment.cluster.router), source, collector, max_tokens=stated_bound(deployment),
        max_sequence_tokens=modelled.max_sequence_tokens, limits=limits, on_progress=on_progress,
        on_first=None if tokens is None else tokens.first_token,
    )  # fmt: skip
    for number in range(count):
        cluster.instances.append(modelled.driven(number, cluster, coast=coast))
    started = time.monotonic()
    stop = cluster.run()
    return _result(deployment, modelled, cluster, collector, tokens, stop, source.notes, time.monotonic() - started)


def _told(on_step: OnStep | None, tokens: TokenTimes | None) -> OnStep | None:
    """Who wants to know of each step."""
    if tokens is None or on_step is None:
        return on_step if tokens is None else tokens.stepped

    def both(lane: int, started: float, ended: float, decoding: int, chunks: int, prefill: int) -> None:
        tokens.stepped(lane, started, ended, decoding, chunks, prefill)
        on_step(lane, started, ended, decoding, chunks, prefill)

    return both


def _result(
    deployment: Deployment, modelled: Modelled, cluster: Cluster, collector: Collector, tokens: TokenTimes | None,
    stop: Stop, notes: Sequence[str], wall_s: float,
) -> SimulationResult:  # fmt: skip
    cluster.settle()
    for instance in cluster.lanes():
        if not instance.outstanding:
            collector.finish(instance.number)
    parts, ranks = _Parts(), modelled.layout.attention_dp
    power = modelled.device.idle_watts is not None and modelled.device.peak_watts is not None
    watts = [_explain(modelled.price, lane.samples, lane.busy_s, ranks, parts) for lane in collector.lanes]
    span = collector.last_s - float(np.nanmin(collector.arrival_s)) if len(collector.arrival_s) else 0.0
    devices = modelled.layout.devices * deployment.cluster.replicas
    price = modelled.device.price_per_hour
    energy, idle_watts = None, 0.0
    if power and modelled.device.idle_watts is not None:
        idle_watts = modelled.layout.devices / ranks * modelled.device.idle_watts.value
        energy = parts.joules + sum(max(0.0, span - lane.busy_s) for lane in collector.lanes) * idle_watts
    slo = deployment.slo
    told = [*notes, *modelled.notes, *(f"{number} x refused: {why}" for why, number in collector.reasons.items())]
    return SimulationResult(
        title=f"{modelled.shape.name} on {deployment.cluster.replicas * modelled.layout.devices} x "
        f"{modelled.device.name}",
        requests=_columns(collector, tokens),
        series=tuple(
            _series(number, lane.samples, watts[number], lane.idle, idle_watts)
            for number, lane in enumerate(collector.lanes)
        ),
        steps=sum(collector.steps), busy_s=tuple(lane.busy_s for lane in collector.lanes),
        ranks=ranks, operator_s=dict(parts.by_kind), basis_s=dict(parts.by_basis),
        open_loop=deployment.workload.law not in _CLOSED,
        interrupted="" if stop == "done" else _STOPS[stop], notes=tuple(told),
        config=describe(deployment, modelled, parts),
        limits=SloLimits(ttft_s=slo.ttft, tpot_s=slo.tpot, e2e_s=slo.e2e),
        price_per_hour=None if price is None else price.value * devices, energy_j=energy, wall_s=wall_s,
    )  # fmt: skip


_STOPS: Final[dict[Stop, str]] = {
    "events": "the limit of events was met",
    "wall time": "the limit of wall time was met",
    "virtual time": "the limit of virtual time was met",
    "interrupted": "interrupted",
}


@dataclass(slots=True)
class _Parts:
    """Where time and energy went, over all replicas."""

    by_kind: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_basis: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_model: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    joules: float = 0.0


def _explain(price: StepPrice, samples: Sequence[Sample], busy_s: float, ranks: int, parts: _Parts) -> list[float]:
    """Take an even choice of the sampled steps apart; add their shares, scaled to the replica's busy time, to `parts`;
    of one rank of several, its part of the replica's. Returns the watts of each sample's step, taken from the nearest
    explained one."""
    if not samples:
        return []
    stride = -(-len(samples) // EXPLAINED)
    chosen = samples[::stride]
    # Each stands for the busy time since the one before; the last one for what came after it too.
    ends = [*(sample.busy_s for sample in chosen[:-1]), busy_s]
    before = 0.0
    watts = []
    for sample, end in zip(chosen, ends, strict=True):
        each, before = end - before, end
        estimate = price.explain_lockstep(sample.together) if sample.together else price.explain(sample.load)
        if estimate.seconds > 0:
            scale = each / estimate.seconds / ranks
            for whole, part in (
                (parts.by_kind, estimate.by_kind), (parts.by_basis, estimate.by_basis),
                (parts.by_model, estimate.by_model),
            ):  # fmt: skip
                for name, seconds in part.items():
                    whole[name] += seconds * scale
            parts.joules += estimate.joules * scale
            watts.append(estimate.joules / estimate.seconds / ranks)
        else:
            watts.append(0.0)
    return [watts[number // stride] for number in range(len(samples))]


def _columns(collector: Collector, tokens: TokenTimes | None) -> RequestColumns:
    def floats(values: array[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.frombuffer(values, dtype=np.float64) if len(values) else np.empty(0)

    arrival = floats(collector.arrival_s)
    there = ~np.isnan(arrival)
    replica, output = np.array(collector.replica)[there], np.array(collector.output_tokens)[there]
    token_s = token_start = None
    if tokens is not None:
        token_s, token_start = tokens.columns(np.flatnonzero(there).tolist(), replica.tolist(), output.tolist())
    return RequestColumns(
        arrival_s=arrival[there], first_token_s=floats(collector.first_s)[there],
        finish_s=floats(collector.finish_s)[there], prompt_tokens=np.array(collector.prompt_tokens)[there],
        output_tokens=output, cached_tokens=np.array(collector.cached_tokens)[there],
        preemptions=np.array(collector.preemptions)[there], replica=replica,
        outcome=np.array(collector.outcome)[there], token_s=token_s, token_start=token_start,
    )  # fmt: skip


def _series(
    number: int, samples: Sequence[Sample], watts: Sequence[float], idle: Sequence[tuple[float, float]],
    idle_watts: float,
) -> ReplicaSeries:  # fmt: skip
    """Samples, and between them the two ends of each rest, where all is zero but the power."""
    rests = [moment for gap in idle for moment in gap]
    times = np.array([*(sample.t for sample in samples), *rests], dtype=np.float64)
    order = np.argsort(times, kind="stable")  # A rest begins after the sample of its moment.

    def whole(values: Iterable[int]) -> NDArray[np.int64]:
        return np.array([*values, *[0] * len(rests)], dtype=np.int64)[order]

    def real(values: Iterable[float], rest: float = 0.0) -> NDArray[np.float64]:
        return np.array([*values, *[rest] * len(rests)], dtype=np.float64)[order]

    return ReplicaSeries(
        replica=number, t_s=times[order], waiting=whole(sample.waiting for sample in samples),
        running=whole(sample.running for sample in samples), decoding=whole(sample.load.decoding for sample in samples),
        prefill_tokens=whole(sample.load.tokens - sample.load.decoding for sample in samples),
        kv_used=real(sample.kv_used for sample in samples),
        power_w=real(watts, idle_watts), step_s=real(sample.step_s for sample in samples),
    )  # fmt: skip


def describe(deployment: Deployment, modelled: Modelled, parts: _Parts | None = None) -> dict[str, str]:
    """The deployment in words."""
    layout, precision, memory = modelled.layout, modelled.precision, deployment.memory
    cut = [f"{name} {value}" for name, value in (
        ("tensor", layout.tensor_parallel), ("pipeline", layout.pipeline_parallel),
        ("attention data", layout.attention_dp), ("expert", layout.expert_parallel),
    ) if value > 1]  # fmt: skip
    room = modelled.room
    words = {
        "model": f"{modelled.shape.name}, {precision.weights} weights, {precision.kv} KV",
        "hardware": f"{deployment.cluster.replicas} x {layout.devices} x {modelled.device.title}",
        "layout": (", ".join(cut) + " parallel" if cut else "one device a replica")
        + (f"; ranks in lockstep, each with a scheduler, {deployment.layout.attention_dp_router} among them"
           if layout.attention_dp > 1 else ""),
        **({"links": link_words(modelled.device, layout, modelled.wiring)} if layout.devices > 1 else {}),
        "policy": f"{deployment.policy.compose or deployment.policy.name}, order {deployment.policy.order}, evict "
        f"{deployment.policy.evict}, budget {deployment.policy.token_budget}, at most {deployment.policy.max_seqs} "
        f"sequences, {'one step' if deployment.policy.plan_ahead else 'nothing'} planned ahead",
        "memory": f"{memory.kind}, {modelled.blocks} blocks of {memory.block_tokens} tokens"
        + (f" in each of {layout.attention_dp} ranks" if layout.attention_dp > 1 else "")
        + ("" if room is None else f" ({format_bytes(room.kv_bytes)} of {format_bytes(room.total_bytes)} a device)"),
        "router": deployment.cluster.router if deployment.cluster.replicas > 1 else "one replica",
        "host": f"{modelled.price.host.words()} ({modelled.price.host.basis}"
        f"{', overlapped' if modelled.price.host.overlapped else ''})",
        "price": modelled.price.price.name,
    }  # fmt: skip
    if parts is not None and parts.by_model:
        total = sum(parts.by_model.values())
        shares = sorted(parts.by_model.items(), key=lambda item: -item[1])
        words["price"] += " (" + ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares) + " of time)"
    return words
