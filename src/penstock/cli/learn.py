"""`penstock learn`: a price of operators learned from measurements, for shapes that were not measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from penstock.cli.console import stderr, stdout
from penstock.twin.learned import Learned, train


def learn(
    profiles: Annotated[
        list[Path], typer.Argument(help="Measured operators: CSV or Parquet files, or tables of penstock calibrate.")
    ],
    hardware: Annotated[str, typer.Option(help="What they were measured on: a name of penstock inspect hardware.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time
        typer.Option(help="File to write; default: HARDWARE.learned.json.", show_default=False),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Parts that the cross-validation holds out in turn.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Learn a price from measured operators, so that simulate can price shapes that were not measured.

    The table says how well: points held out at random, which is what most papers report, beside whole shapes held out,
    which is what another model asks for. simulate takes the file as twin.price: learned, twin.data: FILE.
    Which columns a profile needs stands in penstock/twin/measured/learnable.py.

    penstock learn h100.csv --hardware h100-sxm --out h100.learned.json
    """  # fmt: skip
    from penstock.catalog.hardware_load import device
    from penstock.errors import BadInput
    from penstock.twin.measured.learnable import read_points
    from penstock.twin.roofline import Roofline

    target = device(hardware)
    found = read_points(profiles)
    left = ", ".join(f"{count} of {kind}" for kind, count in sorted(found.left_out.items()))
    if not found.points:
        raise BadInput(
            field="PROFILES", value=" ".join(map(str, profiles)),
            why=f"no line says all sizes of its operator (left out: {left or 'none, they are empty'})",
            remedy="the columns that twin/measured/learnable.py lists",
        )  # fmt: skip
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn()
    with Progress(*columns, console=(bar_at := stderr()), disable=not bar_at.is_terminal, transient=True) as bar:
        task = bar.add_task("")
        learned = train(
            found.points, target, Roofline(target), folds=folds, seed=seed,
            on_family=lambda name, done, total: bar.update(task, description=name, completed=done, total=total),
        )  # fmt: skip
    path = out or Path(f"{target.name}.learned.json")
    try:
        learned.save(path)
    except OSError as error:
        raise BadInput(
            field="--out", value=str(path), why=f"it cannot be written: {error.strerror}", remedy="another path"
        ) from None
    if as_json:
        scores = {name: asdict(one) for name, one in learned.scores.items()}
        families = {name: scores.get(name) for name in learned.families}
        facts = {"file": str(path), "hardware": target.name, "points": len(found.points)}
        print(json.dumps(facts | {"left_out": dict(found.left_out), "families": families}))
        return
    console = stdout()
    console.print(_table(learned, folds))
    console.print("R2 of seconds; median error of a point. `shape`: what to expect of another model.")
    if left:
        console.print(escape(f"left out, since they do not say all sizes of their operator: {left}"))
    console.print(escape(f"simulate takes it as twin.price: learned, twin.data: {path}"))


def _table(learned: Learned, folds: int) -> Table:
    """A row per family; `-` where there are fewer shapes than folds, so that none could be held out."""
    table = Table(
        title=f"Cross-validation in {folds} parts: points held out at random, and whole shapes held out",
        title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("operators", no_wrap=True)
    for heading in ("points", "shapes", "random R2", "error", "shape R2", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, family in learned.families.items():
        one = learned.scores.get(name)
        name = name.removesuffix("/attention_prefill").removesuffix("/attention_decode").removesuffix("/experts")
        if one is None:
            table.add_row(name, f"{len(family.seen):,}", f"under {folds}", *"----")
            continue
        table.add_row(
            name, f"{one.points:,}", str(one.shapes), f"{one.random_r2:.3f}", f"{one.random_error:.1%}",
            f"{one.grouped_r2:.3f}", f"{one.grouped_error:.1%}",
        )  # fmt: skip
    return table
