"""The load shapes of the overload benchmark: who sends when, stage after stage, and the CPU that each process took."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import psutil
from overload_tenants import Stage, Tenants
from rich.console import Console

PLACES, QUEUE = 16, 64
COME_BACK = 0.25
TRIES = 4
CROWDED = PLACES * 3 // 2
WARM_S, TOLD_END_S = 3.0, 15.0


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
