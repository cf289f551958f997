"""What HTTP costs: the whole stack against the bare engine, same batch, same requests, in turn, in one run.

    bare     the engine and its control plane in a process of their own: 64 sequences, no wire, no text, no HTTP
    stack    `penstock serve`: 64 clients, each streams a chat answer over HTTP; the client only reads bytes

Both make the same number of tokens from prompts of the same length, greedy, no end token, nothing cached. The clients
run on the same cores, as they would on nobody's production machine, so the ratio is a lower bound; they are one loop
that looks every 10 ms and reads what has come, so that their cost is small beside that of the server.
Also: CPU seconds of the front end (the process that speaks HTTP, without the worker) per 1,000 tokens streamed, and the
CPU of the bare engine per token over that of front end and worker together: what the ratio would be if every core were
always busy. It holds on a machine that others use too, where throughput says more about the others.

Prediction, written before the first run: a step of 64 sequences takes 8 ms on two cores and the front end 25 us of one
core per token, so 1.6 ms a step: 0.83 of the bare engine, as front end and engine share two cores. Bound: 0.9.
Prediction for tokens that take the short way (serve/express.py), before its first run: 0.018 CPU s per 1,000 tokens.

    python benchmarks/stack.py [--rounds 5] [--batch 64] [--tokens 256] [--model DIR]       the last line is JSON
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, cast

import psutil
from rich.console import Console
from rich.table import Table

PROMPT = "Tell me a story about a mill by the river, and what number {} means there."
BOUND = 0.9
LOOK_EVERY_S: Final = 0.01


def bare(batch: int, tokens: int, model: str | None) -> None:
    """The child: builds once, then runs the batch for each line on stdin and prints [seconds, CPU seconds]."""
    from penstock.control.request import Request, Sampling
    from penstock.deployment import Deployment
    from penstock.runtime.build import build
    from penstock.runtime.offline import run

    built = build(deployment_of(batch, model, Deployment), lambda name, seconds, detail: None)
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        lengths = json.loads(line)
        requests = [
            Request(
                id=f"{number}-{index}", max_tokens=tokens, sampling=Sampling(temperature=0.0),
                prompt=tuple((7 * index + 31 * number + 13 * place) % 1000 + 5 for place in range(length)),
            )
            for index, length in enumerate(lengths)
        ]  # fmt: skip
        cpu, began = time.process_time(), time.perf_counter()
        results = run(built, requests)
        seconds = time.perf_counter() - began
        assert all(len(one.tokens) == tokens for one in results)
        print(json.dumps([seconds, time.process_time() - cpu]), flush=True)


def deployment_of(batch: int, model: str | None, kind: Any) -> Any:
    """What both contestants serve."""
    asked: dict[str, Any] = {"policy": {"max_seqs": batch, "token_budget": 512}, "memory": {"kv_bytes": "512MiB"}}
    return kind.parse(asked if model is None else asked | {"model": {"path": model}})


class Bare:
    """The bare engine, in a child that waits for a line."""

    def __init__(self, batch: int, tokens: int, model: str | None) -> None:
        from penstock.runtime.launch import environment

        self.child = subprocess.Popen(
            [sys.executable, __file__, "--bare", "--batch", str(batch), "--tokens", str(tokens), *_named(model)],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == "ready\n"

    def run(self, lengths: list[int]) -> tuple[float, float]:
        """Wall seconds and CPU seconds for one batch with prompts of these lengths."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps(lengths) + "\n")
        self.child.stdin.flush()
        seconds, cpu = json.loads(self.child.stdout.readline())
        return seconds, cpu


def _named(model: str | None) -> list[str]:
    return [] if model is None else ["--model", model]


