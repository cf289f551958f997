"""Replays the Azure 2023 conversation trace against a server at 40, 80 and 150 % of what that server can do.

Starts `penstock serve` with its defaults, except for a queue of a few seconds' work (else an overload of minutes would
only fill it), measures the capacity in closed loop with the very lengths of the trace, then sends the trace's first
requests open loop, stretched to each share of that capacity. Lengths are scaled by one factor to the server's context.

    python benchmarks/azure_replay.py                       # the model in the box
    python benchmarks/azure_replay.py --url http://...      # a server that runs already

Checked: at 40 and 80 % every request is answered in full; at 150 % whatever is not answered was refused with 429, and
throughput stays within 5 % of the best of all stages. Throughput is work per second while the load is on, counted in
mean requests of the trace: half for prompt tokens read, half for output tokens written.

The trace is looked for in ../shared/data; without it, requests are drawn from its published laws, and the output says
which. Source of the trace: Azure LLM inference dataset 2023 (CC-BY-4.0). The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console

from penstock.report.html import html_report
from penstock.report.latency import RequestRecord
from penstock.report.result import StageResult
from penstock.report.table import sweep_table, write_requests
from penstock.workload.arrivals import arrivals
from penstock.workload.bench import BenchResult, BenchSettings, bench, mean_lengths
from penstock.workload.client import run_async
from penstock.workload.lengths import MEASURED
from penstock.workload.plan import Workload
from penstock.workload.trace import Trace, TraceRequest, read_trace

ROOT = Path(__file__).parents[1]
TRACE = ROOT.parent / "shared" / "data" / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz"
LOADS = (0.4, 0.8, 1.5)
TOLERANCE = 0.05


class Quiet:
    """One line per stage on stderr."""

    def stage(self, name: str, requests: int | None) -> None:
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)

    def record(self, record: RequestRecord) -> None:
        """Nothing: a line per request would cost the generator time."""


def published(count: int, seed: int) -> Trace:
    """Requests by the trace's published laws, for when the trace itself is not there."""
    generator = np.random.default_rng(seed)
    times = arrivals("azure-conv", 5.53).times(count, generator).tolist()
    prompts, outputs = (law.draw(count, generator).tolist() for law in MEASURED["azure-conv"])
    rows = tuple(TraceRequest(*row) for row in zip(times, prompts, outputs, strict=True))
    return Trace("azure-conv, generated", rows, notes=("drawn from the published laws: the trace was not found",))


@contextmanager
def serving(queue: int, extra: list[str]) -> Iterator[str]:
    """A `penstock serve` of our own, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from penstock.cli import main; main()", "serve"]
    flags = ["--server.port", str(port), "--server.queue.max-requests", str(queue), *extra]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    server = subprocess.Popen(program + flags, stdout=sys.stderr, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _ready(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not come up; its output is above")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(url + "/ready", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def context_of(url: str) -> int:
    """What the server says its context is; 2048 where it does not."""
    card = httpx.get(url + "/v1/models", timeout=10, trust_env=False).json()["data"][0]
    return int(card.get("max_model_len") or 2048)


def checks(result: BenchResult, rates: dict[str, float]) -> dict[str, bool]:
    """Each promise, kept or not; `rates` is the throughput of every stage by name."""
    peak = max(rates.values())
    kept: dict[str, bool] = {}
    for stage in result.stages:
        report, share = stage.report, f"{100 * (stage.load or 0):g} %"
        kept[f"{share}: the load was honest"] = not stage.invalid
        if stage.load is not None and stage.load <= 1:
            kept[f"{share}: every request answered"] = report.completed == len(stage.records)
        else:
            kept[f"{share}: answered, or refused with 429"] = report.completed + report.rejected == len(stage.records)
            kept[f"{share}: throughput within 5 % of its peak"] = rates[stage.name] >= (1 - TOLERANCE) * peak
    return kept


def throughput(stage: StageResult, lengths: tuple[float, float]) -> float:
    """Requests of these mean lengths per second while the load was on."""
    return stage.report.steady.requests_per_s(*lengths) if stage.report.steady is not None else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already; default: start one")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--seconds", type=float, default=60.0, help="sending time of each stage")
    parser.add_argument("--capacity-seconds", type=float, default=30.0, help="time of each step of the capacity search")
    parser.add_argument("--queue", type=int, default=64, help="requests the server may hold without a first token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="HTML report")
    parser.add_argument("--out", type=Path, help="one JSON line per request")
    options, extra = parser.parse_known_args()
    trace = read_trace(options.trace) if options.trace.is_file() else published(19_366, options.seed)

    def run(url: str) -> tuple[BenchResult, tuple[float, float]]:
        fitted = trace.fit(context_of(url))
        settings = BenchSettings(
            url=url,
            workload=Workload(),
            trace=fitted,
            loads=LOADS,
            duration_s=options.seconds,
            capacity_stage_s=options.capacity_seconds,
            seed=options.seed,
        )
        found: BenchResult = run_async(lambda: bench(settings, Quiet()))
        return found, mean_lengths(fitted.requests)

    if options.url:
        result, lengths = run(options.url)
    else:
        with serving(options.queue, extra) as url:
            result, lengths = run(url)
    stages = (*result.search, *result.stages)
    rates = {stage.name: throughput(stage, lengths) for stage in stages}
    kept = checks(result, rates)
    Console(width=200, highlight=False).print(sweep_table(stages))
    for note in result.stages[0].notes:
        print(f"note: {trace.name}: {note}")
    print("throughput, mean requests per second: " + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))
    for promise, holds in kept.items():
        print(f"{'ok    ' if holds else 'FAILED'} {promise}")
    if options.report:
        options.report.write_text(html_report(stages, title="Azure conversation trace"), encoding="utf-8")
    if options.out:
        write_requests(options.out, stages)
    summary = {"benchmark": "azure_replay", "trace": trace.name, "cpu": platform.processor(), "cores": os.cpu_count(),
               "checks": kept, "throughput_mean_requests_per_s": rates, **result.to_json()}  # fmt: skip
    print(json.dumps(summary, allow_nan=False))
    sys.exit(0 if all(kept.values()) else 1)


if __name__ == "__main__":
    main()
