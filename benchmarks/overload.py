"""Three times too much work for five minutes, from one of two tenants: what the other one sees, and what is promised.

Starts `penstock serve` with two keys and fair share, then runs stages against it:

    alone      the quiet tenant by itself: its p99 TTFT without load
    peak       the flooding tenant in closed loop with 24 clients, more than there are places: what the server can do
    flood      the flooding tenant sends three times as many requests per second as that, at random moments, while the
               quiet one goes on as before. One in four refused requests comes back when it was told, the others give up
    crowd      the flooding tenant has three times as many clients as the server has places; all of them come back when
               they were told, until they are served; one in ten comes too early, at 60 % of the time it was told.
               The first 8 seconds, in which they all come at once, are not counted

Peak and flood take turns, peak first and last; in between the queue runs empty, and who was told to come back gives up.
A machine's pace drifts by more than the 5 % that are asked about, so each flood is compared with the two peaks around
it. The requests per second of all floods over the best of all peaks are printed as well, and the work per second of
the worker's CPU time, which other programs that take its core do not change.

Checked: throughput of the floods is within 5 % of the peaks around them (mean over the turns); in `flood` and `crowd`
the quiet tenant's p99 TTFT is within 2x of what it is alone, nothing of the quiet tenant is refused, and 90 % of the
refused for whom a place was kept were told a time that was right within 30 %: come back then, they were let in. Who
comes too early must be refused again, or the time was too long. Beyond 60 s no place is kept; the rows count those as
well. Of a flood's last 15 seconds no time that was told is judged, nor what would come true after its end.

Work is counted in mean requests of the flood: half for prompt tokens read, half for output tokens written. The quiet
tenant's prompts are long beside a step, so that its own work and not the step under way is most of its TTFT.

Prediction, written before the first run: throughput within 3 %, p99 TTFT 1.6x, 95 % of the times right. Before the
first run with turns: 0.96 of the peaks around (a refusal takes 1.3 ms of the front end, which shares the cores with
the worker). Last figures: RESULTS.md.

    python benchmarks/overload.py                                                # 5 minutes of flood, 9 in all
    python benchmarks/overload.py --seconds 40 --turns 2 --alone 15 --stage 8 --crowd-seconds 10     # a look

The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import yaml
from overload_judged import of_the_peaks_around, row, shown, together, verdicts
from overload_stages import PLACES, QUEUE, stages
from overload_tenants import Stage
from rich.console import Console
from serving import ROOT, serving

from penstock.workload.client import run_async


def two_tenants(token_budget: int) -> Path:
    """The deployment file: one thread, few places, fair share, a key for each tenant."""
    keys = [
        {"name": name, "hash": f"sha256:{hashlib.sha256(f'key-of-{name}'.encode()).hexdigest()}"}
        for name in ("flood", "quiet")
    ]
    deployment = {
        "hardware": {"threads": 1},
        "policy": {"order": "fair_share", "max_seqs": PLACES, "token_budget": token_budget},
        "server": {"keys": keys, "queue": {"max_requests": QUEUE}},
    }
    runs = ROOT / "runs"
    runs.mkdir(exist_ok=True)
    file = runs / "overload.yaml"
    file.write_text(yaml.safe_dump(deployment))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="length of all floods together")
    parser.add_argument("--turns", type=int, default=4, help="floods, each between two peaks")
    parser.add_argument("--crowd-seconds", type=float, default=20.0)
    parser.add_argument("--alone", type=float, default=45.0, help="seconds of the quiet tenant by itself")
    parser.add_argument("--stage", type=float, default=15.0, help="length of each peak stage")
    parser.add_argument("--times", type=float, default=3.0, help="load over what the server can do")
    parser.add_argument("--quiet-rate", type=float, default=0.7, help="requests/s of the quiet tenant")
    parser.add_argument("--token-budget", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    with serving("overload", "-f", str(two_tenants(arguments.token_budget))) as server:
        found = run_async(lambda: stages(server.url, server.process.pid, arguments, console))
    alone, crowd = found[0], found[-1]
    peaks = [stage for stage in found if stage.name.startswith("peak")]
    flood = together("all floods", [stage for stage in found if stage.name.startswith("flood")])
    peak = max(stage.throughput() for stage in peaks)
    paired, paired_error = of_the_peaks_around(found, Stage.throughput)
    per_cpu, per_cpu_error = of_the_peaks_around(found, Stage.per_cpu)
    rows = [row(stage, peak, alone) for stage in (*found[:-1], together("all peaks", peaks), flood, crowd)]
    Console(highlight=False, width=150).print(shown(rows, arguments.times))
    print(f"floods of the peaks around them: {paired:.3f} +- {paired_error:.3f} in requests/s, "
          f"{per_cpu:.3f} +- {per_cpu_error:.3f} per second of the worker's CPU")  # fmt: skip
    print(f"floods of the best peak: {flood.throughput() / peak:.3f}; of all peaks: "
          f"{flood.throughput() / together('', peaks).throughput():.3f}")  # fmt: skip
    checks = verdicts(rows, paired)
    for name, holds in checks.items():
        print(f"{'holds' if holds else 'FAILS'}: {name}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    print(
        json.dumps(
            {
                "benchmark": "overload", "commit": commit.stdout.strip(), "peak_requests_per_s": round(peak, 3),
                "floods_of_peaks_around": [round(paired, 4), round(paired_error, 4)],
                "per_worker_cpu": [round(per_cpu, 4), round(per_cpu_error, 4)],
                "rows": rows, "checks": checks, "machine": platform.platform(), "cores": os.cpu_count(),
                "load_before": os.getloadavg()[0], "arguments": vars(arguments),
            }
        )
    )  # fmt: skip
    sys.exit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
