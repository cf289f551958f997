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
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, quantiles, stdev
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
CROWDED = PLACES * 3 // 2
WARM_S, TOLD_END_S = 3.0, 15.0


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
    flood_done: int = 0
    quiet_done: int = 0
    """Answers that ended in this stage, whichever asked."""
    quiet_ttft: list[float] = field(default_factory=list)
    quiet_failed: list[str] = field(default_factory=list)
    flood_failed: list[str] = field(default_factory=list)
    sent: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    unjudged_s: float = 0.0
    """What is told in the last seconds is not judged."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Share of a core that each process took from begin to end."""

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def throughput(self) -> float:
        """Work per second between begin and end, in mean requests of the flood."""
        quiet = self.quiet_done * (QUIET_PROMPT / FLOOD_PROMPT + QUIET_OUTPUT / FLOOD_OUTPUT) / 2
        return (self.flood_done + quiet) / self.seconds

    def per_cpu(self) -> float:
        """The same per second of the worker's CPU time."""
        return self.throughput() / self.cpu["worker"]


class Tenants:
    """Both tenants' clients, and the requests they send."""

    def __init__(self, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.flood = Client(Target.parse(url, "key-of-flood"), max_connections=2000, timeout_s=300)
        self.quiet = Client(Target.parse(url, "key-of-quiet"), timeout_s=300)
        self.flood_done: list[float] = []
        self.quiet_done: list[float] = []
        """When answers ended, of all stages."""
        self.open: set[asyncio.Task[Any]] = set()
        """Requests under way, also of stages before."""
        self.closing = asyncio.Event()
        """Nobody comes back any more."""

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self.open.add(task)
        task.add_done_callback(self.open.discard)

    async def settle(self) -> None:
        """All that was asked is answered. Raises what a client raised."""
        while self.open:
            await asyncio.gather(*self.open)

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
                if comes_back and stage.begin <= answer.end_s < stage.end - stage.unjudged_s:
                    stage.refusals.append(told)
                if early:
                    wait_s *= EARLY_AT
            if not comes_back or attempt == tries - 1:
                return answer
            try:
                await asyncio.wait_for(self.closing.wait(), max(answer.end_s + wait_s - time.perf_counter(), 0.0))
            except TimeoutError:
                continue
            if told in stage.refusals:  # nobody will know whether that was right
                stage.refusals.remove(told)
            return answer
        if answer.done and not answer.error:
            self.flood_done.append(answer.end_s)
            if told is not None:
                told.let_in_s = answer.sent_s - first
        else:
            stage.flood_failed.append(f"{answer.status} {answer.error or answer.body[:200]!r}")
        return answer

    async def ask_quiet(self, stage: Stage) -> None:
        answer = await self.quiet.send("/v1/completions", self.body(QUIET_PROMPT, QUIET_OUTPUT))
        if answer.done and answer.token_s:
            self.quiet_done.append(answer.end_s)
            stage.quiet_ttft.append(answer.token_s[0] - answer.asked_s)
        else:
            stage.quiet_failed.append(f"{answer.status} {answer.error or answer.body[:200]!r}")


async def at_random(
    tenants: Tenants, rate: float, until: float, rng: random.Random, ask: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    """Poisson arrivals until then; what was asked goes on."""
    at = time.perf_counter()
    while (at := at + rng.expovariate(rate)) < until:
        await asyncio.sleep(max(at - time.perf_counter(), 0.0))
        tenants.start(ask())


async def in_turn(until: float, ask: Callable[[], Awaitable[Any]]) -> None:
    while time.perf_counter() < until:
        await ask()


async def run_stage(
    tenants: Tenants, pid: int, name: str, seconds: float, *, quiet_rate: float, flood_rate: float = 0.0,
    clients: int = 0, comes_back: float = 0.0, warm_s: float = WARM_S, unjudged_s: float = 0.0,
) -> Stage:  # fmt: skip
    """Both tenants for so long; the first seconds are not counted. Requests under way at its end are left to go on."""
    stage = Stage(name, unjudged_s=unjudged_s)
    now = time.perf_counter()
    stage.begin, stage.end = now + warm_s, now + warm_s + seconds
    rng, quiet_rng, flood_rng = random.Random(name), random.Random(f"quiet {name}"), random.Random(f"flood {name}")

    async def flood() -> None:
        back = rng.random() < comes_back
        await tenants.ask_flood(stage, comes_back=back, tries=TRIES)

    async def one() -> None:
        await tenants.ask_flood(stage, comes_back=True, tries=1000)

    if quiet_rate:
        tenants.start(at_random(tenants, quiet_rate, stage.end, quiet_rng, lambda: tenants.ask_quiet(stage)))
    if flood_rate:
        tenants.start(at_random(tenants, flood_rate, stage.end, flood_rng, flood))
    for _ in range(clients):
        tenants.start(in_turn(stage.end, one))
    await asyncio.sleep(warm_s)
    before, stage.begin = cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(max(stage.end - time.perf_counter(), 0.0))
    after, stage.end = cpu_seconds(pid), time.perf_counter()
    stage.cpu = {name: round((after[name] - before[name]) / stage.seconds, 4) for name in after}
    stage.flood_done = sum(stage.begin <= at < stage.end for at in tenants.flood_done)
    stage.quiet_done = sum(stage.begin <= at < stage.end for at in tenants.quiet_done)
    return stage


def cpu_seconds(pid: int) -> dict[str, float]:
    """Of this process, the front end and its worker (the busiest of its children)."""
    times = [process.cpu_times() for process in psutil.Process(pid).children(recursive=True)]
    own, front = psutil.Process().cpu_times(), psutil.Process(pid).cpu_times()
    return {
        "clients": own.user + own.system, "front end": front.user + front.system,
        "worker": max((one.user + one.system for one in times), default=0.0),
    }  # fmt: skip


async def stages(url: str, pid: int, arguments: argparse.Namespace, console: Console) -> list[Stage]:
    """All of them: alone, peak, flood, peak, ..., peak, crowd."""
    tenants = Tenants(url, arguments.seed)

    async def run(name: str, seconds: float, **more: Any) -> Stage:
        stage = await run_stage(tenants, pid, name, seconds, quiet_rate=arguments.quiet_rate, **more)
        console.print(f"{name}: {stage.throughput():.2f} requests/s, {stage.refused} refused, cores {stage.cpu}")
        return stage

    await run("warm", 3, clients=PLACES)
    await tenants.settle()
    done = [await run("alone", arguments.alone)]
    await tenants.settle()
    done.append(await run("peak 0", arguments.stage, clients=CROWDED))
    rate = arguments.times * done[-1].throughput()
    console.print(f"a flood is {rate:.1f} requests/s")
    for turn in range(1, arguments.turns + 1):
        seconds = arguments.seconds / arguments.turns
        flood: dict[str, Any] = {
            "flood_rate": rate,
            "comes_back": COME_BACK,
            "unjudged_s": min(TOLD_END_S, seconds / 4),
        }
        done.append(await run(f"flood {turn}", seconds, **flood))
        tenants.closing.set()
        await tenants.settle()
        tenants.closing.clear()
        done.append(await run(f"peak {turn}", arguments.stage, clients=CROWDED))
    await tenants.settle()
    crowd = round(arguments.times * (PLACES + QUEUE * 0.8))
    done.append(await run(f"crowd of {crowd}", arguments.crowd_seconds, clients=crowd, warm_s=8.0))
    await tenants.settle()
    tenants.flood.close()
    tenants.quiet.close()
    return done


def together(name: str, parts: list[Stage]) -> Stage:
    """Several stages as one that is as long as all of them."""
    seconds = sum(part.seconds for part in parts)
    return Stage(
        name, 0.0, seconds, sum(part.flood_done for part in parts), sum(part.quiet_done for part in parts),
        *([one for part in parts for one in getattr(part, which)]
          for which in ("quiet_ttft", "quiet_failed", "flood_failed")),
        sum(part.sent for part in parts), sum(part.refused for part in parts),
        [one for part in parts for one in part.refusals],
        cpu={who: round(sum(part.cpu[who] * part.seconds for part in parts) / seconds, 4) for who in parts[0].cpu},
    )  # fmt: skip


def of_the_peaks_around(found: list[Stage], measure: Callable[[Stage], float]) -> tuple[float, float]:
    """Each flood over the mean of the two peaks beside it: mean of the turns, and its standard error."""
    ratios = [
        2 * measure(stage) / (measure(found[at - 1]) + measure(found[at + 1]))
        for at, stage in enumerate(found) if stage.name.startswith("flood")
    ]  # fmt: skip
    return mean(ratios), stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")


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
        "sent": stage.sent, "refused": stage.refused, "flood_done": stage.flood_done,
        "quiet_done": stage.quiet_done, "quiet_ttft_ms": {
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
    with served(arguments) as (url, pid):
        found = run_async(lambda: stages(url, pid, arguments, console))
    alone, crowd = found[0], found[-1]
    peaks = [stage for stage in found if stage.name.startswith("peak")]
    flood = together("all floods", [stage for stage in found if stage.name.startswith("flood")])
    peak = max(stage.throughput() for stage in peaks)
    paired, paired_error = of_the_peaks_around(found, Stage.throughput)
    per_cpu, per_cpu_error = of_the_peaks_around(found, Stage.per_cpu)
    rows = [row(stage, peak, alone) for stage in (*found[:-1], together("all peaks", peaks), flood, crowd)]
    table = Table(title=f"Two tenants, one of which floods {arguments.times:g}x")
    for name in ("stage", "requests/s", "of best peak", "sent", "refused", "quiet p50 / p99 TTFT", "of alone",
                 "told right", "told p50 (max)", "early in"):  # fmt: skip
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
    print(f"floods of the peaks around them: {paired:.3f} +- {paired_error:.3f} in requests/s, "
          f"{per_cpu:.3f} +- {per_cpu_error:.3f} per second of the worker's CPU")  # fmt: skip
    print(f"floods of the best peak: {flood.throughput() / peak:.3f}; of all peaks: "
          f"{flood.throughput() / together('', peaks).throughput():.3f}")  # fmt: skip
    loaded = rows[-2:]
    checks = {
        "throughput of the floods within 5 % of the peaks around them": paired >= 0.95,
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
