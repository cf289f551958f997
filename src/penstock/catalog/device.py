"""Hardware as data: every number is a `Figure` that says what it rests on and where it is from.

Devices stand in catalog/hardware/*.yaml, one file each; `penstock calibrate` writes files of the same form. Plain SI:
FLOP/s, bytes, bytes/s, seconds, watts. Memory and link rates are decimal as their sheets give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FigureBasis = Literal["datasheet", "measured", "derived", "assumed"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its source."""

    value: float
    basis: FigureBasis
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of one device's port into an interconnect."""

    name: str
    bytes_per_s: Figure
    latency_s: Figure


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
    """Host time between steps: step_s (fixed), request_s (per sequence in the step), token_s (per prompt token)."""
    kernel_s: Figure | None = None
    """Shortest time of one kernel: what an operator of almost no work still takes."""
    measured_as: str | None = None
    """System name in aiconfigurator's databases, if it is there: h100_sxm."""
