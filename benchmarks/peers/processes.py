"""One contestant as a process: when each of its lines came, and how much memory its processes held until then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Outcome:
    """What a contestant said. Times are seconds after its process was started, memory is PSS in bytes."""

    loaded_s: float = 0.0
    warm_s: float = 0.0
    version: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    """The lines of its tasks, with `peak_bytes` from the line before to this one."""
    error: str | None = None


def compete(command: list[str], environment: dict[str, str], limit_s: float, log: Path) -> Outcome:
    """Run a contestant to its end, or to `limit_s`."""
    outcome = Outcome()
    with log.open("w", encoding="utf-8") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, process_group=0
        )
        memory = _Memory(process.pid)
        alarm = threading.Timer(limit_s, _end, [process])
        alarm.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                now = time.perf_counter() - began
                if not line.startswith('{"event"'):
                    errors.write(line)
                    continue
                said = json.loads(line)
                peak = memory.take()
                match said.pop("event"):
                    case "loaded":
                        outcome.loaded_s, outcome.version, outcome.settings = now, said["version"], said["settings"]
                    case "warm":
                        outcome.warm_s = now
                    case "task":
                        outcome.tasks.append(said | {"peak_bytes": peak})
            code = process.wait()
        finally:
            alarm.cancel()
            memory.stop()
            if process.poll() is None:
                _end(process)
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        outcome.error = f"exit code {code}{': ' + last[0][:300] if last else ''}"
    return outcome


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class _Memory:
    """Samples a process and all it has started."""

    def __init__(self, pid: int) -> None:
        self._process, self._peak, self._ended = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def take(self) -> int:
        """The largest sum since the last call."""
        self._peak = max(self._peak, self._now())
        peak, self._peak = self._peak, 0
        return peak

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        # Reading a large process's map costs it milliseconds: rarely, and the last moment before each line counts too.
        while not self._ended.wait(1.0):
            self._peak = max(self._peak, self._now())

    def _now(self) -> int:
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        return sum(_pss(process.pid) for process in family)


def _pss(pid: int) -> int:
    """What a process holds, shared pages divided by those who share them. 0: it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception does, so that what it has started ends too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def forget_files(*folders: Path) -> None:
    """Ask the system to drop what it keeps of these folders' files in memory, so that a start reads the disk."""
    for folder in folders:
        for path in folder.rglob("*") if folder.is_dir() else (folder,):
            if path.is_file() and path.stat().st_size > 4096:
                with contextlib.suppress(OSError), path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