class Stack:
    """`penstock serve` on a free port."""

    def __init__(self, batch: int, profile: str | None, model: str | None) -> None:
        program = [sys.executable, "-m", "penstock"]
        if profile:
            program = [sys.executable, "-m", "cProfile", "-o", profile, "-m", "penstock"]
        command = [
            *program, "serve", "--server.port", "0", "--policy.max-seqs", str(batch), "--policy.token-budget", "512",
            "--memory.kv-bytes", "512MiB", *(["--model.path", model] if model is not None else []),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "ready http://" in line:
                self.port = int(line.split("http://127.0.0.1:")[1].split()[0])
                break
        else:
            sys.exit("penstock serve has ended")
        os.set_blocking(self.process.stderr.fileno(), False)
        self.front = psutil.Process(self.process.pid)

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far: of the front end, and of the processes it has started."""
        below = [one.cpu_times() for one in self.front.children(recursive=True)]
        mine = self.front.cpu_times()
        return mine.user + mine.system, sum(one.user + one.system for one in below)

    def run(self, number: int, batch: int, tokens: int) -> tuple[float, float, float, list[int]]:
        """Wall seconds, CPU seconds of the front end and of its worker, and the prompts' lengths in tokens."""
        before = self.cpu_s()
        began = time.perf_counter()
        answers = self._all(number, batch, tokens)
        seconds = time.perf_counter() - began
        after = self.cpu_s()
        assert self.process.stderr is not None
        self.process.stderr.read()  # its log: a pipe that nobody empties would stop it
        assert all(made == tokens for _, made in answers), answers
        front_s, worker_s = (end - start for start, end in zip(before, after, strict=True))
        return seconds, front_s, worker_s, [prompt for prompt, _ in answers]

    def _all(self, number: int, batch: int, tokens: int) -> list[tuple[int, int]]:
        """(prompt tokens, output tokens) of each client, as its usage chunk says."""
        raws = {self._ask(number * batch + index, tokens): bytearray() for index in range(batch)}
        with selectors.DefaultSelector() as selector:
            for connection in raws:
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map():
                time.sleep(LOOK_EVERY_S)
                for key, _ in selector.select():
                    connection = cast("socket.socket", key.fileobj)
                    data = connection.recv(2**20)
                    raws[connection] += data
                    if not data:
                        selector.unregister(connection)
                        connection.close()
        usages = [json.loads(raw.rsplit(b"data: ", 2)[1])["usage"] for raw in raws.values()]  # before [DONE]
        return [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages]

    def _ask(self, index: int, tokens: int) -> socket.socket:
        message = {"role": "user", "content": f"{index} " + PROMPT.format(index)}
        body = json.dumps(
            {"messages": [message], "stream": True, "max_completion_tokens": tokens, "ignore_eos": True,
             "temperature": 0, "stream_options": {"include_usage": True}}
        ).encode()  # fmt: skip
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        return connection


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--profile", help="write the front end's cProfile data here")
    parser.add_argument("--model", help="a checkpoint in place of the model in the box")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.bare:
        bare(asked.batch, asked.tokens, asked.model)
        return
    stack = Stack(asked.batch, asked.profile, asked.model)
    engine = Bare(asked.batch, asked.tokens, asked.model)
    made = asked.batch * asked.tokens
    rows = []
    try:
        for number in range(asked.rounds + 1):
            http_s, front_s, worker_s, lengths = stack.run(number, asked.batch, asked.tokens)
            bare_s, bare_cpu_s = engine.run(lengths)
            if number:  # the first round warms both up
                cpu_ratio = bare_cpu_s / (front_s + worker_s)
                per_1000 = [1000 * one / made for one in (front_s, worker_s, bare_cpu_s)]
                rows.append((made / bare_s, made / http_s, bare_s / http_s, *per_1000, cpu_ratio))
    finally:
        stack.process.terminate()
        stack.process.wait(20)
        assert engine.child.stdin is not None
        engine.child.stdin.close()
        engine.child.wait(20)
    table = Table(title=f"{asked.batch} sequences x {asked.tokens} tokens")
    for name in (
        "round",
        "bare, tokens/s",
        "stack, tokens/s",
        "ratio",
        "CPU s per 1,000 tokens: front end",
        "worker",
        "bare engine",
        "CPU ratio",
    ):
        table.add_column(name, justify="right")
    for number, (engine_rate, stack_rate, ratio, *cpus, cpu_ratio) in enumerate(rows, 1):
        cells = (f"{engine_rate:,.0f}", f"{stack_rate:,.0f}", f"{ratio:.3f}", *(f"{cpu:.4f}" for cpu in cpus))
        table.add_row(str(number), *cells, f"{cpu_ratio:.3f}")
    Console(width=120).print(table)
    bare_rate, stack_rate, ratio, cpu, worker_cpu, bare_cpu, cpu_ratio = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    result = {
        "batch": asked.batch, "tokens": asked.tokens, "rounds": asked.rounds,
        "bare_tokens_per_s": round(bare_rate), "stack_tokens_per_s": round(stack_rate), "ratio": round(ratio, 3),
        "ratios": [round(row[2], 3) for row in rows], "front_end_cpu_s_per_1000_tokens": round(cpu, 4),
        "worker_cpu_s_per_1000_tokens": round(worker_cpu, 4), "bare_cpu_s_per_1000_tokens": round(bare_cpu, 4),
        "cpu_ratio": round(cpu_ratio, 3),
        "bound": BOUND, "met": ratio >= BOUND, "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
    }  # fmt: skip
    print(json.dumps(result))
    sys.exit(0 if ratio >= BOUND else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
