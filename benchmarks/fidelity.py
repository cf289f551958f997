"""How true the twin is on this machine: calibrate, predict, then serve, and compare. Every cell is shown, good or bad.

For three policies, at 40, 70 and 95 % of the capacity that the twin predicts: the first requests of the Azure 2023
conversation trace, lengths scaled to the model's context, stretched to that rate. All predictions are made, and written
with their time, before the first request is served. Then the server's worker process, engine and all, serves the very
same arrivals and lengths in real time and records its schedule; TTFT and TPOT are taken from there, where control sees
them: without HTTP, which the twin does not model. A cell waits a while for the machine to be calm (calibrate's probe);
nothing is run again for its outcome.

A machine in the cloud changes its pace after it was calibrated. So right before a cell its first requests are served
with other words, and how long their steps take over what the table says (the first ones, in which a new worker warms
up, left out) gives a second prediction of the cell, `probed`, written with its time before the cell's first request:
same arrivals, same mix of steps. A third, `rolling`, is a forecast for each next `WINDOW` requests at the pace of the
cell's steps of the `LOOK_BACK_S` before the first of them comes (of the probe, where there are too few); it is worked
out afterwards from the record, from nothing that came later.

    python benchmarks/fidelity.py [--requests 400] [--threads 1] [--folder build/fidelity]

Aim: 5 % on p50, 10 % on p99. Whatever else the machine does meanwhile is part of the measurement and not of the
prediction: the CPUs that others took are shown, those that the host of a virtual machine took, and the probe before and
after. `pace` is how long the cell's steps
took over what the table says of the very same steps: 1 on a machine that ran as it did when it was calibrated. The
error `at that pace` is that of the prediction for a machine so much slower: what remains is not the machine's doing.
It knows the run, so it explains and does not count.

Without ../shared/data, requests are drawn from the trace's published laws. The last line is JSON, one object per cell.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from penstock.calibrate.host import loads
from penstock.calibrate.probe import DISTURBED, Probe
from penstock.control.request import Request, Sampling
from penstock.deployment import Deployment
from penstock.report.simulation import RequestColumns
from penstock.runtime.modelled import model
from penstock.runtime.recorded import requests_of
from penstock.runtime.schedule import NANOSECONDS, Schedule, Submit, read_schedule
from penstock.runtime.service import Service
from penstock.runtime.simulate import simulate
from penstock.twin.load import StepLoad

ROOT = Path(__file__).parents[1]
TRACE = ROOT.parent / "shared" / "data" / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz"
POLICIES = ("sarathi", "vllm_prefill_first", "splitfuse")
LOADS = (0.4, 0.7, 0.95)
AIM = {"p50": 0.05, "p90": 0.10, "p99": 0.10, "throughput": 0.05}
NAME = "fidelity"
PROBE_REQUESTS, PROBE_SEED = 80, 10_000
WARM_UP = 0.1
"""Share of a probe's steps that are left out."""
WINDOW, LOOK_BACK_S, FEWEST_STEPS = 25, 15.0, 30
ERRORS = ("error", "error_probed", "error_rolling", "error_at_pace")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Served:
    """Requests of one run, predicted or real. Seconds."""

    arrival: Floats
    """Ascending."""
    first: Floats
    finish: Floats
    output: Floats

    def rows(self, begin: int, end: int) -> Served:
        """Those of them, by arrival."""
        return Served(self.arrival[begin:end], self.first[begin:end], self.finish[begin:end], self.output[begin:end])

    def figures(self) -> dict[str, float]:
        """What is compared: quantiles of TTFT and TPOT, output tokens per second."""
        ttft, later = self.first - self.arrival, self.output > 1
        tpot = (self.finish - self.first)[later] / (self.output[later] - 1)
        found = {
            f"{name}_p{share}_s": float(np.quantile(values, share / 100))
            for name, values in (("ttft", ttft), ("tpot", tpot))
            for share in (50, 90, 99)
        }
        span = float(self.finish.max() - self.arrival.min())
        return {**found, "throughput_tokens_per_s": float(self.output.sum()) / span}


