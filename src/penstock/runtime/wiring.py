"""Node, cluster, links and tier that a deployment names, put into the device that the twin prices, or refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.catalog import hardware_load as catalog
from penstock.catalog.device import Cluster, Device, Figure, Link, Node, Tier
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.twin.layout import Layout
from penstock.twin.price import OperatorPrice
from penstock.twin.rewired import Rewired
from penstock.twin.roofline import Roofline
from penstock.units import format_bytes


@dataclass(frozen=True, slots=True)
class Wiring:
    """What was named; None where the device's own file holds."""

    node: Node | None = None
    cluster: Cluster | None = None
    link: Link | None = None
    """Between the devices of a node."""
    network: Link | None = None
    """Between nodes."""
    tier: Tier | None = None

    @staticmethod
    def of(deployment: Deployment) -> Wiring:
        """Raises InvalidDeployment: unknown names (with the nearest), or a node that is not the cluster's."""
        asked, tier = deployment.hardware, deployment.memory.host_tier
        cluster = None if asked.cluster is None else catalog.cluster(asked.cluster)
        node = None if asked.node is None else catalog.node(asked.node)
        network = None if asked.network is None else catalog.link(asked.network, "hardware.network")
        if cluster is not None:
            if node is not None and node.name != cluster.node:
                raise InvalidDeployment(
                    field="hardware.node", value=asked.node, why=f"the cluster {cluster.name} is of {cluster.node}",
                    remedy="leave out hardware.node, or hardware.cluster",
                )  # fmt: skip
            node = catalog.node(cluster.node)
            network = network or catalog.link(cluster.fabric)
        return Wiring(
            node, cluster, None if asked.link is None else catalog.link(asked.link, "hardware.link"), network,
            None if tier is None else catalog.tier(tier),
        )  # fmt: skip

    def onto(self, found: Device) -> tuple[Device, Wiring]:
        """`found` with the links that were named, and beside its own power its share of the node's; and what is left
        of the names: a link that is the device's own anyway is not another, and its file knows more of it.

        Raises InvalidDeployment: the node has other devices.
        """
        if self.node is not None and found.name != self.node.device:
            raise InvalidDeployment(
                field="hardware.name", value=found.name, why=f"a node {self.node.name} has {self.node.device}",
                remedy=f"leave it out, or hardware.name: {self.node.device}",
            )  # fmt: skip
        link, network = _other(self.link, found.scale_up), _other(self.network, found.network)
        over = self.cluster.oversubscription if self.cluster else None
        if over is not None and over.value > 1.0 and (shared := network or found.network) is not None:
            # What a port gets where all nodes send at once through the core.
            rate = replace(shared.bytes_per_s, value=shared.bytes_per_s.value / over.value, basis="derived")
            network = replace(shared, bytes_per_s=rate)
        left = replace(self, link=link, network=network)
        found = replace(found, scale_up=link or found.scale_up, network=network or found.network)
        node = self.node
        if node is None:
            return found, left
        found = replace(found, peer_to_peer=found.peer_to_peer and node.peer_to_peer)
        idle = node.other_idle_watts.value if node.other_idle_watts else 0.0
        peak = node.other_peak_watts.value if node.other_peak_watts else idle
        if found.idle_watts is None or found.peak_watts is None or not peak:
            return found, left
        of_idle, of_peak = _with(found.idle_watts, idle, node), _with(found.peak_watts, peak, node)
        return replace(found, idle_watts=of_idle, peak_watts=of_peak), left

    def devices_per_node(self, deployment: Deployment, device: Device) -> int:
        """Devices that the link joins. Raises InvalidDeployment: more than the node has."""
        asked = deployment.layout.devices_per_node
        if self.node is None:
            return asked or device.devices_per_node
        if asked is not None and asked > self.node.devices:
            raise InvalidDeployment(
                field="layout.devices_per_node", value=asked,
                why=f"a node {self.node.name} has {self.node.devices} devices", remedy="leave it out, or fewer",
            )  # fmt: skip
        return asked or self.node.devices

    def check(self, deployment: Deployment, layout: Layout) -> None:
        """Raises InvalidDeployment: more devices than the cluster has, or more host memory than a node's."""
        replicas, node = deployment.cluster.replicas, self.node
        if node is None:
            return
        if self.cluster is not None:
            there = self.cluster.nodes * node.devices
            if replicas * layout.devices > there:
                raise InvalidDeployment(
                    field="cluster.replicas", value=replicas,
                    why=f"each takes {layout.devices} devices, and {self.cluster.name} has {there}",
                    remedy=f"{there // layout.devices} or fewer" if there >= layout.devices else "a smaller layout",
                )  # fmt: skip
        if node.host_memory_bytes is not None:
            beside = max(1, min(replicas, layout.devices_per_node // layout.devices))
            needed, there_bytes = beside * deployment.memory.host_bytes, node.host_memory_bytes.value
            if needed > there_bytes and self.tier is None:
                raise InvalidDeployment(
                    field="memory.host_bytes", value=deployment.memory.host_bytes,
                    why=f"{beside} replicas of a node {node.name} need {format_bytes(needed)} of its host memory of "
                    f"{format_bytes(there_bytes)}",
                    remedy=f"{format_bytes(there_bytes // beside)}, or a memory.host_tier that holds more",
                )  # fmt: skip

    def price(self, price: OperatorPrice, device: Device, layout: Layout) -> OperatorPrice:
        """`price`, which may rest on measurements over other links, with what was named."""
        if self.tier is None and (isinstance(price, Roofline) or (self.link is None and self.network is None)):
            return price
        return Rewired(
            price, Roofline(device), inside=self.link is not None, between=self.network is not None, tier=self.tier,
            sharers=layout.devices,
        )  # fmt: skip


def words(device: Device, layout: Layout, wiring: Wiring) -> str:
    """What joins the devices of a replica, for the report."""
    inside = "through host memory" if device.scale_up is None or not device.peer_to_peer else device.scale_up.name
    parts = [f"{wiring.node.name}: " if wiring.node else "", f"{inside} between {layout.devices_per_node} devices"]
    if layout.devices > layout.devices_per_node:
        parts.append(f", {device.network.name if device.network else 'host links'} between nodes")
    return "".join(parts)


def _other(named: Link | None, own: Link | None) -> Link | None:
    return None if named is None or (own is not None and named.name == own.name) else named


def _with(own: Figure, others: float, node: Node) -> Figure:
    note = f"{own.value:g} W, and 1/{node.devices} of the {others:g} W beside the devices of a {node.name}"
    return Figure(own.value + others / node.devices, "derived", own.source, note)
