"""An hour of load with cancellations: whether memory, descriptors and requests come back.

Starts `penstock serve` and 12 clients: streams and whole answers, greedy and sampled, n up to 4, shared and fresh
prompts, stop strings, logprobs. A third of them leaves early: before the first token, in the middle, without reading.
Once in a hundred a client sends what is refused. Every 10 s the memory that the processes wrote (pages that no file
backs, what they share counted once) and their descriptors are noted.

It begins in a hurry: 4,000 of the same requests with short answers, then 4,000 as they are, both without pauses. What
only fills up with work (KV blocks touched for the first time, the prefix tree, histograms, malloc's free lists) is full
after that many, however slow the machine is: the front end grows by 1.4 MiB in the first 2,500 with long answers, and
by nothing in the next 2,800; short answers alone, 16,000 of them, leave it growing. Three minutes of the real mix with
its pauses complete the warm-up.

Checked, over what follows the warm-up: the slope of a line through the memory is below 1 % an hour, that of the front
end, and that of the worker and the process it was forked from together (a page they share becomes two when one writes
to it); as many descriptors at the end as after the warm-up, clients apart; nothing runs, waits or holds a block at the
end; no request took longer than a minute; no client saw an error.

A short run cannot see a slope that small: the slope is printed with its standard error, and the verdict of a run under
30 minutes is about descriptors, requests and blocks only.

Prediction, written before the first run: below 0.3 %/h for the worker, below 1 %/h for the front end.

    python benchmarks/soak.py                      # 60 minutes
    python benchmarks/soak.py --minutes 12 --rate 2

The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from typing import Any

import httpx
import numpy as np
import psutil
from rich.console import Console
from serving import Serving, machine, serving, written_bytes

CLIENTS, EVERY_S, STUCK_S = 12, 10.0, 60.0
LIMIT_PERCENT_PER_HOUR = 1.0
WARM_REQUESTS, WARM_TOKENS, SETTLING_S = 4000, 6, 180.0
SHORT_MINUTES = 30.0
WORDS = ("river", "mill", "stone", "water", "wheel", "grain", "miller", "flour")


class Client:
    """Asks one thing after the other; some of it without waiting for the end."""

    def __init__(self, url: str, seed: int, pause_s: float) -> None:
        self.draw, self.pause_s = random.Random(seed), pause_s
        self.hurries = False
        self.http = httpx.AsyncClient(base_url=url, timeout=2 * STUCK_S, trust_env=False)
        self.answered = self.left = self.refused = 0
        self.errors: list[str] = []
        self.slowest_s = 0.0

    def body(self) -> dict[str, Any]:
        draw = self.draw
        words = " ".join(draw.choice(WORDS) for _ in range(draw.choice([5, 40, 200])))
        body: dict[str, Any] = {
            "prompt": ("Once upon a time there was a mill. " * 8 if draw.random() < 0.5 else "") + words,
            "max_tokens": draw.randint(1, WARM_TOKENS if self.hurries else 120),
            "temperature": draw.choice([0, 0.8]), "n": draw.choice([1, 1, 1, 4]),
            "stream": draw.random() < 0.7, "ignore_eos": draw.random() < 0.5,
        }  # fmt: skip
        body |= {"stop": ["the", "."]} if draw.random() < 0.2 else {}
        body |= {"logprobs": 3} if draw.random() < 0.2 else {}
        body |= {"seed": draw.randrange(1000)} if draw.random() < 0.5 else {}
        return body

    @property
    def done(self) -> int:
        return self.answered + self.left + self.refused

    async def hurry(self, requests: int) -> None:
        """So many, one after the other, with short answers; then as many as they are."""
        self.hurries = True
        while self.done < 2 * requests and not self.errors:
            self.hurries = self.done < requests
            await self.tried(self.body())
        self.hurries = False

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            await self.tried(self.body())
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            await asyncio.sleep(self.draw.expovariate(1 / self.pause_s))
        await self.http.aclose()

    async def tried(self, body: dict[str, Any]) -> None:
        try:
            await self.once(body)
        except (httpx.HTTPError, ValueError) as error:
            self.errors.append(f"{type(error).__name__} {error}"[:200])

    async def once(self, body: dict[str, Any]) -> None:
        fate = self.draw.random()
        if fate < 0.01:
            reply = await self.http.post("/v1/completions", json=body | {"temperature": 9})
            self.refused += reply.status_code == 400
        elif fate < 0.17:  # gone after a moment, whatever has come
            task = asyncio.create_task(self.http.post("/v1/completions", json=body))
            await asyncio.wait({task}, timeout=self.draw.uniform(0.0, 0.3))
            task.cancel()
            await asyncio.wait({task})
            self.left += 1
        elif body["stream"]:
            await self.stream(body, leave=fate < 0.4)
        else:
            reply = await self.http.post("/v1/completions", json=body)
            if reply.status_code != 200:
                raise ValueError(f"{reply.status_code} {reply.text[:150]}")
            self.answered += 1

    async def stream(self, body: dict[str, Any], *, leave: bool) -> None:
        after = self.draw.randint(0, 20)
        async with self.http.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code != 200:
                raise ValueError(f"{reply.status_code}")
            last, number = "", 0
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    last, number = line, number + 1
                if leave and number > after:
                    self.left += 1
                    return
        if last != "data: [DONE]":
            raise ValueError(f"the stream ended with {last[:100]!r}")
        self.answered += 1


class Watch:
    """Memory and descriptors of the processes, over time."""

    def __init__(self, server: Serving) -> None:
        front, fork_server, worker = server.family
        self.processes = {"front end": front, "worker": worker, "fork server": fork_server}
        self.times_s: list[float] = []
        self.bytes: dict[str, list[int]] = {"front end": [], "worker side": []}
        self.descriptors: dict[str, list[int]] = {name: [] for name in self.processes}

    async def run(self, began: float) -> None:
        while True:
            self.look(began)
            await asyncio.sleep(EVERY_S)

    def look(self, began: float) -> None:
        self.times_s.append(time.monotonic() - began)
        written = {name: written_bytes(process.pid) for name, process in self.processes.items()}
        self.bytes["front end"].append(written["front end"])
        self.bytes["worker side"].append(written["worker"] + written["fork server"])
        for name, process in self.processes.items():
            sockets = len(process.net_connections("tcp"))  # one for each client, and the listener
            self.descriptors[name].append(process.num_fds() - sockets)

    def slope(self, name: str, after_s: float) -> tuple[float, float]:
        """Percent an hour of the mean, and its standard error."""
        times, values = np.array(self.times_s), np.array(self.bytes[name], float)
        times, values = times[times >= after_s], values[np.array(self.times_s) >= after_s]
        if len(times) < 3:
            return float("nan"), float("nan")
        (slope, _), covariance = np.polyfit(times, values, 1, cov="unscaled")
        residual = values - np.polyval((slope, _), times)
        error = (covariance[0, 0] * (residual @ residual) / (len(times) - 2)) ** 0.5
        return slope * 3600 / values.mean() * 100, error * 3600 / values.mean() * 100


async def run(server: Serving, minutes: float, rate: float) -> dict[str, Any]:
    began = time.monotonic()
    watch = Watch(server)
    watching = asyncio.create_task(watch.run(began))
    clients = [Client(server.url, seed, CLIENTS / rate) for seed in range(CLIENTS)]
    until = began + minutes * 60
    await asyncio.gather(*(client.hurry(min(WARM_REQUESTS, int(70 * minutes)) // CLIENTS) for client in clients))
    warm_up_s = time.monotonic() - began + min(SETTLING_S, minutes * 60 / 10)
    await asyncio.gather(*(client.run(until) for client in clients))
    watching.cancel()
    await asyncio.sleep(2.0)
    watch.look(began)
    metrics, blocks = server.metrics(), server.blocks()
    warm = next(index for index, at in enumerate(watch.times_s) if at >= warm_up_s)
    slopes = {name: watch.slope(name, warm_up_s) for name in watch.bytes}
    errors = [error for client in clients for error in client.errors]
    return {
        "minutes": minutes, "warm_up_minutes": round(warm_up_s / 60, 1), "requests_per_s": rate,
        "answered": sum(client.answered for client in clients), "left": sum(client.left for client in clients),
        "refused": sum(client.refused for client in clients), "errors": len(errors),
        "first_error": next(iter(errors), None), "slowest_s": max(client.slowest_s for client in clients),
        "mib": {name: [round(values[0] / 2**20, 1), round(values[warm] / 2**20, 1), round(values[-1] / 2**20, 1)]
                for name, values in watch.bytes.items()},
        "mib_each_minute": {name: [round(value / 2**20, 2) for value in values[:: round(60 / EVERY_S)]]
                            for name, values in watch.bytes.items()},
        "percent_per_hour": {name: round(float(slope), 2) for name, (slope, _) in slopes.items()},
        "standard_error": {name: round(float(error), 2) for name, (_, error) in slopes.items()},
        "descriptors": {name: [values[warm], values[-1]] for name, values in watch.descriptors.items()},
        "blocks": blocks, "in_flight": metrics["penstock_requests_in_flight"],
        "restarts": metrics["penstock_worker_restarts_total"], "machine": machine(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second of all clients together")
    given = parser.parse_args()
    with serving("soak", "--memory.kv-bytes", "16MiB") as server:
        assert all(psutil.pid_exists(process.pid) for process in server.family)
        result = asyncio.run(run(server, given.minutes, given.rate))
    flat = all(last <= first for first, last in result["descriptors"].values())
    kept = (
        flat and not result["errors"] and result["slowest_s"] < STUCK_S and not result["restarts"]
        and result["blocks"]["held"] == 0 and result["in_flight"] == 0
    )  # fmt: skip
    judged = given.minutes >= SHORT_MINUTES
    if judged:
        kept = kept and all(slope < LIMIT_PERCENT_PER_HOUR for slope in result["percent_per_hour"].values())
    for name, value in result.items():
        Console().print(f"{name:20} {value:.3f}" if isinstance(value, float) else f"{name:20} {value}")
    print(json.dumps(result | {"slope_judged": judged, "kept": kept}))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
