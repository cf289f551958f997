"""Three times too much work for five minutes, from one of two tenants: what the other one sees, and what is promised.

Starts `penstock serve` with two keys and fair share, then runs four stages against it:

    alone      the quiet tenant by itself: its p99 TTFT without load
    peak       the flooding tenant in closed loop at several concurrencies: the best throughput of all
    flood      the flooding tenant sends three times as many requests per second as the server can do, at random
               moments, while the quiet one goes on as before. One in four refused requests comes back when it was
               told, the others give up
    crowd      the flooding tenant has three times as many clients as the server has places; all of them come back when
               they were told, until they are served; one in ten comes too early, at 60 % of the time it was told.
               The first 8 seconds, in which they all come at once, are not counted

Checked: in `flood` and `crowd` throughput is within 5 % of the peak, the quiet tenant's p99 TTFT within 2x of what it
is alone, nothing of the quiet tenant is refused, and 90 % of the refused for whom a place was kept were told a time
that was right within 30 %: come back then, they were let in. Who comes too early must be refused
again, or the time was too long. Beyond 60 s no place is kept; the rows count those as well.

Work is counted in mean requests of the flood: half for prompt tokens read, half for output tokens written. The quiet
tenant's prompts are long beside a step, so that its own work and not the step under way is most of its TTFT.

Prediction, written before the first run: throughput within 3 %, p99 TTFT 1.6x, 95 % of the times right. Last figures:
RESULTS.md. It needs both cores: beside other work the peak stages alone differ by a fifth.

    python benchmarks/overload.py                                        # 5 minutes of flood, 8 minutes in all
    python benchmarks/overload.py --seconds 30 --alone 20 --stage 8      # a look

The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from penstock.workload.client import Answer, Client, Target, run_async

ROOT = Path(__file__).parents[1]
VOCABULARY = 1000  # ids 4 to 1003 of the model in the box are ordinary text
PLACES, QUEUE = 16, 64
FLOOD_PROMPT, FLOOD_OUTPUT = 64, 48
QUIET_PROMPT, QUIET_OUTPUT = 1536, 8
COME_BACK, EARLY, EARLY_AT = 0.25, 0.1, 0.6
TRIES = 4


@dataclass
class Refusal:
    """What one request was told the first time, and when it was let in; None: not within its tries."""

    told_s: float
    place_kept: bool
    early: bool
    let_in_s: float | None = None

    @property
    def right(self) -> bool:
        return self.let_in_s is not None and abs(self.let_in_s - self.told_s) <= 0.3 * self.told_s + 0.02


@dataclass
class Stage:
    """What happened; times are of perf_counter."""

    name: str
    begin: float = 0.0
    end: float = 0.0
    flood_done: list[float] = field(default_factory=list)
    quiet_done: list[float] = field(default_factory=list)
    quiet_ttft: list[float] = field(default_factory=list)
    quiet_failed: list[str] = field(default_factory=list)
    flood_failed: list[str] = field(default_factory=list)
    sent: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)
    """Share of a core that each process took."""

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def throughput(self) -> float:
        """Work per second between begin and end, in mean requests of the flood."""
        flood = sum(self.begin <= at < self.end for at in self.flood_done)
        quiet = sum(self.begin <= at < self.end for at in self.quiet_done)
        return (flood + quiet * (QUIET_PROMPT / FLOOD_PROMPT + QUIET_OUTPUT / FLOOD_OUTPUT) / 2) / self.seconds


class Tenants:
    """Both tenants' clients, and the requests they send."""

    def __init__(self, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.flood = Client(Target.parse(url, "key-of-flood"), max_connections=2000, timeout_s=300)
        self.quiet = Client(Target.parse(url, "key-of-quiet"), timeout_s=300)

    def body(self, prompt: int, output: int) -> bytes:
        ids = [4 + self.random.randrange(VOCABULARY) for _ in range(prompt)]
        return json.dumps(
            {"model": "millrace", "prompt": ids, "max_tokens": output, "ignore_eos": True, "temperature": 0,
             "stream": True, "stream_options": {"include_usage": True}}
        ).encode()  # fmt: skip

    async def ask_flood(self, stage: Stage, *, comes_back: bool, tries: int) -> Answer:
        """One request of the flood, and its returns."""
        body = self.body(FLOOD_PROMPT, FLOOD_OUTPUT)
        told: Refusal | None = None
        first = 0.0
        for attempt in range(tries):
            stage.sent += 1
            answer = await self.flood.send("/v1/completions", body)
            if answer.status != 429:
                break
            stage.refused += 1
            wait_s = answer.retry_after_s or 1.0
            if told is None:
                details = json.loads(answer.body)["error"]["details"]
                early = comes_back and self.random.random() < EARLY
                told, first = Refusal(wait_s, details["place_kept"], early), answer.end_s
                if comes_back and stage.begin <= answer.end_s < stage.end:
                    stage.refusals.append(told)
                if early:
                    wait_s *= EARLY_AT
            if not comes_back or attempt == tries - 1:
                return answer
            await asyncio.sleep(max(answer.end_s + wait_s - time.perf_counter(), 0.0))
        if answer.done and not answer.error:
            stage.flood_done.append(answer.end_s)
            if told is not None:
                told.let_in_s = answer.sent_s - first
        else:
            stage.flood_failed.append(f"{answer.status} {answer.error or answer.body[:200]!r}")
        return answer

    async def ask_quiet(self, stage: Stage) -> None:
        answer = await self.quiet.send("/v1/completions", self.body(QUIET_PROMPT, QUIET_OUTPUT))
        if answer.done and answer.token_s:
            stage.quiet_done.append(answer.end_s)
            stage.quiet_ttft.append(answer.token_s[0] - answer.asked_s)
        else:
            stage.quiet_failed.append(f"{answer.status} {answer.error or answer.body[:200]!r}")


async def at_random(rate: float, until: float, rng: random.Random, ask: Callable[[], Awaitable[Any]]) -> None:
    """Poisson arrivals until then; returns when all are answered."""
    tasks: set[asyncio.Task[Any]] = set()
    at = time.perf_counter()
    while (at := at + rng.expovariate(rate)) < until:
        await asyncio.sleep(max(at - time.perf_counter(), 0.0))
        task = asyncio.ensure_future(ask())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def in_turn(until: float, ask: Callable[[], Awaitable[Any]]) -> None:
    while time.perf_counter() < until:
        await ask()


async def run_stage(
    tenants: Tenants, pid: int, name: str, seconds: float, *, quiet_rate: float, flood_rate: float = 0.0,
    clients: int = 0, comes_back: float = 0.0, warm_s: float = 3.0,
) -> Stage:  # fmt: skip
    """Both tenants for so long; the first seconds are not counted."""
    stage = Stage(name)
    now = time.perf_counter()
    until = now + warm_s + seconds
    stage.begin, stage.end = now + warm_s, until
    rng = random.Random(f"{name} {seconds}")
    quiet_rng, flood_rng = random.Random("quiet"), random.Random("flood")
    work: list[Awaitable[Any]] = []
    if quiet_rate:
        work.append(at_random(quiet_rate, until, quiet_rng, lambda: tenants.ask_quiet(stage)))
    if flood_rate:

        async def ask() -> None:
            back = rng.random() < comes_back
            await tenants.ask_flood(stage, comes_back=back, tries=TRIES)

        work.append(at_random(flood_rate, until, flood_rng, ask))

    async def one() -> None:
        await tenants.ask_flood(stage, comes_back=True, tries=1000)

    work += [in_turn(until, one) for _ in range(clients)]
    before, began = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*work)
    took = time.perf_counter() - began
    stage.cpu = {name: round((after - before[name]) / took, 3) for name, after in cpu_seconds(pid).items()}
    return stage


