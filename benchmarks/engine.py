"""Penstock's engine beside other engines on this CPU: the same random models, the same requests, in turn, in one run.

    offline   64 requests of 256 tokens in, 128 out, at once (8 for L)
    decode    one stream: 8 in, 128 out (64 for L)
    prefix    64 requests of 1,024 shared and 32 own tokens in, 32 out

Each contestant runs in a process of its own per round (A B A B ...), in its own virtual environment, with the same
prompts. Reported: tokens/s of prompt and output together (decode: output alone), best and median of the rounds; the
share of optimal as NanoFlow counts it (tokens/s x 2 x parameters / peak of fp32 matrix products, measured in the same
run); seconds from the start of the process to a loaded model, with its files in memory and, first, without; the largest
memory of its processes. In float32 the first tokens must be those of transformers.
Source of the share: NanoFlow, Zhu et al., OSDI 2025, 3.

Prediction, written before the first run: what the plan of the step leaves to products is 0.8 of its time, and a product
at 512 rows runs at 0.9 of the peak: a share of 0.72 for M in float32, 1.05 times OpenVINO.

    python benchmarks/engine.py --sizes S,M --dtypes float32,int8 --peers openvino,vllm       the last line is JSON
    python benchmarks/engine.py --sizes L --dtypes int8 --kinds offline,decode --peers openvino --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import contest
import models
from peers import HERE, PEERS, PENSTOCK, Peer, Places, by_name, checkpoint, environment
from processes import Outcome, compete, end_on_sigterm, forget_files

ROOT = Path(__file__).parents[1]
OURS = {"float32": ("float32", "float32_compressed"), "int8": ("int8", "int8_weights"), "int4": ("int4",)}
"""What is compared, and what this engine has for it."""
console = Console(stderr=True, highlight=False)


class Bench:
    """All outcomes of a run."""

    def __init__(self, asked: argparse.Namespace, places: Places, folder: Path) -> None:
        self.asked, self.places, self._folder = asked, places, folder
        self.rows: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
        """(size, dtype, kind, contestant) to one entry for each round and repeat."""
        self.loads: dict[tuple[str, str, str], list[float]] = {}
        self.cold: dict[tuple[str, str, str], float] = {}
        self.versions: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.wrong: list[str] = []
        self.peaks: list[float] = []
        self._first: dict[tuple[str, str, int], list[list[int]]] = {}

    def peak(self) -> None:
        """Measure the peak once more: the machine's pace changes."""
        done = subprocess.run([sys.executable, HERE / "peak.py"], capture_output=True, text=True, check=True)
        self.peaks.append(float(done.stdout))

    def turn(self, peer: Peer, size: str, group: str, dtype: str, kinds: list[str], number: int, *, cold: bool) -> None:
        """One process of one contestant."""
        name = peer.name if peer is not PENSTOCK else f"penstock {dtype}" if dtype != group else "penstock"
        path = peer.model(self.places, size, dtype)
        tasks = ",".join(f"{kind}:{self.asked.decode_repeats if kind == 'decode' else 1}" for kind in kinds)
        command = [
            str(peer.python(self.places)), str(HERE / peer.script), "--model", str(path), "--size", size,
            "--dtype", dtype, "--tasks", tasks, "--seed", str(100 * number), "--threads", str(self.asked.threads),
        ]  # fmt: skip
        if self.asked.budget and peer is PENSTOCK:
            command += ["--budget", str(self.asked.budget)]
        if cold:
            forget_files(path, peer.python(self.places).parents[1] / "lib")
        console.print(f"round {number + 1}: {size} {group} {name}: {tasks}{' (cold)' if cold else ''} ...", end=" ")
        log = self._folder / f"{size}-{dtype}-{peer.name}-{number}.log"
        outcome = compete(command, environment(peer, self.places), self.asked.limit, log)
        if outcome.error is not None:
            self.errors[f"{size} {group} {name}"] = outcome.error
        told = [f"{task['kind']} {task['seconds']:.2f} s" for task in outcome.tasks]
        console.print(outcome.error or f"loaded after {outcome.loaded_s:.1f} s; " + ", ".join(told))
        self._keep(peer, name, size, group, outcome, cold=cold)

    def _keep(self, peer: Peer, name: str, size: str, group: str, outcome: Outcome, *, cold: bool) -> None:
        if outcome.loaded_s:
            self.versions[peer.name] = outcome.version
            if cold:
                self.cold[size, group, name] = outcome.loaded_s
            else:
                self.loads.setdefault((size, group, name), []).append(outcome.loaded_s)
        for task in outcome.tasks:
            work = contest.task(task["kind"], size)
            tokens = work.output if task["kind"] == "decode" else work.tokens
            entry = {"tokens_per_s": tokens / task["seconds"], "peak_bytes": task["peak_bytes"],
                     "load": os.getloadavg()[0]}  # fmt: skip
            self.rows.setdefault((size, group, task["kind"], name), []).append(entry)
            if group == "float32" and task["first"] and self.asked.check:
                expected = self.first_tokens(size, task["kind"], task["seed"])
                if task["first"] != expected[: len(task["first"])]:
                    self.wrong.append(f"{name} {size} {task['kind']} seed {task['seed']}")

    def first_tokens(self, size: str, kind: str, seed: int) -> list[list[int]]:
        """Those of transformers; kept beside the model."""
        kept = self.places.models / f"{size}-first-{kind}-{seed}.json"
        if not kept.exists():
            command = [sys.executable, str(HERE / "reference.py"), "--model", str(self.places.checkpoint(size)),
                       "--size", size, "--kind", kind, "--seed", str(seed)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            kept.write_text(done.stdout, encoding="utf-8")
        expected: list[list[int]] = json.loads(kept.read_text(encoding="utf-8"))
        return expected

    def result(self) -> dict[str, Any]:
        """Everything measured, and the ratios."""
        peak = max(self.peaks)
        rows = []
        for (size, group, kind, name), entries in self.rows.items():
            rates = [entry["tokens_per_s"] for entry in entries]
            others = [
                max(entry["tokens_per_s"] for entry in theirs)
                for (s, g, k, other), theirs in self.rows.items()
                if (s, g, k) == (size, group, kind) and not other.startswith("penstock")
            ]
            total = contest.task(kind, size)
            share = max(rates) * 2 * models.parameters(size) / (peak * 1e9)
            if kind == "decode":
                share *= total.tokens / total.output
            rows.append({
                "size": size, "dtype": group, "kind": kind, "contestant": name, "best": round(max(rates), 1),
                "median": round(statistics.median(rates), 1), "runs": len(rates), "share": round(share, 3),
                "load_s": round(min(self.loads.get((size, group, name), [0.0])), 2) or None,
                "cold_load_s": round(self.cold[size, group, name], 2) if (size, group, name) in self.cold else None,
                "peak_mb": round(max(entry["peak_bytes"] for entry in entries) / 1e6),
                "of_best_peer": round(max(rates) / max(others), 3) if others and name.startswith("penstock") else None,
                "machine_load": round(max(entry["load"] for entry in entries), 1),
            })  # fmt: skip
        return {"peak_gflops": peak, "rows": rows, "versions": self.versions, "errors": self.errors,
                "wrong_first_tokens": self.wrong, "cores": os.cpu_count()}  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"fp32 matrix peak {result['peak_gflops']:.0f} GFLOP/s")
    for column in ("size", "dtype", "work", "engine", "tokens/s", "median", "runs", "share", "of the best peer",
                   "load, s", "cold, s", "memory, MB"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("size", "dtype", "work", "engine") else "right")
    before = None
    for row in sorted(result["rows"], key=lambda one: (one["size"] == "L", one["size"], one["dtype"], one["kind"])):
        if before is not None and before != (row["size"], row["dtype"], row["kind"]):
            table.add_section()
        before = (row["size"], row["dtype"], row["kind"])
        table.add_row(
            row["size"], row["dtype"], row["kind"], row["contestant"], f"{row['best']:,.1f}", f"{row['median']:,.1f}",
            str(row["runs"]), f"{row['share']:.2f}", _or_dash(row["of_best_peer"]), _or_dash(row["load_s"]),
            _or_dash(row["cold_load_s"]), f"{row['peak_mb']:,}",
        )  # fmt: skip
    Console(width=150, highlight=False).print(table)
    for what, why in result["errors"].items():
        print(f"failed: {what}: {why}")
    for what in result["wrong_first_tokens"]:
        print(f"first tokens differ from transformers: {what}")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="S,M", help="of S, M, L")
    parser.add_argument("--dtypes", default="float32,int8,int4")
    parser.add_argument("--kinds", default="offline,decode,prefix")
    parser.add_argument("--peers", default=",".join(by_name()), help="'' for none")
    parser.add_argument("--ours", help="only these of our dtypes, such as int8")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--decode-repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--budget", type=int, help="tokens of one of our steps, to try others than the default")
    parser.add_argument(
        "--cold", action=argparse.BooleanOptionalAction,
        help="the first round starts with no file of it in memory; default: where there are several rounds",
    )  # fmt: skip
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare with transformers")
    parser.add_argument("--limit", type=float, default=1200, help="seconds that one process may take")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "engine", help="checkpoints are kept here")
    parser.add_argument("--venvs", type=Path, default=ROOT / "build" / "peers", help="environments of the peers")
    asked = parser.parse_args()
    asked.cold = asked.rounds > 1 if asked.cold is None else asked.cold
    end_on_sigterm()
    places = Places(asked.models.resolve(), asked.venvs.absolute())
    places.models.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in asked.peers.split(",") if name]
    if unknown := set(wanted) - set(by_name()):
        sys.exit(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(by_name())}")
    here = []
    for peer in PEERS:
        why = peer.missing(places)
        if peer.name in wanted and why is None:
            here.append(peer)
        elif peer.name in wanted:
            console.print(f"[yellow]{peer.name} is missing[/] ({why}); in {places.venvs}/{peer.setup}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(asked, places, Path(folder))
        plan = []
        for size in asked.sizes.split(","):
            checkpoint(places, size)
            for group in asked.dtypes.split(","):
                kinds = asked.kinds.split(",")
                ours = [dtype for dtype in OURS[group] if not asked.ours or dtype in asked.ours.split(",")]
                for dtype in ours:
                    plan.append((PENSTOCK, size, group, dtype, kinds))
                for peer in here:
                    theirs = [kind for kind in kinds if kind in peer.kinds]
                    if group in peer.dtypes and theirs:
                        peer.model(places, size, peer.dtypes[group])
                        plan.append((peer, size, group, peer.dtypes[group], theirs))
        for number in range(asked.rounds):
            bench.peak()
            for peer, size, group, dtype, kinds in plan:
                bench.turn(peer, size, group, dtype, kinds, number, cold=asked.cold and number == 0)
        bench.peak()
        result = bench.result()
    show(result)
    print(json.dumps(result))
    sys.exit(
        1 if result["wrong_first_tokens"] or any(what.split()[2] == "penstock" for what in result["errors"]) else 0
    )


if __name__ == "__main__":
    main()
