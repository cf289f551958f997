"""`penstock calibrate`: measure this machine, and write the hardware file that `simulate` takes by name."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import Annotated, Any, Optional

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from penstock.cli.console import stderr


def calibrate(
    out: Annotated[str, typer.Option(help="Name of the hardware; the default is what simulate takes unasked.")] = (
        "this-machine"
    ),
    model: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Checkpoint whose operators to measure; may be given again. Default: the model in the box."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[Optional[int], typer.Option(min=1, help="CPU threads of the engine; default: all.")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure this machine in a minute or two, so that simulate can predict it.

    Measured are a model's operators inside real engine steps, products of other shapes, memory (STREAM), copies between
    KV pools, and what a step of the server costs beside them. Two files with the name of --out go to
    ~/.config/penstock/hardware, or to PENSTOCK_HARDWARE_DIR. Nothing else should run meanwhile.
    """
    from penstock.errors import BadInput
    from penstock.runtime.launch import environment

    if dtype not in ("float32", "bfloat16"):
        raise BadInput(field="--dtype", value=dtype, why="the engine computes in two types", remedy="float32, bfloat16")
    # Before torch is loaded: threads are to wait as the server's worker has them wait.
    os.environ.update(environment())
    from penstock.calibrate.run import Calibration, Options

    options = Options(name=out, models=tuple(model or ("millrace",)), dtype=dtype, threads=threads)
    run = Calibration(options)
    console = stderr()
    started = time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading")
        for at in run.run():
            bar.update(task, description=at.what, completed=at.done, total=at.total)
    path, table = run.write()
    device, host = run.device(), run.host
    assert host is not None
    facts: dict[str, Any] = {
        "name": device.name, "title": device.title, "file": str(path), "table": str(table), "operators": len(run.lines),
        "seconds": time.monotonic() - started, "host": asdict(host),
        "matrix_flop_per_s": {name: figure.value for name, figure in device.matrix_flop_per_s.items()},
        "memory_bytes_per_s": device.memory_bytes_per_s.value, "disturbed": run.disturbed,
    }  # fmt: skip
    if as_json:
        print(json.dumps(facts))
        return
    print(
        f"{device.name}: {device.title}\n"
        f"  products   {facts['matrix_flop_per_s']['float32'] / 1e9:,.1f} GFLOP/s float32, "
        f"{facts['matrix_flop_per_s']['bfloat16'] / 1e9:,.1f} bfloat16\n"
        f"  memory     {facts['memory_bytes_per_s'] / 1e9:,.1f} GB/s\n"
        f"  host       {host.step_s * 1e3:.3f} ms a step, {host.request_s * 1e6:.1f} us a sequence "
        f"(the first {host.first_requests} {1e6 * (host.request_s + host.first_request_s):.1f}), "
        f"{host.token_s * 1e6:.2f} us a prompt token; median error of {host.steps} steps "
        f"{100 * host.median_error:.1f} %\n"
        f"  operators  {len(run.lines)} times in {table}; the machine was disturbed in {100 * run.disturbed:.0f} % of "
        "the steps\n"
        f"  took {facts['seconds']:.0f} s; simulate takes it as hardware.name: {device.name}"
    )