@dataclass(frozen=True)
class Cell:
    policy: str
    load: float
    rate: float
    deployment: Deployment
    workload: RequestColumns
    predicted: dict[str, float]


@dataclass(frozen=True)
class Probed:
    """A second prediction, of the machine as it was right before the cell."""

    pace: float
    written: str
    predicted: dict[str, float]


def deployment_for(policy: str, rate: float, requests: int, context: int, threads: int) -> Deployment:
    keys: dict[str, Any] = {
        "policy.name": policy, "hardware.name": NAME, "hardware.threads": threads, "workload.requests": requests,
        "workload.rate": rate, "server.queue.max_requests": 10 * requests, "server.queue.max_prompt_tokens": 10**9,
    }  # fmt: skip
    if TRACE.is_file():
        keys |= {"workload.trace": str(TRACE), "workload.scale_to": context}
    else:
        keys |= {"workload.prompt_tokens": "azure-conv", "workload.output_tokens": "azure-conv"}
        keys |= {"workload.context_tokens": context}
    return Deployment.load(None, keys)


def predict(options: argparse.Namespace) -> list[Cell]:
    """Capacity of each policy: all requests at once. Then each load."""
    cells = []
    for policy in POLICIES:
        common = (options.requests, options.context, options.threads)
        burst = simulate(deployment_for(policy, 1e5, *common)).requests
        capacity = len(burst) / float(burst.finish_s.max())
        for load in LOADS:
            deployment = deployment_for(policy, load * capacity, *common)
            found = simulate(deployment).requests
            cells.append(Cell(policy, load, load * capacity, deployment, found, in_columns(found).figures()))
    return cells


def in_columns(found: RequestColumns, pace: float = 1.0) -> Served:
    """A simulated run; on a machine `pace` times as slow if its requests came `pace` times as fast."""
    return Served(
        pace * found.arrival_s, pace * found.first_token_s, pace * found.finish_s,
        found.output_tokens.astype(np.float64),
    )  # fmt: skip


def at_pace(cell: Cell, pace: float, options: argparse.Namespace) -> Served:
    """What the twin predicts of the cell on a machine `pace` times as slow as the calibrated one."""
    slower = deployment_for(cell.policy, cell.rate * pace, options.requests, options.context, options.threads)
    return in_columns(simulate(slower).requests, pace)


def probed(cell: Cell, number: int, options: argparse.Namespace) -> Probed:
    """Serve the cell's first arrivals and lengths, with other words, and predict the cell at the pace of the steps."""
    out = options.folder / f"probe-{cell.policy}-{cell.load:g}.jsonl.gz"
    out.unlink(missing_ok=True)
    rows = cell.workload
    names = ("arrival_s", "prompt_tokens", "output_tokens")
    few = replace(rows, **{name: getattr(rows, name)[:PROBE_REQUESTS] for name in names})
    asyncio.run(serve(replace(cell, workload=few), PROBE_SEED + number, out))
    steps = list(loads(read_schedule(out)))
    pace = pace_of(cell, steps[int(WARM_UP * len(steps)) :])
    found = Probed(pace, time.strftime("%Y-%m-%dT%H:%M:%S%z"), at_pace(cell, pace, options).figures())
    row = {"policy": cell.policy, "load": cell.load, **asdict(found)}
    with (options.folder / "probed.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
    return found


def pace_of(cell: Cell, steps: Sequence[tuple[StepLoad, float]]) -> float:
    """Seconds of recorded steps over those that the twin gives them, one by one."""
    price = model(cell.deployment).price
    return sum(seconds for _, seconds in steps) / sum(price.seconds(load) for load, _ in steps)


def rolling(cell: Cell, schedule: Schedule, pace: float, options: argparse.Namespace) -> tuple[Served, list[float]]:
    """Each window of requests as the twin foresees it at the pace of the steps right before it, and these paces. At
    first that is `pace`."""
    came = sorted((event.t + schedule.header.origin_ns) / NANOSECONDS for event in schedule.events
                  if isinstance(event, Submit))  # fmt: skip
    parts, paces = [], []
    for begin in range(0, len(came), WINDOW):
        steps = list(loads(schedule, (came[begin] - LOOK_BACK_S, came[begin])))
        paces.append(pace_of(cell, steps) if len(steps) >= FEWEST_STEPS else paces[-1] if paces else pace)
        parts.append(at_pace(cell, paces[-1], options).rows(begin, begin + WINDOW))
    joined = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("arrival", "first", "finish", "output")
    )
    return Served(*joined), paces


