"""Penstock's server beside other servers on this CPU: the same model, load generator and rates, in turn.

S (25 M parameters, float32) over HTTP, prompts of 256 token ids, 128 out, streamed, Poisson arrivals for 60 s at 2, 8
and 0.9 x capacity requests/s. The capacity is this server's, measured first in a closed loop of 64 users, and all
servers get the same rates; the generator is `penstock bench`, on the same two cores as the server. Reported: TTFT and
TPOT, p50 and p99, the better of the rounds for each; the ratio is the best peer's over ours, so above 1 is better. A
round of three servers takes a quarter of an hour.

Prediction, written before the first run: at 2 requests/s a prompt takes one step of 256 rows, 60 ms, so TTFT p50 70 ms
against vLLM's 78; TPOT is that of steps of 3 sequences, 8 ms against 16.

    python benchmarks/engine_serving.py --servers penstock,vllm --rates 2,8,capacity     the last line is JSON
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from peers import PENSTOCK, Peer, Places, by_name, environment
from processes import end_on_sigterm

ROOT = Path(__file__).parents[1]
FIGURES = ("p50_ttft_ms", "p99_ttft_ms", "p50_tpot_ms", "p99_tpot_ms")
SEQUENCES = 64
PROMPT, OUTPUT = 256, 128
console = Console(stderr=True, highlight=False)


def command(name: str, places: Places, size: str, port: int, threads: int) -> tuple[list[str], Peer]:
    """How a server is started, and whose environment it wants."""
    if name == "penstock":
        model = PENSTOCK.model(places, size, "float32")
        return [
            sys.executable, "-m", "penstock", "serve", "--model.path", str(model), "--server.port", str(port),
            "--policy.max-seqs", str(SEQUENCES), "--memory.kv-bytes", "1GiB",
        ], PENSTOCK  # fmt: skip
    peer = by_name()[name]
    model = peer.model(places, size, peer.dtypes["float32"])
    if name == "vllm":
        # Its package lacks the metadata that `vllm serve` looks for.
        return [
            str(peer.python(places)), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port",
            str(port), "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", str(SEQUENCES),
            "--served-model-name", size,
        ], peer  # fmt: skip
    # 32 places were its best here: with 64 each step pays for the empty ones.
    return [
        str(places.venvs / "llama" / "bin" / "llama-server"), "-m", str(model), "--port", str(port), "-np", "32",
        "-c", str(32 * (PROMPT + OUTPUT + 64)), "-t", str(threads), "-tb", str(threads), "-fa", "on", "--no-webui",
    ], peer  # fmt: skip


@contextlib.contextmanager
def serving(name: str, places: Places, size: str, threads: int, wait_s: float, log: Path) -> Iterator[str]:
    """A server on a free port while the block runs: its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words, peer = command(name, places, size, port, threads)
    settings = environment(peer, places)
    if name == "vllm":
        settings |= {"VLLM_CPU_KVCACHE_SPACE": "3", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_NO_USAGE_STATS": "1",
                     "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=settings, process_group=0)
    url = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    try:
        while True:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{url}/v1/models", timeout=2).status == 200:
                    break
            if process.poll() is not None or time.monotonic() - began > wait_s:
                sys.exit(f"{name} did not come up: see {log}")
            time.sleep(0.2)
        console.print(f"{name} is up after {time.monotonic() - began:.1f} s")
        yield url
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)


