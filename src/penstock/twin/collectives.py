"""Seconds of collectives in the alpha-beta model: steps x latency + bytes over the busiest port / bandwidth.

    n ranks, M message bytes (twin.operators.Collective says of what), L latency of one hop, B bytes/s of a port,
    base what any collective takes

    all-reduce   ring            2(n-1) L        + 2 (n-1)/n M/B   Patarasuk and Yuan, JPDC 2009
                 double tree     2 ceil(log2 n) L + 2 M/B          Sanders, Speck and Traeff, Parallel Computing 2009
                 one-shot        L               + (n-1) M/B       each rank reads all peers' whole message
                 two-shot        2 L             + 2 (n-1)/n M/B   direct reduce-scatter, then direct all-gather
    all-gather, reduce-scatter   ring (n-1) L, or direct L, each + (n-1)/n M/B
    all-to-all   pairwise (n-1) L, or direct L, each + (n-1)/n M/B
    send         L + M/B

The ring forms and `base` are those of GenZ (arXiv 2406.01698, collective_times.py). Over several nodes a collective is
hierarchical: inside the nodes, between the ranks that hold the same share, inside again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Final, Literal

from penstock.catalog.device import Device, Link, Topology
from penstock.twin.operators import Collective, CollectiveKind

Algorithm = Literal["none", "ring", "double_tree", "one_shot", "two_shot", "direct", "pairwise", "send", "hierarchical"]

DIRECT_RANKS: Final = 8
DIRECT_BYTES: Final = 8 * 2**20
"""Up to these, engines take kernels that read their peers' memory (vLLM's custom all-reduce: 8 ranks, 8 MiB)."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A port as the formulas see it."""

    bytes_per_s: float
    latency_s: float
    base_s: float = 0.0
    direct: bool = True
    """Every rank reaches every other at the port's rate, all at once."""
    trees: bool = False
    """Between nodes. Inside one, NCCL's trees are chains, which a ring beats."""


@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """Seconds, and the algorithm that takes them."""

    seconds: float
    algorithm: Algorithm


def ring_all_reduce(size: float, ranks: int, wire: Wire) -> float:
    """
    >>> wire = Wire(bytes_per_s=450 * 2**30, latency_s=1e-6, base_s=5e-6)
    >>> round(ring_all_reduce(8 * 2**20, 8, wire) * 1e6, 2)    # GenZ's golden value, us
    49.38
    """
    return _time(2 * (ranks - 1), 2 * (ranks - 1) / ranks, size, ranks, wire)


def double_tree_all_reduce(size: float, ranks: int, wire: Wire) -> float:
    """Reduce up and broadcast down two trees at once, each with half of the message; chunks fill the pipe."""
    return _time(2 * ceil(log2(max(2, ranks))), 2.0, size, ranks, wire)


def one_shot_all_reduce(size: float, ranks: int, wire: Wire) -> float:
    """One step, (n - 1) messages through each port: for small messages."""
    return _time(1, ranks - 1.0, size, ranks, wire)


def two_shot_all_reduce(size: float, ranks: int, wire: Wire) -> float:
    """Two steps, the bytes of a ring."""
    return _time(2, 2 * (ranks - 1) / ranks, size, ranks, wire)


def ring_gather(size: float, ranks: int, wire: Wire) -> float:
    """All-gather to `size` bytes, or reduce-scatter of them, in n - 1 steps; also all-to-all by pairwise exchange."""
    return _time(ranks - 1, (ranks - 1) / ranks, size, ranks, wire)


def direct_gather(size: float, ranks: int, wire: Wire) -> float:
    """The same with all peers at once."""
    return _time(1, (ranks - 1) / ranks, size, ranks, wire)


def point_to_point(size: float, wire: Wire) -> float:
    """One message to one peer; no base, as GenZ counts pipeline sends."""
    return wire.latency_s + size / wire.bytes_per_s if size > 0 else 0.0


