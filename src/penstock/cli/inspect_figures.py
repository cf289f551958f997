"""Figures of hardware on the console: value and unit, basis, source, and the notes under the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penstock.catalog.device import Figure, Source

Placed = Iterable[tuple[str, Figure]]
"""Dotted places and what stands there, as `hardware_load.figures` gives them."""
_UNITS: Final = (
    ("flop_per_s", 1e12, "TFLOP/s"), ("bytes_per_s", 1e9, "GB/s"), ("bytes", 2**30, "GiB"), ("watts", 1.0, "W"),
    ("cycles", 1.0, "cycles"), ("per_hour", 1.0, "$/h"), ("efficiency", 1.0, ""), ("_s", 1e-6, "us"),
)  # fmt: skip
"""How a figure is shown, by what its place contains: scale and unit."""


def plain_table(*headings: str, right: Iterable[str] = ()) -> Table:
    """A table without lines; the columns of `right` are numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in set(right) else "left", no_wrap=True)
    return table


def show_figures(console: Console, placed: Placed) -> None:
    """A line per figure, each with basis and source; long notes follow by number."""
    table = plain_table("figure", "value", "unit", "basis", "source", "note", right=("value", "note"))
    notes: dict[str, int] = {}
    for place, figure in placed:
        value, unit = shown(place, figure.value)
        number = str(notes.setdefault(figure.note, len(notes) + 1)) if figure.note else ""
        table.add_row(escape(place), value, unit, figure.basis, escape(figure.source), number)
    console.print(table)
    for note, number_in_list in notes.items():
        console.print(escape(f"  {number_in_list}: {note}"))


def show_sources(console: Console, sources: Mapping[str, Source]) -> None:
    """What the figures' sources are."""
    console.print("\n[bold]Sources[/]")
    for key, source in sources.items():
        console.print(escape("  ".join(filter(None, (f"  {key}: {source.title}", source.url, source.note)))))


def shown(place: str, value: float) -> tuple[str, str]:
    """A figure's value and unit for a reader, by the name of its place.

    >>> shown("network.bytes_per_s", 50e9), shown("base_s", 5e-6)
    (('50', 'GB/s'), ('5', 'us'))
    """
    for part, scale, unit in _UNITS:
        if part in place:
            return f"{value / scale:,.4g}", unit
    return f"{value:,.4g}", ""


def as_data(placed: Placed) -> dict[str, Any]:
    """Figures as plain values, by place."""
    return {
        place: {"value": figure.value, "basis": figure.basis, "source": figure.source, "note": figure.note}
        for place, figure in placed
    }