async def serve(cell: Cell, seed: int, out: Path) -> tuple[float, float]:
    """The cell's arrivals through the server's worker process. Returns the CPUs that other programs took
    meanwhile, and those that other guests of the host took."""
    server = cell.deployment.server.model_copy(update={"record": str(out)})
    service = await Service.start(cell.deployment.model_copy(update={"server": server}))
    generator = np.random.default_rng(seed)
    rows = cell.workload
    requests = [
        Request(
            id=str(index), prompt=tuple(generator.integers(0, service.info.vocab_size, int(prompt)).tolist()),
            max_tokens=int(output), sampling=Sampling(temperature=0.0),
        )
        for index, (prompt, output) in enumerate(zip(rows.prompt_tokens, rows.output_tokens, strict=True))
    ]  # fmt: skip
    pid = service.worker_pid
    start = time.monotonic() + 0.5

    async def client(request: Request, at: float) -> None:
        await asyncio.sleep(start + at - time.monotonic())
        async with contextlib.aclosing(service.generate(request)) as outputs:
            async for _ in outputs:
                pass

    before = cpu_seconds(pid)
    await asyncio.gather(*(client(request, float(at)) for request, at in zip(requests, rows.arrival_s, strict=True)))
    all_s, mine_s, stolen_s, wall_s = (after - now for after, now in zip(cpu_seconds(pid), before, strict=True))
    await service.close()
    return max(0.0, (all_s - mine_s) / wall_s), stolen_s / wall_s


def cpu_seconds(pid: int | None) -> tuple[float, float, float, float]:
    """CPU seconds of everything on this machine, of this process and its worker, stolen by the host; and the wall
    clock."""
    tick = os.sysconf("SC_CLK_TCK")
    with open("/proc/stat", encoding="ascii") as lines:
        fields = [int(value) for value in lines.readline().split()[1:]]
    mine = sum(os.times()[:2])
    if pid is not None:
        with open(f"/proc/{pid}/stat", encoding="ascii") as line:
            mine += sum(int(value) for value in line.read().rpartition(")")[2].split()[11:13]) / tick
    idle, waiting, stolen = fields[3], fields[4], fields[7]
    return (sum(fields[:8]) - idle - waiting - stolen) / tick, mine, stolen / tick, time.monotonic()


def served(schedule: Schedule) -> Served:
    """Arrivals and tokens as control saw them."""
    done = [record for record in requests_of(schedule).records if record.outcome == "completed"]
    times = np.array([(record.sent_s, record.token_s[0], record.token_s[-1]) for record in done])
    return Served(times[:, 0], times[:, 1], times[:, 2], np.array([record.output_tokens for record in done], float))


