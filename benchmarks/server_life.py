"""A server's life, as its user sees it: start to first token, memory at rest, and what a killed worker costs.

    start     from `penstock serve` to ready, phase by phase as its log tells, with the time that no phase accounts for;
              and on to the first streamed token of an `openai` client
    rest      memory after one answer, what processes share counted once, and CPU used while idle
    kill      SIGKILL of the worker in the middle of a stream: the pause the client sees, the tokens compared with an
              undisturbed run, what /ready and the log say meanwhile

Prediction, written before the first run: importing torch takes 2 s and all else 1 s; 350 MB at rest; a pause of 4 s.
The first run, on a busy machine: 6.8 s to the first token, 343 MB, a pause of 2.9 s.

    python benchmarks/server_life.py       needs the development packages (make setup-dev); the last line is JSON
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import httpx
import openai
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
LOG = ROOT / "runs" / "server_life.log"
PORT = 8399
URL = f"http://127.0.0.1:{PORT}"
LIMITS = {"first_token_s": 15.0, "resident_mb": 700.0, "back_s": 10.0, "unlogged_s": 0.03}


def start() -> subprocess.Popen[bytes]:
    log = LOG.open("wb")
    command = [Path(sys.executable).parent / "penstock", "serve", "--server.port", str(PORT)]
    return subprocess.Popen(command, stdout=log, stderr=log)


def answer(client: openai.OpenAI, tokens: int, on_token: object = None) -> tuple[list[str], list[float]]:
    """Stream a greedy answer. Returns the pieces and when each came."""
    pieces, times = [], []
    stream = client.chat.completions.create(
        model="millrace", messages=[{"role": "user", "content": "Tell me a story about a mill."}], stream=True,
        temperature=0, max_tokens=tokens, extra_body={"ignore_eos": True},
    )  # fmt: skip
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
            times.append(time.monotonic())
            if callable(on_token):
                on_token(len(pieces))
    return pieces, times


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    (ROOT / "runs").mkdir(exist_ok=True)
    begin = time.monotonic()
    server = start()
    try:
        client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
        while "ready http" not in (log := LOG.read_text()):
            if server.poll() is not None:
                raise SystemExit("the server ended: see runs/server_life.log")
            time.sleep(0.002)
        ready_s = time.monotonic() - begin
        phases: dict[str, float] = {}
        for name, seconds in re.findall(r"^(\w[\w ]*?) +(\d+\.\d{3}) s  ", log, re.MULTILINE):
            phases[name] = phases.get(name, 0.0) + float(seconds)
        undisturbed, times = answer(client, 8)
        first_token_s = times[0] - begin

        front = psutil.Process(server.pid)
        family = [front, *front.children(recursive=True)]
        time.sleep(1)
        resident = {process.pid: process.memory_full_info().pss / 1e6 for process in family}
        before = sum(sum(process.cpu_times()[:2]) for process in family)
        time.sleep(5)
        idle_cpu = (sum(sum(process.cpu_times()[:2]) for process in family) - before) / 5

        undisturbed, times = answer(client, 400)
        (worker,) = front.children()[0].children()
        seen: list[str] = []

        def kill(count: int) -> None:
            if count == 100:
                os.kill(worker.pid, signal.SIGKILL)
                time.sleep(0.3)
                seen.append(httpx.get(URL + "/ready", timeout=5, trust_env=False).text)

        disturbed, killed = answer(client, 400, kill)
        gaps = [later - earlier for earlier, later in pairwise(killed)]
        result = {
            "ready_s": ready_s, "phases_s": phases, "unlogged_s": abs(ready_s - sum(phases.values())),
            "first_token_s": first_token_s, "resident_mb": sum(resident.values()),
            "front_end_mb": resident[server.pid], "idle_cpu_share": idle_cpu, "back_s": max(gaps),
            "same_tokens": "".join(disturbed) == "".join(undisturbed), "ready_says": seen[0],
            "ready_after": httpx.get(URL + "/ready", timeout=5, trust_env=False).text,
        }  # fmt: skip
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(40)
    result["exit_code"] = code
    table = Table("what", "measured", "limit")
    for name, value in result.items():
        limit = LIMITS.get(name)
        if isinstance(value, dict):
            for phase, seconds in value.items():
                table.add_row(f"  {phase}", f"{seconds:.3f}", "")
            continue
        table.add_row(
            name, f"{value:.3f}" if isinstance(value, float) else str(value), "" if limit is None else f"{limit:g}"
        )
    Console().print(table)
    kept = all(result[name] < limit for name, limit in LIMITS.items()) and result["same_tokens"] and code == 0  # type: ignore[operator]
    print(json.dumps(result | {"kept": kept}))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
