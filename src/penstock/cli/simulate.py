"""`penstock simulate`: what a deployment would do, before it is bought: the file that serves, at virtual time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from penstock.cli.console import stderr
from penstock.cli.counts import count
from penstock.cli.flags import FileOption, ModelArgument, load, with_flags_of
from penstock.deployment import Deployment, overlaid
from penstock.errors import BadInput
from penstock.report.table import write_text
from penstock.units import parse_count, parse_seconds

_RUN, _SWEEP, _OUT = "Run", "Sweep", "Result"
Words = Optional[list[str]]  # noqa: UP045 - typer reads these at run time
File = Optional[Path]  # noqa: UP045


@with_flags_of("simulate")
def simulate(
    model: ModelArgument = None,
    file: FileOption = None,
    assigned: Annotated[
        Words, typer.Option("--set", help="key=value, laid over the file. Repeatable.", rich_help_panel=_RUN)
    ] = None,
    limit: Annotated[
        Words,
        typer.Option(
            "--limit", help="Budget: wall=60s, events=10M or time=1h (virtual). Repeatable.", rich_help_panel=_RUN
        ),
    ] = None,
    vary: Annotated[
        Words,
        typer.Option(
            "--vary",
            help="One simulation a value: rate=1:40, rate=1:40:5, policy.compose=stall_free,splitfuse. "
            "Repeatable: all combinations.",
            rich_help_panel=_SWEEP,
        ),
    ] = None,
    processes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="At once; default: one per core.", rich_help_panel=_SWEEP, **count("--processes", least=1)),
    ] = None,
    ray: Annotated[
        Optional[str], typer.Option(help="Address of a Ray cluster that runs the sweep.", rich_help_panel=_SWEEP)  # noqa: UP045
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUT)] = False,
    report: Annotated[File, typer.Option(help="Write an HTML report.", rich_help_panel=_OUT)] = None,
    timeline: Annotated[
        File, typer.Option(help="Write a timeline for Perfetto or chrome://tracing.", rich_help_panel=_OUT)
    ] = None,
    out: Annotated[
        File, typer.Option(help="Write one JSON line per request, for penstock compare.", rich_help_panel=_OUT)
    ] = None,
    token_times: Annotated[
        bool,
        typer.Option(
            "--token-times",
            help="Keep when each token came, 8 bytes a token: an exact ITL, and --out with the times of all tokens.",
            rich_help_panel=_OUT,
        ),
    ] = False,
    **flags: str | None,
) -> None:
    """Simulate a deployment: the control plane that serves it, at virtual time, over modelled hardware.

    The same file as `penstock serve`, with hardware.name and a workload. The table says what its numbers rest on:
    measured, extrapolated or assumed prices. A run past saturation is labelled so.
    """  # fmt: skip
    deployment = load(file, model, {**flags, **_assigned(assigned)}, reader="simulate")
    _require_effect(bool(vary), processes, ray)
    if vary:
        files = (
            ("--report", report), ("--timeline", timeline), ("--out", out), ("--token-times", token_times or None)
        )  # fmt: skip
        given = [(flag, path) for flag, path in files if path is not None]
        if given:
            flag, value = given[0]
            raise BadInput(
                field=flag, value=str(value), why="a sweep has no single run to show", remedy="leave out --vary"
            )
        budgets = _limits(limit)
        for name in budgets:
            if name != "wall":
                raise BadInput(
                    field="--limit", value=name, why="of a sweep only the wall time of each point is bounded",
                    remedy="--limit wall=60s",
                )  # fmt: skip
        _sweep(deployment, vary, budgets.get("wall"), processes, ray, as_json)
        return
    _one(deployment, _limits(limit), as_json, report, timeline, out, token_times)


def _require_effect(sweeps: bool, processes: int | None, ray: str | None) -> None:
    for flag, value, belongs, place in (
        ("--ray", ray, sweeps, "with --vary"),
        ("--processes", processes, sweeps and ray is None, "with --vary, and without --ray"),
    ):
        if value is not None and not belongs:
            raise BadInput(
                field=flag, value=value, why="it would have no effect here", remedy=f"leave it out, or use it {place}"
            )


def _one(
    deployment: Deployment, limits: dict[str, float], as_json: bool, report: Path | None, timeline: Path | None,
    out: Path | None, token_times: bool,
) -> None:  # fmt: skip
    from penstock.report.simulation import lane_name
    from penstock.report.simulation_html import html_report
    from penstock.report.simulation_requests import request_lines
    from penstock.report.simulation_table import console_table
    from penstock.report.summary import summary
    from penstock.report.timeline import TimelineWriter
    from penstock.runtime.simulate import simulate as run
    from penstock.runtime.virtual import Limits

    events = limits.get("events")
    budget = Limits(
        wall_s=limits.get("wall"), virtual_s=limits.get("time"), events=None if events is None else int(events)
    )
    with _opened(timeline) as trace:
        layout, replicas = deployment.layout, deployment.cluster.replicas
        names = {lane: lane_name(lane, layout.attention_dp) for lane in range(replicas * layout.attention_dp)}
        writer = None if trace is None else TimelineWriter(trace, names)
        with _progress(deployment.workload.requests) as told:
            result = run(
                deployment, limits=budget, on_progress=told, on_step=None if writer is None else writer.step,
                token_times=token_times,
            )  # fmt: skip
        if writer is not None:
            writer.add_result(result)
            writer.close()
    numbers = summary(result)
    # The result first: a report that cannot be written must not lose it.
    print(json.dumps(numbers, allow_nan=False) if as_json else console_table(numbers))
    if report is not None:
        write_text(report, html_report(result, numbers), field="--report")
    if out is not None:
        write_text(out, request_lines(result.requests), field="--out")
    raise typer.Exit(130 if result.interrupted == "interrupted" else 0)


def _sweep(
    deployment: Deployment, vary: list[str], wall_s: float | None, processes: int | None, ray: str | None, as_json: bool
) -> None:
    from penstock.runtime.sweep import Point, parse_vary, points_of, sweep

    points = points_of([parse_vary(text) for text in vary])
    # Only what was set: what is derived from other keys must be derived anew at each point.
    data = deployment.model_dump(mode="json", exclude_unset=True)
    Deployment.parse(overlaid(data, points[0]))
    done: list[Point] = []
    stopped = False
    with _progress(len(points)) as told:
        try:
            for point in sweep(data, points, wall_s=wall_s, processes=processes, ray_address=ray):
                done.append(point)
                if told is not None:
                    told(len(done), 0.0)
        except KeyboardInterrupt:
            stopped = True
    done.sort(key=lambda point: point.number)
    if as_json:
        rows = [{"varied": point.varied, "error": point.error or None, **point.summary} for point in done]
        print(json.dumps({"points": rows, "interrupted": stopped}, allow_nan=False))
    else:
        # A pipe gets the whole table, not one folded to 80 columns.
        Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(_table(done))
        for point in done:
            if point.error:
                print(f"{', '.join(f'{key}={value}' for key, value in point.varied.items())}: {point.error}")
        if stopped:
            print(f"interrupted: {len(done)} of {len(points)} points")
    raise typer.Exit(130 if stopped else 1 if any(point.error for point in done) else 0)


def _table(points: list[Any]) -> Table:
    table = Table()
    names = list(points[0].varied) if points else []
    for name in names:
        table.add_column(name)
    for title in ("req/s", "out tok/s", "goodput", "TTFT p50", "p99 ms", "TPOT p50", "p99 ms", "busy", "preempt", ""):
        table.add_column(title, justify="right")
    for point in points:
        values = [str(point.varied[name]) for name in names]
        if point.error:
            table.add_row(*values, *["-"] * 9, "failed")
            continue
        found = point.summary
        keys = (
            ("request_throughput", 2), ("output_throughput", 0), ("request_goodput", 2), ("p50_ttft_ms", 1),
            ("p99_ttft_ms", 1), ("p50_tpot_ms", 2), ("p99_tpot_ms", 2), ("utilisation", 2), ("preemptions", 0),
        )  # fmt: skip
        shown = ["-" if found.get(key) is None else f"{found[key]:,.{digits}f}" for key, digits in keys]
        table.add_row(*values, *shown, "past saturation" if found["saturated"] else found["interrupted"] or "")
    return table


def _assigned(pairs: list[str] | None) -> dict[str, str]:
    from penstock.runtime.sweep import full_key

    found = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(field="--set", value=pair, why="no value", remedy="such as --set policy.max_seqs=64")
        found[full_key(name.strip()).replace(".", "__")] = value.strip()
    return found


def _limits(texts: list[str] | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        try:
            if name == "events":
                found[name] = float(parse_count(value))
            elif name in ("wall", "time"):
                found[name] = parse_seconds(value)
            else:
                raise ValueError("no such budget")
        except ValueError as error:
            raise BadInput(
                field="--limit", value=text, why=str(error), remedy="wall=60s, events=10M or time=1h"
            ) from None
    return found


@contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """A bar on a terminal; None elsewhere."""
    console = stderr()
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.completed:,}"), BarColumn(), TextColumn("{task.fields[at]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, at="")
        yield lambda ended, now: bar.update(task, completed=ended, at=f"at {now:,.1f} s" if now else "")


def _opened(path: Path | None) -> Any:
    if path is None:
        return nullcontext()
    try:
        return path.open("wb")
    except OSError as error:
        raise BadInput(
            field="--timeline", value=str(path), why=str(error), remedy="a path that can be written"
        ) from None
