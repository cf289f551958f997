"""SIGKILL of the worker at random moments under load: what clients see of it, and what is lost.

Starts `penstock serve`, asks 48 different requests without disturbance and keeps the answers. Then the same requests go
round and round, eight at a time, while the worker is killed again and again: a quarter of them within 0.2 s of their
start, but never three such in a row, the others at a random moment of the 1.4 s after they were ready. Half of the
requests are greedy, half sample with a seed, with penalties, min_p, top_k; streams and whole answers, chat and
completions, n = 2, logprobs, stop strings.

Checked: every answer is complete and says, token for token, what it said undisturbed; no request fails; at the end
nothing runs and no KV block is held. Reported: how long the server was without a worker, and the longest silence in a
stream beside that.

Prediction, written before the first run: 0.3 s p50 and 1 s at most without a worker, no error, no wrong token.

    python benchmarks/kill_worker.py                  # 200 kills, four minutes
    python benchmarks/kill_worker.py --kills 20

The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from itertools import cycle
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from serving import Serving, machine, serving

CLIENTS, DIFFERENT = 8, 48
WORDS = ("river", "mill", "stone", "water", "wheel", "grain", "miller", "flour")
Answer = list[tuple[int, tuple[int, ...], str | None, int]]
"""Of each choice: its index, its token ids, the finish reason, and how many logprobs came."""


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Path and body of each; the same in every run."""
    draw = random.Random(0)
    made: list[tuple[str, dict[str, Any]]] = []
    for number in range(DIFFERENT):
        body: dict[str, Any] = {"max_tokens": draw.randint(24, 96), "return_token_ids": True, "stream": number % 4 < 3}
        if number % 2:
            body |= {"temperature": draw.choice([0.5, 0.8, 1.0]), "seed": number}
            body |= draw.choice(
                [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.02}, {"frequency_penalty": 0.6},
                 {"repetition_penalty": 1.2, "presence_penalty": 0.2}]
            )  # fmt: skip
        else:
            body |= {"temperature": 0}
        if draw.random() < 0.3:
            body |= {"ignore_eos": True}
        if draw.random() < 0.2:
            body |= {"stop": ["\n\n", "the end"], "min_tokens": 8}
        if draw.random() < 0.25:
            body |= {"n": 2}
        words = " ".join(draw.choice(WORDS) for _ in range(30))
        text = f"Tell me number {number} about a {words}"
        if number % 3:
            body |= {"messages": [{"role": "user", "content": text}]}
            body |= {"logprobs": True, "top_logprobs": 2} if draw.random() < 0.3 else {}
            made.append(("/v1/chat/completions", body))
        else:
            body |= {"prompt": "Once upon a time there was a mill. " * (number % 5) + text}
            body |= {"logprobs": 2} if draw.random() < 0.3 else {}
            made.append(("/v1/completions", body))
    return made


