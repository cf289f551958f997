"""Hardware as data: every number is a `Figure` that says what it rests on and where it is from.

Devices stand in catalog/hardware/*.yaml, one file each; `penstock calibrate` writes files of the same form. Plain SI:
FLOP/s, bytes, bytes/s, seconds, watts. Memory and link rates are decimal as their sheets give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FigureBasis = Literal["datasheet", "measured", "derived", "assumed"]
Topology = Literal["switch", "mesh", "torus", "tree"]
"""switch: any device reaches any other at its full rate (NVSwitch, an Ethernet or InfiniBand fabric). mesh: a cable to
each peer, so that one peer gets a share of the port (MI300X, Gaudi). torus: cables to neighbours only (TPU). tree:
PCIe, where peers share the way through the host."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its source."""

    value: float
    basis: FigureBasis
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where figures are from: a sheet, a paper, a measurement."""

    title: str
    url: str = ""
    note: str = ""
    """How it was read, or which machine and software measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of one device's port into an interconnect."""

    name: str
    bytes_per_s: Figure
    latency_s: Figure
    """Of one hop: what one more step of a ring adds."""
    base_s: Figure | None = None
    """What a collective takes however few bytes and ranks: launch and first synchronisation. None: nothing."""
    efficiency: Figure | None = None
    """Share of bytes_per_s that long messages reach; None: 1."""
    peer_bytes_per_s: Figure | None = None
    """Rate towards one peer where that is less than the port's; None: the whole."""
    topology: Topology = "switch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator (or CPU) and how it is wired."""

    name: str
    """What a deployment calls it: h100-sxm."""
    title: str
    kind: Literal["gpu", "tpu", "accelerator", "cpu"]
    matrix_flop_per_s: Mapping[str, Figure]
    """Dense peak by dtype (catalog.shape.Dtype). A dtype that is missing runs as the next wider one that is there."""
    memory_bytes: Figure
    memory_bytes_per_s: Figure
    devices_per_node: int = 1
    """Devices that `scale_up` joins: a server, or the whole rack where NVLink spans it."""
    scale_up: Link | None = None
    """To the other devices of its node: NVLink, Infinity Fabric, ICI, PCIe peer to peer."""
    host_link: Link | None = None
    """To host memory."""
    network: Link | None = None
    """To other nodes: this device's share."""
    idle_watts: Figure | None = None
    peak_watts: Figure | None = None
    price_per_hour: Figure | None = None
    """US dollars; user-settable."""
    compute_efficiency: Figure | None = None
    """Share of the matrix peak that large products reach; None: 1, the limit itself."""
    memory_efficiency: Figure | None = None
    host: Mapping[str, Figure] = field(default_factory=dict)
    """Host time between steps: step_s (fixed), request_s (per sequence in the step), token_s (per prompt token);
    and where it bends, first_request_s (more for each of the first first_requests sequences)."""
    kernel_s: Figure | None = None
    """Shortest time of one kernel: what an operator of almost no work still takes."""
    measured_as: str | None = None
    """System name in aiconfigurator's databases, if it is there: h100_sxm."""
    aliases: tuple[str, ...] = ()
    peer_to_peer: bool = True
    """False: devices of a node reach each other only through host memory."""
    reached_flop_per_s: Mapping[str, Figure] = field(default_factory=dict)
    """What large products reached in measurements, by dtype; where it is there it replaces peak x efficiency."""
    kernel_paths: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    """Measured ceilings of kinds of matrix instruction, by path and dtype: `mma` is what kernels reach that were not
    rewritten for `wgmma`."""
    latency_cycles: Mapping[str, Figure] = field(default_factory=dict)
    """Zero-load latency of a dependent load by memory level: shared, l1, l2, global."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """What the figures' `source` refers to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A place for bytes beside device memory: DRAM, CXL, SSD."""

    name: str
    title: str
    read_bytes_per_s: Figure
    write_bytes_per_s: Figure
    latency_s: Figure
    sources: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Devices in one box (or rack), with what they share."""

    name: str
    title: str
    device: str
    """A name in the catalogue."""
    devices: int
    host_memory_bytes: Figure | None = None
    host_memory_bytes_per_s: Figure | None = None
    other_idle_watts: Figure | None = None
    """Of all that is not a device: CPUs, memory, fans, switches."""
    other_peak_watts: Figure | None = None
    peer_to_peer: bool = True
    sources: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes of one kind behind one fabric."""

    name: str
    title: str
    node: str
    nodes: int
    fabric: str
    """A name in links.yaml; each device has one port of it."""
    oversubscription: Figure | None = None
    """Ports' sum over what the core carries; None: 1, non-blocking."""
    sources: Mapping[str, Source] = field(default_factory=dict)
