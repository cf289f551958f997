"""`penstock reproduce`: a paper's numbers beside ours.

`penstock.reproduce` does the work. Exit code 0: every verdict is a pass; 1: one fails; 2: no such reproduction.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penstock.reproduce.registry import PAPERS, Reproduction
from penstock.reproduce.registry import reproduce as run_reproduction

_PIPE_WIDTH = 160
_COLOUR = {"pass": "green", "fail": "bold red", "info": "dim"}


def reproduce(
    name: Annotated[Optional[str], typer.Argument(help="Which paper; without it, the list.")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object on stdout.")] = False,
) -> None:
    """Print a paper's numbers beside ours, each with its tolerance and verdict."""
    if name is None:
        _show_list(as_json)
        return
    result = run_reproduction(name)
    if as_json:
        print(json.dumps(result.as_json(), ensure_ascii=False))
    else:
        _show(result)
    if not result.passed:
        raise typer.Exit(1)


def _show_list(as_json: bool) -> None:
    if as_json:
        print(json.dumps({key: line for key, (_, line) in PAPERS.items()}))
        return
    width = max(map(len, PAPERS))
    for key, (_, line) in PAPERS.items():
        print(f"{key:<{width}}  {line}")


def _show(result: Reproduction) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table(title=f"{result.name}: {result.title}", title_justify="left")
    for column in ("claim", "paper", "ours", "unit", "tolerance", "verdict", "rests on"):
        table.add_column(column, justify="right" if column in ("paper", "ours") else "left", overflow="fold")
    for row in result.rows:
        table.add_row(
            escape(row.claim),
            "-" if row.paper is None else _number(row.paper),
            _number(row.ours),
            row.unit,
            row.tolerance,
            f"[{_COLOUR[row.verdict]}]{row.verdict}[/]",
            escape(row.source),
        )
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    judged = [row for row in result.rows if row.verdict != "info"]
    passed = sum(row.verdict == "pass" for row in judged)
    console.print(f"{passed} of {len(judged)} claims reproduced", highlight=False)


def _number(value: float) -> str:
    """Enough digits to compare by eye.

    >>> _number(14.3421), _number(245760.0), _number(0.0357914)
    ('14.34', '245,760', '0.03579')
    """
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.1f}"
