"""How true the twin is on this machine: calibrate, predict, then serve, and compare. Every cell is shown, good or bad.

For three policies, at 40, 70 and 95 % of the capacity that the twin predicts: the first requests of the Azure 2023
conversation trace, lengths scaled to the model's context, stretched to that rate. All predictions are made, and written
with their time, before the first request is served. Then the server's worker process, engine and all, serves the very
same arrivals and lengths in real time and records its schedule; TTFT and TPOT are taken from there, where control sees
them: without HTTP, which the twin does not model. A cell waits a while for the machine to be calm (calibrate's probe);
nothing is run again for its outcome.

A machine in the cloud changes its pace after it was calibrated. So right before a cell a burst of other requests is
served for a few seconds, and how long its steps take over what the table says gives a second prediction of the cell,
`probed`, written with its time before the cell's own first request.

    python benchmarks/fidelity.py [--requests 400] [--threads 1] [--folder build/fidelity]

Aim: 5 % on p50, 10 % on p99. Whatever else the machine does meanwhile is part of the measurement and not of the
prediction: the CPUs that others took are shown, and the probe before and after. `pace` is how long the cell's steps
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
from collections.abc import Iterator
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
from penstock.runtime.schedule import NANOSECONDS, Done, Plan, Schedule, Submit, read_schedule
from penstock.runtime.service import Service
from penstock.runtime.simulate import simulate

ROOT = Path(__file__).parents[1]
TRACE = ROOT.parent / "shared" / "data" / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz"
POLICIES = ("sarathi", "vllm_prefill_first", "splitfuse")
LOADS = (0.4, 0.7, 0.95)
AIM = {"p50": 0.05, "p90": 0.10, "p99": 0.10, "throughput": 0.05}
NAME = "fidelity"
PROBE_REQUESTS, PROBE_SEED = 24, 10_000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Served:
    """Requests of one run, predicted or real. Seconds."""

    arrival: Floats
    first: Floats
    finish: Floats
    output: Floats

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


def at_pace(cell: Cell, pace: float, options: argparse.Namespace) -> dict[str, float]:
    """What the twin predicts of the cell on a machine `pace` times as slow as the calibrated one."""
    slower = deployment_for(cell.policy, cell.rate * pace, options.requests, options.context, options.threads)
    return in_columns(simulate(slower).requests, pace).figures()


def probed(cell: Cell, number: int, options: argparse.Namespace) -> Probed:
    """Serve a burst that has nothing of the cell's workload, and predict the cell at the pace of its steps."""
    out = options.folder / f"probe-{cell.policy}-{cell.load:g}.jsonl.gz"
    out.unlink(missing_ok=True)
    prompt, output = np.full(PROBE_REQUESTS, 160), np.full(PROBE_REQUESTS, 48)
    nobody, never = np.zeros(PROBE_REQUESTS, int), np.full(PROBE_REQUESTS, np.nan)
    burst = RequestColumns(
        arrival_s=np.zeros(PROBE_REQUESTS), first_token_s=never, finish_s=never, prompt_tokens=prompt,
        output_tokens=output, cached_tokens=nobody, preemptions=nobody, replica=nobody, outcome=nobody,
    )  # fmt: skip
    asyncio.run(serve(replace(cell, workload=burst), PROBE_SEED + number, out))
    pace = pace_of(cell, read_schedule(out))
    found = Probed(pace, time.strftime("%Y-%m-%dT%H:%M:%S%z"), at_pace(cell, pace, options))
    row = {"policy": cell.policy, "load": cell.load, **asdict(found)}
    with (options.folder / "probed.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
    return found


def pace_of(cell: Cell, schedule: Schedule) -> float:
    """Seconds of the recorded steps over those that the twin gives them, one by one."""
    price = model(cell.deployment).price
    steps = list(loads(schedule))
    return sum(seconds for _, seconds in steps) / sum(price.seconds(load) for load, _ in steps)


async def serve(cell: Cell, seed: int, out: Path) -> float:
    """The cell's arrivals through the server's worker process. Returns the CPUs that other programs took meanwhile."""
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
    all_s, mine_s, wall_s = (after - now for after, now in zip(cpu_seconds(pid), before, strict=True))
    await service.close()
    return max(0.0, (all_s - mine_s) / wall_s)


def cpu_seconds(pid: int | None) -> tuple[float, float, float]:
    """CPU seconds of everything on this machine, of this process and its worker; and the wall clock."""
    tick = os.sysconf("SC_CLK_TCK")
    with open("/proc/stat", encoding="ascii") as lines:
        fields = [int(value) for value in lines.readline().split()[1:]]
    mine = sum(os.times()[:2])
    if pid is not None:
        with open(f"/proc/{pid}/stat", encoding="ascii") as line:
            mine += sum(int(value) for value in line.read().rpartition(")")[2].split()[11:13]) / tick
    return (sum(fields) - fields[3] - fields[4]) / tick, mine, time.monotonic()


def served(schedule: Schedule) -> Served:
    """Arrivals and tokens as control saw them."""
    arrival: dict[str, int] = {}
    first: dict[str, int] = {}
    finish: dict[str, tuple[int, int]] = {}
    completing: dict[int, list[str]] = {}
    for event in schedule.events:
        match event:
            case Submit():
                arrival[event.id] = event.t
            case Plan():
                completing[event.n] = [name for name, _, _, last in event.chunks if last]
            case Done():
                for name in completing.pop(event.n):
                    first.setdefault(name, event.t)
                for end in event.finished:
                    finish[end.id] = (event.t, end.output_tokens)
            case _:
                pass
    names = list(finish)
    times = np.array([(arrival[name], first[name], finish[name][0]) for name in names]) / NANOSECONDS
    return Served(times[:, 0], times[:, 1], times[:, 2], np.array([finish[name][1] for name in names], float))


def run(cells: list[Cell], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    probe = Probe()
    for number, cell in enumerate(cells):
        out = options.folder / f"{cell.policy}-{cell.load:g}.jsonl.gz"
        out.unlink(missing_ok=True)
        patience = time.monotonic() + options.patience
        while (before := probe.slowness(21)) > DISTURBED and time.monotonic() < patience:
            time.sleep(0.5)
        second = probed(cell, number, options)
        others = asyncio.run(serve(cell, number, out))
        after, schedule = probe.slowness(21), read_schedule(out)
        real, pace = served(schedule).figures(), pace_of(cell, schedule)
        paced = at_pace(cell, pace, options)
        yield {
            "policy": cell.policy, "load": cell.load, "requests_per_s": cell.rate, "predicted": cell.predicted,
            "measured": real, "error": {name: cell.predicted[name] / real[name] - 1 for name in real}, "pace": pace,
            "probed": asdict(second), "error_probed": {name: second.predicted[name] / real[name] - 1 for name in real},
            "error_at_pace": {name: paced[name] / real[name] - 1 for name in real}, "other_cpus": others,
            "probe": [before, after],
        }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    columns = [f"{name}_p{share}_s" for name in ("ttft", "tpot") for share in (50, 90, 99)]
    table = Table("policy", "load", *(name[:-2].replace("_", " ") for name in columns), "tokens/s", "machine",
                  title="twin / real in ms; the twin's error; the probed one's; at the run's pace")  # fmt: skip
    for row in rows:
        cells = []
        for name in columns:
            error = row["error"][name]
            good = abs(error) <= AIM[name.split("_")[1]]
            text = f"{1e3 * row['predicted'][name]:.1f} / {1e3 * row['measured'][name]:.1f}"
            paced, second = 100 * row["error_at_pace"][name], row["error_probed"][name]
            marked = f"[{'green' if good else 'red'}]{100 * error:+.1f} %[/]"
            good = abs(second) <= AIM[name.split("_")[1]]
            cells.append(f"{text}\n{marked}\n[{'green' if good else 'red'}]{100 * second:+.1f} %[/]\n{paced:+.1f} %")
        error = row["error"]["throughput_tokens_per_s"]
        colour = "green" if abs(error) <= AIM["throughput"] else "red"
        paced, second = (100 * row[kind]["throughput_tokens_per_s"] for kind in ("error_at_pace", "error_probed"))
        cells.append(
            f"{row['measured']['throughput_tokens_per_s']:.0f}\n[{colour}]{100 * error:+.1f} %[/]\n{second:+.1f} %\n"
            f"{paced:+.1f} %"
        )
        machine = f"pace {row['probed']['pace']:.2f} before, {row['pace']:.2f}\n"
        machine += f"others {row['other_cpus']:.2f} CPUs\nprobe "
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
    print(json.dumps({"benchmark": "fidelity", "predicted_at": stamp, "threads": options.threads, "cells": rows}))


if __name__ == "__main__":
    main()