class Load:
    """Clients that go round the requests, and what they saw."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)
        self.errors: list[str] = []
        self.silences_s: list[float] = []
        self.answered = 0

    async def ask(self, path: str, body: dict[str, Any]) -> Answer | None:
        """None: an error, which is noted."""
        try:
            if not body["stream"]:
                reply = await self.http.post(path, json=body)
                if reply.status_code != 200:
                    raise ValueError(f"{reply.status_code} {reply.text[:200]}")
                return whole(reply.json())
            return await self._stream(path, body)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self.errors.append(f"{path}: {type(error).__name__} {error}"[:300])
            return None

    async def _stream(self, path: str, body: dict[str, Any]) -> Answer:
        parts: dict[int, tuple[list[int], list[str], list[int]]] = {}
        last, done = time.monotonic(), False
        longest = 0.0
        async with self.http.stream("POST", path, json=body) as reply:
            if reply.status_code != 200:
                raise ValueError(f"{reply.status_code} {(await reply.aread())[:200]!r}")
            async for line in reply.aiter_lines():
                if not line.startswith("data: "):
                    continue
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
                if line == "data: [DONE]":
                    done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(str(event["error"]))
                for choice in event["choices"]:
                    ids, reasons, logprobs = parts.setdefault(choice["index"], ([], [], []))
                    ids += choice.get("token_ids") or ()
                    logprobs.append(count(choice.get("logprobs")))
                    if choice["finish_reason"] is not None:
                        reasons.append(choice["finish_reason"])
        if not done:
            raise ValueError("the stream ended without [DONE]")
        self.silences_s.append(longest)
        if any(len(reasons) != 1 for _, reasons, _ in parts.values()):
            raise ValueError("a choice without one finish reason")
        return [(index, tuple(ids), reasons[0], sum(counts)) for index, (ids, reasons, counts) in sorted(parts.items())]


def whole(body: dict[str, Any]) -> Answer:
    return [
        (one["index"], tuple(one["token_ids"]), one["finish_reason"], count(one.get("logprobs")))
        for one in body["choices"]
    ]


def count(logprobs: dict[str, Any] | None) -> int:
    return len((logprobs or {}).get("content") or (logprobs or {}).get("tokens") or ())


async def undisturbed(load: Load, asked: list[tuple[str, dict[str, Any]]]) -> list[Answer]:
    gate = asyncio.Semaphore(CLIENTS)

    async def one(path: str, body: dict[str, Any]) -> Answer | None:
        async with gate:
            return await load.ask(path, body)

    found = await asyncio.gather(*(one(*each) for each in asked))
    if load.errors:
        raise SystemExit(f"without any kill: {load.errors[0]}")
    return [answer for answer in found if answer is not None]


async def kill(server: Serving, kills: int, seed: int, seconds: float) -> tuple[int, int]:
    """Kill it so often. Returns how many were killed, and how many of them had not got ready.

    Ends early with the server, or after `seconds`.
    """
    until = time.monotonic() + seconds
    done = 0
    draw = random.Random(seed)
    last: int | None = None
    early = in_a_row = 0
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        for _ in range(kills):
            while server.process.poll() is None and ((pid := server.worker()) is None or pid == last):
                await asyncio.sleep(0.005)
            if in_a_row < 2 and draw.random() < 0.25:
                in_a_row += 1
                await asyncio.sleep(draw.uniform(0.0, 0.2))
            else:
                in_a_row = 0
                while server.process.poll() is None and (await http.get("/ready")).status_code != 200:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(draw.uniform(0.0, 1.4))
            if server.process.poll() is not None or pid is None or time.monotonic() > until:
                break
            done += 1
            early += in_a_row > 0
            os.kill(pid, signal.SIGKILL)
            last = pid
    return done, early


async def run(server: Serving, kills: int, seed: int, limit_s: float) -> dict[str, Any]:
    asked = requests()
    calm = Load(server.url)
    expected = await undisturbed(calm, asked)
    again = await undisturbed(calm, asked)
    load = Load(server.url)
    killing = asyncio.create_task(kill(server, kills, seed, limit_s))
    turns = cycle(range(len(asked)))
    wrong: list[dict[str, Any]] = []
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        while not killing.done():
            turn = next(turns)
            answer = await load.ask(*asked[turn])
            if answer is None:
                continue
            load.answered += 1
            tokens += sum(len(ids) for _, ids, _, _ in answer)
            if answer != expected[turn]:
                at = [
                    next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), -1)
                    for (_, mine, _, _), (_, theirs, _, _) in zip(answer, expected[turn], strict=True)
                ]
                wrong.append({"request": turn, "first_difference": at, "sampled": asked[turn][1]["temperature"] > 0})

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    seconds = time.monotonic() - began
    kills, early = await killing
    if server.process.poll() is not None:
        raise SystemExit(f"the server has ended: see {server.log}")
    await asyncio.sleep(1.0)
    metrics, blocks, recoveries = server.metrics(), server.blocks(), sorted(server.recoveries_s())
    return {
        "kills": kills, "killed_while_starting": early, "restarts": metrics["penstock_worker_restarts_total"],
        "seconds": seconds,
        "answered": load.answered, "sampled_share": sum(body["temperature"] > 0 for _, body in asked) / len(asked),
        "tokens": tokens, "client_errors": len(load.errors), "first_error": next(iter(load.errors), None),
        "wrong_answers": len(wrong), "wrong": wrong[:8],
        "wrong_without_kills": sum(one != two for one, two in zip(expected, again, strict=True)),
        "recovered_requests": metrics["penstock_requests_recovered_total"], "blocks": blocks,
        "in_flight": metrics["penstock_requests_in_flight"],
        "recovery_p50_s": median(recoveries), "recovery_max_s": recoveries[-1], "recoveries": len(recoveries),
        "longest_silence_p50_s": median(load.silences_s), "longest_silence_max_s": max(load.silences_s),
        "longest_silence_undisturbed_max_s": max(calm.silences_s), "machine": machine(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="end after so long, with fewer kills")
    given = parser.parse_args()
    with serving("kill_worker") as server:
        result = asyncio.run(run(server, given.kills, given.seed, given.seconds))
    kept = (
        result["restarts"] >= result["kills"] > 0
        and not result["client_errors"] and not result["wrong_answers"]
        and result["blocks"]["held"] == 0 and result["in_flight"] == 0
    )  # fmt: skip
    for name, value in result.items():
        Console().print(f"{name:34} {value:.3f}" if isinstance(value, float) else f"{name:34} {value}")
    print(json.dumps(result | {"kept": kept}))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