def load(url: str, *flags: object) -> dict[str, Any]:
    """`penstock bench` against it."""
    words = [
        sys.executable, "-m", "penstock", "bench", "--url", url, "--json", "--input-tokens", PROMPT, "--output-tokens",
        OUTPUT, "--vocab-size", 15000, *flags,
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        sys.exit(f"penstock bench failed: {done.stderr[-500:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def stage(url: str, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """One stage of Poisson arrivals."""
    count = max(8, round(rate * seconds))
    return load(url, "--rate", f"{rate:.3f}", "--requests", count, "--duration", f"{seconds:g}s", "--seed", seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--servers", default="penstock,vllm,llama.cpp")
    parser.add_argument("--size", default="S")
    parser.add_argument("--rates", default="2,8,capacity", help="requests/s; capacity: 0.9 of ours")
    parser.add_argument("--capacity", type=float, help="requests/s, measured before; default: it is measured")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--wait", type=float, default=300, help="seconds that a server may take to come up")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "engine")
    parser.add_argument("--venvs", type=Path, default=ROOT / "build" / "peers")
    asked = parser.parse_args()
    end_on_sigterm()
    places = Places(asked.models.resolve(), asked.venvs.absolute())
    names = []
    for name in asked.servers.split(","):
        peer = PENSTOCK if name == "penstock" else by_name().get(name)
        why = "no such server" if peer is None else peer.missing(places)
        if why is None:
            names.append(name)
        else:
            console.print(f"[yellow]{name} is left out[/]: {why}{f'; {peer.setup}' if peer else ''}")
    (ROOT / "runs").mkdir(exist_ok=True)
    log = ROOT / "runs" / "engine-serving.log"
    capacity = asked.capacity
    if capacity is None and "capacity" in asked.rates:
        with serving("penstock", places, asked.size, asked.threads, asked.wait, log) as url:
            told = load(url, "--concurrency", SEQUENCES, "--requests", 5 * SEQUENCES)
        capacity = (told["steady_total_token_throughput"] or told["total_token_throughput"]) / (PROMPT + OUTPUT)
        console.print(f"capacity: {capacity:.2f} requests/s")
    rates = [0.9 * (capacity or 0) if text == "capacity" else float(text) for text in asked.rates.split(",")]
    seen: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for number in range(asked.rounds):
        for name in names:
            with serving(name, places, asked.size, asked.threads, asked.wait, log) as url:
                load(url, "--concurrency", 4, "--requests", 8, "--seed", 1000 + number)
                for rate in rates:
                    told = stage(url, rate, asked.seconds, 10 * number)
                    seen.setdefault((rate, name), []).append(told)
                    shown = ", ".join(f"{key} {told[key]:.1f}" for key in FIGURES)
                    console.print(f"round {number + 1}, {rate:.2f}/s, {name}: {told['completed']} done, "
                                  f"{told['failed']} failed, {shown}")  # fmt: skip
    result = summary(seen, rates, names)
    show(result)
    print(json.dumps({"size": asked.size, "capacity": capacity, "seconds": asked.seconds, "rounds": asked.rounds,
                      "cores": os.cpu_count(), "load_after": os.getloadavg()[0], "stages": result}))  # fmt: skip
    sys.exit(0 if all(row["failed"] == 0 for row in result if row["server"] == "penstock") else 1)


def summary(seen: dict[tuple[float, str], list[dict[str, Any]]], rates: list[float], names: list[str]) -> list[Any]:
    """One row per rate and server: each figure's best round, and how ours stands to the best peer's."""
    rows = []
    for rate in rates:
        best = {
            name: {key: min(told[key] for told in seen[rate, name]) for key in FIGURES}
            for name in names if (rate, name) in seen
        }  # fmt: skip
        for name, figures in best.items():
            told = seen[rate, name]
            row: dict[str, Any] = {
                "rate": round(rate, 2), "server": name, "completed": [one["completed"] for one in told],
                "failed": sum(one["failed"] + one["rejected"] for one in told),
                "tokens_per_s": round(max(one["total_token_throughput"] for one in told), 1),
            }  # fmt: skip
            for key in FIGURES:
                row[key] = round(figures[key], 1)
                others = [theirs[key] for other, theirs in best.items() if other != "penstock"]
                if name == "penstock" and others:
                    row[f"ratio_{key}"] = round(min(others) / figures[key], 2)
            rows.append(row)
    return rows


def show(rows: list[Any]) -> None:
    """The table."""
    table = Table(title="ms; in brackets: the best peer's over ours, above 1 is better")
    for column in ("requests/s", "server", "done", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for row in rows:
        cells = [
            f"{row[key]:,.1f}" + (f" ({row[f'ratio_{key}']:.2f})" if f"ratio_{key}" in row else "") for key in FIGURES
        ]
        done = "/".join(map(str, row["completed"])) + (f", {row['failed']} failed" if row["failed"] else "")
        table.add_row(f"{row['rate']:.2f}", row["server"], done, *cells)
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    main()
