"""What joins devices: nodes, clusters, links and tiers, in lists and one by one."""

from __future__ import annotations

import json
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from penstock.catalog.device import Cluster, Figure, Link, Node, Source, Tier
from penstock.catalog.hardware_load import (
    clusters,
    device,
    devices,
    figures,
    link,
    link_sources,
    links,
    node,
    nodes,
    tiers,
)
from penstock.cli.console import stdout
from penstock.cli.inspect_figures import as_data, plain_table, show_figures, show_sources

Wiring = Node | Cluster | Link | Tier
_KEY: Final = {"node": "hardware.node", "cluster": "hardware.cluster", "tier": "memory.host_tier"}
"""Where a deployment names it."""


def list_wiring(console: Console) -> None:
    """All nodes, clusters, links and tiers, a table each."""
    console.print()
    table = plain_table("node", "device", "devices", "host GiB", "other W", right=("devices", "host GiB", "other W"))
    for each in nodes().values():
        host, other = each.host_memory_bytes, each.other_peak_watts
        table.add_row(
            each.name, each.device, str(each.devices), f"{host.value / 2**30:,.0f}" if host else "-",
            f"{other.value:,.0f}" if other else "-",
        )  # fmt: skip
    console.print(table)
    console.print()
    table = plain_table("cluster", "node", "nodes", "fabric", "GB/s", right=("nodes", "GB/s"))
    for one in clusters().values():
        table.add_row(one.name, one.node, str(one.nodes), one.fabric, _giga(link(one.fabric).bytes_per_s))
    console.print(table)
    console.print()
    table = plain_table("link", "GB/s", "us", "topology", right=("GB/s", "us"))
    for wire in links().values():
        table.add_row(wire.name, _giga(wire.bytes_per_s), f"{wire.latency_s.value * 1e6:g}", wire.topology)
    console.print(table)
    console.print()
    table = plain_table("tier", "reads GB/s", "writes GB/s", "us", right=("reads GB/s", "writes GB/s", "us"))
    for place in tiers().values():
        rates = _giga(place.read_bytes_per_s), _giga(place.write_bytes_per_s)
        table.add_row(place.name, *rates, f"{place.latency_s.value * 1e6:g}")
    console.print(table)
    console.print(
        "Links: one direction of one port, and the latency of a hop. Other W: peak of a node beside its devices."
    )


def wiring_rows() -> list[dict[str, Any]]:
    """The same as plain data."""
    found: list[Wiring] = [*nodes().values(), *clusters().values(), *links().values(), *tiers().values()]
    return [
        {"group": group_of(each), "name": each.name, **_facts(each)}
        | {place: figure.value for place, figure in figures(each)}
        for each in found
    ]


def show_wiring(found: Wiring, *, as_json: bool) -> None:
    """One of them, every figure with its source."""
    sources = link_sources() if isinstance(found, Link) else found.sources
    placed = list(figures(found))
    used: dict[str, Source] = {key: sources[key] for key in dict.fromkeys(figure.source for _, figure in placed)}
    if as_json:
        cited = {key: {"title": one.title, "url": one.url, "note": one.note} for key, one in used.items()}
        print(
            json.dumps(
                {"group": group_of(found), "name": found.name, **_facts(found)}
                | {"figures": as_data(placed), "sources": cited}
            )
        )
        return
    console = stdout()
    title = found.name if isinstance(found, Link) else found.title
    console.print(f"[bold]{escape(title)}[/] ({group_of(found)} {found.name})\n")
    for name, value in _facts(found).items():
        if name != "title":
            console.print(escape(f"{name.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}"))
    console.print()
    show_figures(console, placed)
    if isinstance(found, Cluster):
        console.print(f"\n[bold]Fabric[/] {found.fabric}, a port for each device")
        fabric = link(found.fabric)
        show_figures(console, figures(fabric))
        used |= {figure.source: link_sources()[figure.source] for _, figure in figures(fabric)}
    show_sources(console, used)
    where = _KEY.get(group_of(found), "hardware.link (inside a node) or hardware.network (between nodes)")
    console.print(f"\nA deployment names it with {where}: {found.name}")


def group_of(found: Wiring) -> str:
    """What kind of thing it is, in a word.

    >>> group_of(link("nvlink-4"))
    'link'
    """
    return type(found).__name__.lower()


def _facts(found: Wiring) -> dict[str, Any]:
    """What is no figure, and what follows from other files."""
    match found:
        case Node():
            inside = device(found.device)
            return {
                "title": found.title, "device": found.device, "devices": found.devices,
                "peer_to_peer": found.peer_to_peer,
                "link": inside.scale_up.name if inside.scale_up else None,
                "network": inside.network.name if inside.network else None,
            }  # fmt: skip
        case Cluster():
            each = node(found.node)
            return {
                "title": found.title, "node": found.node, "nodes": found.nodes, "fabric": found.fabric,
                "device": each.device, "devices": each.devices * found.nodes,
            }  # fmt: skip
        case Link():
            return {"topology": found.topology, "devices": _users(found)}
    return {"title": found.title}


def _users(wire: Link) -> list[str]:
    """Devices whose own files have this link."""
    return [
        each.name
        for each in map(device, devices())
        if wire.name in {port.name for port in (each.scale_up, each.host_link, each.network) if port}
    ]


def _giga(figure: Figure) -> str:
    return f"{figure.value / 1e9:,.4g}"