def best(kind: CollectiveKind, size: float, ranks: int, wire: Wire) -> CollectiveTime:
    """The fastest algorithm that `wire` allows, as NCCL's tuner or an engine's own kernel would pick.

    `size` in bytes. Zero for one rank and for no bytes. Never falls as bytes grow.
    """
    if ranks <= 1 or size <= 0:
        return CollectiveTime(0.0, "none")
    if kind == "send":
        return CollectiveTime(point_to_point(size, wire), "send")
    direct = wire.direct and ranks <= DIRECT_RANKS
    options: dict[Algorithm, float]
    if kind == "all_reduce":
        options = {"ring": ring_all_reduce(size, ranks, wire)}
        if wire.trees:
            options["double_tree"] = double_tree_all_reduce(size, ranks, wire)
        if direct and size <= DIRECT_BYTES:
            options["one_shot"] = one_shot_all_reduce(size, ranks, wire)
            options["two_shot"] = two_shot_all_reduce(size, ranks, wire)
    elif kind == "all_to_all":
        # NCCL posts all sends and receives of an all-to-all at once, whatever the number of ranks.
        options = {"pairwise": ring_gather(size, ranks, wire)}
        if wire.direct:
            options["direct"] = direct_gather(size, ranks, wire)
    else:
        options = {"ring": ring_gather(size, ranks, wire)}
        if direct and size <= DIRECT_BYTES:
            options["direct"] = direct_gather(size, ranks, wire)
    algorithm = min(options, key=options.__getitem__)
    return CollectiveTime(options[algorithm], algorithm)


def collective_time(operator: Collective, device: Device) -> CollectiveTime:
    """Seconds of `operator` between devices like `device`, by the links in its file.

    A device without a link that is needed (a bare card, several nodes without network) goes through host memory;
    without a host link either, through its own memory.
    """
    kind, size, ranks = operator.kind, operator.bytes, operator.ranks
    nodes = min(operator.nodes, ranks)
    if ranks <= 1 or size <= 0:
        return CollectiveTime(0.0, "none")
    outer = replace(wire_of(device.network or device.host_link, nodes, device), direct=False, trees=True)
    if nodes <= 1:
        return best(kind, size, ranks, wire_of(device.scale_up or device.host_link, _reached(kind, ranks), device))
    if kind == "send":
        return CollectiveTime(point_to_point(size, outer), "send")
    local = ceil(ranks / nodes)
    if local == 1:
        return best(kind, size, nodes, outer)
    inner = wire_of(device.scale_up or device.host_link, local, device)
    # What is launched once has one base.
    chained = replace(outer, base_s=0.0)
    share = size / local
    if kind == "all_reduce":
        seconds = best("reduce_scatter", size, local, inner).seconds + best(kind, share, nodes, chained).seconds
        seconds += best("all_gather", size, local, replace(inner, base_s=0.0)).seconds
    elif kind == "all_to_all":
        # Each rank keeps 1/n of its message, sends (local - 1)/n through the node and the rest over the network.
        near = size * local / ranks
        apart = direct_gather((size - near) * nodes / (nodes - 1), nodes, chained)
        seconds = inner.base_s + max(best(kind, near, local, replace(inner, base_s=0.0)).seconds, apart)
    else:
        seconds = best(kind, size, local, inner).seconds + best(kind, share, nodes, chained).seconds
    return CollectiveTime(seconds, "hierarchical")


def wire_of(link: Link | None, ranks: int, device: Device) -> Wire:
    """The port that `ranks` devices joined by `link` have for one collective between them.

    mesh: only the cables to those that take part carry anything. torus: part of a torus is open at its edges, so the
    device in a corner has two cables (one in a row of two or three). tree: more than two peers meet on the way.
    """
    if link is None:
        return Wire(device.memory_bytes_per_s.value / 2, 0.0, direct=False)
    rate = link.bytes_per_s.value
    if link.peer_bytes_per_s is not None:
        cables: dict[Topology, float] = {"mesh": ranks - 1, "torus": 2 if ranks >= 4 else 1}
        whole = link.topology == "torus" and ranks >= device.devices_per_node
        rate = rate if whole else min(rate, cables.get(link.topology, 1) * link.peer_bytes_per_s.value)
    share = link.efficiency.value if link.efficiency else 1.0
    direct = link.topology in ("switch", "mesh") or ranks == 2
    return Wire(
        rate * share, link.latency_s.value, link.base_s.value if link.base_s else 0.0,
        direct and device.peer_to_peer,
    )  # fmt: skip


def _reached(kind: CollectiveKind, ranks: int) -> int:
    return 2 if kind == "send" else ranks


def _time(steps: float, messages: float, size: float, ranks: int, wire: Wire) -> float:
    """`messages` x `size` bytes go through the port in `steps` dependent steps."""
    if ranks <= 1 or size <= 0:
        return 0.0
    return wire.base_s + steps * wire.latency_s + messages * size / wire.bytes_per_s
