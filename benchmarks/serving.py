"""What the benchmarks of a running server share: `penstock serve` as a process, its worker, its metrics, its memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]


class Serving:
    """A server that runs. Its log is a file."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    @property
    def family(self) -> list[psutil.Process]:
        """Front end, fork server, worker."""
        front = psutil.Process(self.process.pid)
        return [front, *front.children(recursive=True)]

    def worker(self) -> int | None:
        """Process id of the worker: what the fork server has forked. None while there is none."""
        try:
            forks = [child for server in psutil.Process(self.process.pid).children() for child in server.children()]
            return next((fork.pid for fork in forks if fork.status() != psutil.STATUS_ZOMBIE), None)
        except psutil.NoSuchProcess:
            return None

    def metrics(self) -> dict[str, float]:
        """Every sample by name and labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line and not line.startswith("#")
        }

    def blocks(self) -> dict[str, float]:
        """KV blocks by use."""
        found = {
            re.search(r'use="(\w+)"', name): value for name, value in self.metrics().items() if "kv_blocks{" in name
        }
        return {match.group(1): value for match, value in found.items() if match}

    def recoveries_s(self) -> list[float]:
        """From the end of each worker until the next was ready, as the server's log has it."""
        return [float(one) for one in re.findall(r"is ready, ([\d.]+) s after", self.log.read_text())]


@contextmanager
def serving(name: str, *flags: str, port: int = 0) -> Iterator[Serving]:
    """`penstock serve` with these flags while the block runs; must end with exit code 0 after SIGTERM."""
    (ROOT / "runs").mkdir(exist_ok=True)
    log = ROOT / "runs" / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "serve", "--server.port", str(port), *flags], stdout=file, stderr=file
        )
    try:
        while (found := re.search(r"ready (http://\S+)", log.read_text())) is None:
            if process.poll() is not None:
                raise SystemExit(f"the server ended: see {log}")
            time.sleep(0.01)
        yield Serving(process, found.group(1), log)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    if code:
        raise SystemExit(f"the server ended with exit code {code}: see {log}")


def machine() -> str:
    """One line, for the record."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{os.cpu_count()} x {model}, {time.strftime('%Y-%m-%d')}"


def written_bytes(pid: int) -> int:
    """Memory of a process that no file backs (Linux), what processes share counted once among them.

    Pages of libraries are left out: their share falls and rises with other programs that map the same files.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(size) * 1024 for size in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE))