def cpu_seconds(pid: int) -> dict[str, float]:
    """Of this process, the front end and its worker (the busiest of its children)."""
    times = [process.cpu_times() for process in psutil.Process(pid).children(recursive=True)]
    own, front = psutil.Process().cpu_times(), psutil.Process(pid).cpu_times()
    return {
        "clients": own.user + own.system, "front end": front.user + front.system,
        "worker": max((one.user + one.system for one in times), default=0.0),
    }  # fmt: skip


async def stages(url: str, pid: int, arguments: argparse.Namespace, console: Console) -> tuple[list[Stage], float]:
    """All of them, and the best throughput of the peak stages."""
    tenants = Tenants(url, arguments.seed)

    async def run(name: str, seconds: float, **more: Any) -> Stage:
        stage = await run_stage(tenants, pid, name, seconds, quiet_rate=arguments.quiet_rate, **more)
        console.print(json.dumps(row(stage, 1.0, stage)))  # what a run that is cut short leaves
        return stage

    await run("warm", 3, clients=PLACES)
    done = [await run("alone", arguments.alone)]
    console.print(f"alone: p99 TTFT {p99(done[0].quiet_ttft) * 1e3:.0f} ms of {len(done[0].quiet_ttft)}")
    for clients in (PLACES * 3 // 2, PLACES * 2):
        done.append(await run(f"peak, {clients} clients", arguments.stage, clients=clients))
        console.print(f"{done[-1].name}: {done[-1].throughput():.2f} requests/s")
    peak = max(stage.throughput() for stage in done[1:])
    rate = arguments.times * peak
    console.print(f"flood: {rate:.1f} requests/s for {arguments.seconds:g} s")
    done.append(await run("flood", arguments.seconds, flood_rate=rate, comes_back=COME_BACK))
    crowd = round(arguments.times * (PLACES + QUEUE * 0.8))
    console.print(f"crowd: {crowd} clients for {arguments.crowd_seconds:g} s")
    done.append(await run("crowd", arguments.crowd_seconds, clients=crowd, warm_s=8.0))
    tenants.flood.close()
    tenants.quiet.close()
    return done, peak


def p99(values: list[float]) -> float:
    """The largest where there are too few for a percentile."""
    if len(values) < 2:
        return float("nan")
    return min(quantiles(values, n=100)[98], max(values))


def row(stage: Stage, peak: float, alone: Stage) -> dict[str, Any]:
    """A stage as numbers."""
    told = [one for one in stage.refusals if not one.early]
    early = [one for one in stage.refusals if one.early]
    kept = [one for one in told if one.place_kept]
    return {
        "stage": stage.name, "seconds": round(stage.seconds, 1),
        "requests_per_s": round(stage.throughput(), 3), "of_peak": round(stage.throughput() / peak, 4),
        "sent": stage.sent, "refused": stage.refused, "flood_done": len(stage.flood_done),
        "quiet_done": len(stage.quiet_done), "quiet_ttft_ms": {
            "p50": round(median(stage.quiet_ttft) * 1e3, 1) if stage.quiet_ttft else None,
            "p99": round(p99(stage.quiet_ttft) * 1e3, 1),
        },
        "quiet_p99_of_alone": round(p99(stage.quiet_ttft) / p99(alone.quiet_ttft), 3),
        "quiet_p50_of_alone": round(median(stage.quiet_ttft or [0.0]) / median(alone.quiet_ttft or [1.0]), 3),
        "told": len(told), "told_right": round(sum(one.right for one in told) / len(told), 4) if told else None,
        "place_kept": len(kept), "kept_right": round(sum(one.right for one in kept) / len(kept), 4) if kept else None,
        "told_s_p50": round(median(one.told_s for one in told), 3) if told else None,
        "told_s_max": round(max((one.told_s for one in told), default=0.0), 3),
        "early": len(early),
        "early_let_in": sum(one.let_in_s is not None and one.let_in_s < 0.7 * one.told_s for one in early),
        "cpu": stage.cpu, "quiet_failed": len(stage.quiet_failed), "flood_failed": len(stage.flood_failed),
        "failures": sorted({*stage.quiet_failed, *stage.flood_failed})[:5],
    }  # fmt: skip


@contextmanager
def served(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """A server with two tenants."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = ROOT / "runs"
    runs.mkdir(exist_ok=True)
    keys = [
        {"name": name, "hash": f"sha256:{hashlib.sha256(f'key-of-{name}'.encode()).hexdigest()}"}
        for name in ("flood", "quiet")
    ]
    deployment = {
        "hardware": {"threads": 1},
        "policy": {"order": "fair_share", "max_seqs": PLACES, "token_budget": arguments.token_budget},
        "server": {"port": port, "keys": keys, "queue": {"max_requests": QUEUE}},
    }
    file = runs / "overload.yaml"
    file.write_text(yaml.safe_dump(deployment))
    with (runs / "overload.log").open("wb") as log:
        command = [Path(sys.executable).parent / "penstock", "serve", "-f", file]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        headers = {"authorization": "Bearer key-of-quiet"}
        while True:
            try:
                if httpx.get(f"{url}/ready", headers=headers, timeout=1, trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                if process.poll() is not None:
                    raise SystemExit("the server ended: see runs/overload.log") from None
            time.sleep(0.05)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the flood")
    parser.add_argument("--crowd-seconds", type=float, default=30.0)
    parser.add_argument("--alone", type=float, default=60.0, help="seconds of the quiet tenant by itself")
    parser.add_argument("--stage", type=float, default=15.0, help="length of each peak stage")
    parser.add_argument("--times", type=float, default=3.0, help="load over what the server can do")
    parser.add_argument("--quiet-rate", type=float, default=0.7, help="requests/s of the quiet tenant")
    parser.add_argument("--token-budget", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    with served(arguments) as (url, pid):
        found, peak = run_async(lambda: stages(url, pid, arguments, console))
    alone = found[0]
    rows = [row(stage, peak, alone) for stage in found]
    table = Table(title=f"Two tenants, one of which floods {arguments.times:g}x")
    for name in ("stage", "requests/s", "of peak", "sent", "refused", "quiet p50 / p99 TTFT", "of alone", "told right",
                 "told p50 (max)", "early in"):  # fmt: skip
        table.add_column(name)
    for one in rows:
        right = "" if one["told_right"] is None else f"{one['told_right']:.1%} of {one['told']}"
        told = "" if one["told_s_p50"] is None else f"{one['told_s_p50']:.2f} ({one['told_s_max']:.1f}) s"
        times = one["quiet_ttft_ms"]
        table.add_row(
            one["stage"], f"{one['requests_per_s']:.2f}", f"{one['of_peak']:.1%}", str(one["sent"]),
            str(one["refused"]),
            f"{times['p50']} / {times['p99']} ms", f"{one['quiet_p99_of_alone']:.2f}x", right, told,
            f"{one['early_let_in']} of {one['early']}",
        )  # fmt: skip
    Console(highlight=False, width=150).print(table)
    loaded = [one for one in rows if one["stage"] in ("flood", "crowd")]
    checks = {
        "throughput within 5 % of peak": all(one["of_peak"] >= 0.95 for one in loaded),
        "quiet p99 TTFT within 2x": all(one["quiet_p99_of_alone"] <= 2.0 for one in loaded),
        "Retry-After right within 30 % for 90 % of the places kept": all(
            (one["kept_right"] or 0) >= 0.9 for one in loaded
        ),
        "nobody failed, nothing quiet refused": all(one["quiet_failed"] + one["flood_failed"] == 0 for one in rows),
    }
    for name, holds in checks.items():
        print(f"{'holds' if holds else 'FAILS'}: {name}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    print(
        json.dumps(
            {
                "benchmark": "overload", "commit": commit.stdout.strip(), "peak_requests_per_s": round(peak, 3),
                "rows": rows, "checks": checks, "machine": platform.platform(), "cores": os.cpu_count(),
                "load_before": os.getloadavg()[0], "arguments": vars(arguments),
            }
        )
    )  # fmt: skip
    sys.exit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