def run(cells: list[Cell], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    probe = Probe()
    for number, cell in enumerate(cells):
        out = options.folder / f"{cell.policy}-{cell.load:g}.jsonl.gz"
        out.unlink(missing_ok=True)
        patience = time.monotonic() + options.patience
        while (before := probe.slowness(21)) > DISTURBED and time.monotonic() < patience:
            time.sleep(0.5)
        second = probed(cell, number, options)
        others, stolen = asyncio.run(serve(cell, number, out))
        after, schedule = probe.slowness(21), read_schedule(out)
        real, pace = served(schedule).figures(), pace_of(cell, list(loads(schedule)))
        paced = at_pace(cell, pace, options).figures()
        forecast, paces = rolling(cell, schedule, second.pace, options)
        third = forecast.figures()
        yield {
            "policy": cell.policy, "load": cell.load, "requests_per_s": cell.rate, "predicted": cell.predicted,
            "measured": real, "error": {name: cell.predicted[name] / real[name] - 1 for name in real}, "pace": pace,
            "probed": asdict(second), "error_probed": {name: second.predicted[name] / real[name] - 1 for name in real},
            "rolling": third, "rolling_paces": paces,
            "error_rolling": {name: third[name] / real[name] - 1 for name in real},
            "error_at_pace": {name: paced[name] / real[name] - 1 for name in real}, "other_cpus": others,
            "stolen_cpus": stolen,
            "probe": [before, after],
        }  # fmt: skip


def marked(error: float, share: str) -> str:
    """Green where the aim is met."""
    return f"[{'green' if abs(error) <= AIM[share] else 'red'}]{100 * error:+.1f} %[/]"


def show(rows: list[dict[str, Any]]) -> None:
    columns = [f"{name}_p{share}_s" for name in ("ttft", "tpot") for share in (50, 90, 99)]
    table = Table("policy", "load", *(name[:-2].replace("_", " ") for name in columns), "tokens/s", "machine",
                  title="twin / real in ms; error of the twin, probed, rolling, at the run's pace")  # fmt: skip
    for row in rows:
        cells = []
        for name in columns:
            text = f"{1e3 * row['predicted'][name]:.1f} / {1e3 * row['measured'][name]:.1f}"
            cells.append("\n".join([text, *(marked(row[kind][name], name.split("_")[1]) for kind in ERRORS)]))
        name = "throughput_tokens_per_s"
        told = (marked(row[kind][name], "throughput") for kind in ERRORS)
        cells.append("\n".join([f"{row['measured'][name]:.0f}", *told]))
        machine = f"pace {row['probed']['pace']:.2f} before, {row['pace']:.2f}\n"
        machine += f"others {row['other_cpus']:.2f} CPUs, stolen {row['stolen_cpus']:.2f}\nprobe "
        machine += " ".join(f"{value:.2f}" for value in row["probe"])
        table.add_row(row["policy"], f"{100 * row['load']:.0f} %", *cells, machine, end_section=True)
    Console(width=170, highlight=False).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="per cell")
    parser.add_argument("--context", type=int, default=2048, help="longest prompt + output")
    parser.add_argument("--threads", type=int, default=1, help="of the engine; a core is left for control and clients")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fidelity", help="for all that is written")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds a cell waits for a calm machine")
    parser.add_argument("--no-calibrate", action="store_true", help="take the calibration that is in the folder")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["PENSTOCK_HARDWARE_DIR"] = str(options.folder)
    if not options.no_calibrate:
        program = [sys.executable, "-c", "from penstock.cli import main; main()", "calibrate"]
        flags = ["--out", NAME, "--threads", str(options.threads)]
        subprocess.run(program + flags, check=True, stdout=sys.stderr)
    (options.folder / "probed.jsonl").unlink(missing_ok=True)
    cells = predict(options)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    told = [{"policy": c.policy, "load": c.load, "requests_per_s": c.rate, "predicted": c.predicted} for c in cells]
    (options.folder / "predictions.json").write_text(json.dumps({"written": stamp, "cells": told}, indent=1))
    print(f"predictions written at {stamp}", file=sys.stderr, flush=True)
    rows = []
    for row in run(cells, options):
        rows.append(row)
        errors = " ".join(f"{name[:-2]} {100 * error:+.1f}%" for name, error in row["error"].items())
        print(f"{row['policy']} {row['load']:g}: {errors}", file=sys.stderr, flush=True)
    show(rows)
    for kind in ERRORS:
        over = {
            name: round(100 * float(np.median([abs(row[kind][name]) for row in rows])), 1) for name in rows[0][kind]
        }
        print(f"median of the absolute, %: {kind}: {over}", file=sys.stderr)
    print(json.dumps({"benchmark": "fidelity", "predicted_at": stamp, "threads": options.threads, "cells": rows}))


if __name__ == "__main__":
    main()
