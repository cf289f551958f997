"""Vidur's schedule and this one, pass by pass, and what each costs: the same requests, tables and settings.

Vidur (Agrawal et al., MLSys 2024) runs in a Python of its own, unchanged (tests/goldens/vidur/record.py): CodeLlama-34B
on two A100s, Sarathi's scheduler; `ample` memory, where budget and batch bind, and `tight` memory, where admission
waits for blocks. The requests of the goldens are drawn; those of a run made here are the first of the Azure
conversation trace. Then the control plane runs on the twin with Vidur's tables for a price. Both are timed in CPU
seconds without reading files and training: Vidur's event loop with its metrics off, and ours from the making of the
first request to the last end, the better of two runs, without the garbage collector as in `penstock simulate`.

Prediction, written before the first run: no pass differs, times agree to the last bit; 10 times Vidur's requests a
second or more, since Vidur touches every running request in every pass and we only those that change.

    python benchmarks/vidur_schedule.py --vidur CHECKOUT --vidur-python PYTHON [--requests 10000] [--setup ample]
    python benchmarks/vidur_schedule.py                     the committed goldens only, and no speed of Vidur's

CHECKOUT is microsoft/vidur; PYTHON has numpy, pandas, scikit-learn, ddsketch, fasteners and pyarrow. Without
../shared/data (trace and profiles) only the goldens run. The last line is JSON; exit 1 if anything differs.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penstock.control.step import Step, Update  # noqa: E402
from penstock.runtime.instance import Instance  # noqa: E402
from penstock.twin.twin import Row  # noqa: E402
from tests.goldens.vidur.compare import Golden, Watch, differences, instance, run  # noqa: E402

GOLDENS = ROOT / "tests" / "goldens" / "vidur"
DATA = ROOT.parent / "shared" / "data"


class Times:
    """What a simulation cannot do without: when each request got its first token and its last."""

    def __init__(self, requests: int) -> None:
        self.first, self.completed = [0.0] * requests, [0.0] * requests
        self.passes = 0

    def stepped(self, instance: Instance, step: Step, started: float, ended: float) -> None:
        self.passes += 1

    def coasted(self, instance: Instance, started: float, ends: Sequence[float]) -> None:
        self.passes += len(ends)

    def first_token(self, row: Row, now: float) -> None:
        self.first[row.index] = now

    def ended(self, row: Row, update: Update, now: float) -> None:
        self.completed[row.index] = now


def vidur(options: argparse.Namespace, setup: str, work: Path) -> Path:
    """Let Vidur run; returns the file of its passes."""
    out = work / f"{setup}_{options.requests}.npz"
    command = [options.vidur_python, str(GOLDENS / "record.py"), "--vidur", str(options.vidur), "--setup", setup,
               "--azure", str(options.requests), "--full", "--work", str(work), "--out", str(out)]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=None if options.verbose else subprocess.PIPE)
    return out


def score(golden: Golden) -> dict[str, Any]:
    """Both schedules, compared."""
    requests = len(golden.arrival_s)
    watch = Watch(requests)
    run(golden, instance(golden, watch))
    said, most = differences(golden.passes, watch.passes())
    gc.collect()
    gc.disable()
    seconds = min(run(golden, instance(golden, Times(requests))) for _ in range(2))
    gc.enable()
    theirs = golden.about.get("vidur_cpu_s")
    return {
        "requests": requests, "passes": len(watch.ends), "vidur_passes": len(golden.passes.end_s),
        "evictions": len(watch.evictions), "differences": said, "largest_time_difference_s": most,
        "mean_batch": float(np.mean(golden.passes.requests)), "requests_per_cpu_s": requests / seconds,
        "passes_per_cpu_s": len(watch.ends) / seconds,
        "vidur_requests_per_cpu_s": None if theirs is None else requests / theirs,
        "times_faster": None if theirs is None else theirs / seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vidur", type=Path, help="a checkout of microsoft/vidur")
    parser.add_argument("--vidur-python", default=sys.executable, help="interpreter for it; default: this one")
    parser.add_argument("--requests", type=int, default=10_000, help="so many of the Azure trace, through Vidur")
    parser.add_argument("--setup", choices=("ample", "tight"), action="append")
    parser.add_argument("--work", type=Path, help="keep Vidur's caches here, so that it trains only once")
    parser.add_argument("--verbose", action="store_true", help="show what Vidur says")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    setups = options.setup or ["ample", "tight"]
    for path in sorted(GOLDENS.glob("*.npz")):
        rows[f"golden {path.stem}"] = score(Golden.read(path))
    if options.vidur is not None and (DATA / "vidur-profiles").exists() and (DATA / "azure-llm-2023").exists():
        with tempfile.TemporaryDirectory() as temporary:
            work = options.work or Path(temporary)
            for setup in setups:
                print(f"Vidur, {setup}, {options.requests} requests ...", file=sys.stderr, flush=True)
                rows[f"Vidur {setup}"] = score(Golden.read(vidur(options, setup, work), work / "cache"))
    else:
        print("no --vidur, or no ../shared/data: the committed goldens only", file=sys.stderr)
    table = Table("run", "requests", "passes", "mean batch", "differences", "largest time difference, s",
                  "requests/CPU s", "Vidur's", "times", title="The schedule of Vidur, made here")  # fmt: skip
    for name, row in rows.items():
        theirs, times = row["vidur_requests_per_cpu_s"], row["times_faster"]
        table.add_row(name, str(row["requests"]), str(row["passes"]), f"{row['mean_batch']:.1f}",
                      "; ".join(row["differences"]) or "none", f"{row['largest_time_difference_s']:.1e}",
                      f"{row['requests_per_cpu_s']:,.0f}", "-" if theirs is None else f"{theirs:,.0f}",
                      "-" if times is None else f"{times:.0f}")  # fmt: skip
    Console(width=160, highlight=False).print(table)
    print(json.dumps({"benchmark": "vidur_schedule", "runs": rows}))
    sys.exit(1 if any(row["differences"] for row in rows.values()) else 0)


if __name__ == "__main__":
    main()
