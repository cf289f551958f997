"""`penstock compare`: two runs side by side, with the error of the second. Exit code 1: a metric is further off
than `--fail-over` allows; 2: files that do not compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from penstock.errors import BadInput

_FILE = (
    "JSON of penstock bench or simulate, their --out of a line per request, or a schedule of --server.record. "
    "FILE#STAGE: one of several stages or points, by name or number."
)


def compare(
    a: Annotated[str, typer.Argument(help=f"What counts as true. {_FILE}")],
    b: Annotated[str, typer.Argument(help="What is held against it, likewise.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    report: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads these at run time
        typer.Option(help="Write an HTML report, with both distributions over each other."),
    ] = None,
    fail_over: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Exit code 1 if a metric of B is further from A than this: 10%. Default: none is judged."),
    ] = None,
    metric: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Judge this one: ttft_p50, tpot_p99, requests_per_s. Repeatable; default: all in the table."),
    ] = None,
) -> None:
    """Set two runs side by side: each metric of both, B less A, and how far their distributions are apart.

    A measured and a simulated run compare, two measured ones, two simulated ones, or a recording with either.
    """
    from penstock.report.compare import compare as set_beside
    from penstock.report.compare_html import comparison_html
    from penstock.report.compare_read import read_run
    from penstock.report.compare_table import TITLES, comparison_table, percent
    from penstock.report.table import write_text

    allowed = None if fail_over is None else _share(fail_over)
    if metric and allowed is None:
        raise BadInput(
            field="--metric", value=metric[0], why="nothing is judged", remedy="leave it out, or --fail-over 10%"
        )
    found = set_beside(read_run(a), read_run(b))
    judged = [found.row(name) for name in metric or ()] or [row for name, row in found.rows.items() if name in TITLES]
    over = [] if allowed is None else [row for row in judged if row.over(allowed)]
    if as_json:
        judgement = {"fail_over": allowed, "over": [row.metric.name for row in over]}
        print(json.dumps(found.to_json() | judgement, allow_nan=False))
    else:
        print(comparison_table(found))
        if allowed is not None:
            told = ", ".join(f"{row.metric.name} {percent(row.relative)}" for row in over)
            print(f"over {fail_over}: {told}" if over else f"none of {len(judged)} metrics is over {fail_over}")
    if report is not None:
        write_text(report, comparison_html(found), field="--report")
    raise typer.Exit(1 if over else 0)


def _share(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100 if number != text.strip() else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise BadInput(field="--fail-over", value=text, why="not a percentage", remedy="such as 10%")
    return share
