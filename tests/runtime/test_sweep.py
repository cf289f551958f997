"""Sweeps as processes: what becomes of the points when the one who asked for them is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.program import children, environment

ENDLESS = """
from penstock.runtime.sweep import sweep
data = {"model": {"path": "llama-3-8b"}, "hardware": {"name": "h100-sxm"}, "twin": {"price": "roofline"},
        "workload": {"rate": 30}}
for point in sweep(data, [{"workload.requests": 5}, {"workload.requests": 10**9}], processes=2):
    print(point.number, flush=True)
"""


def ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is told by Linux alone")
def test_points_end_when_the_sweep_is_killed() -> None:
    run = subprocess.Popen([sys.executable, "-c", ENDLESS], env=environment(), stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "0\n"  # One point is done, so the endless one has a process as well.
    begun = children(run.pid)
    assert len(begun) >= 2
    run.send_signal(signal.SIGKILL)
    run.wait(60)
    run.stdout.close()
    deadline = time.monotonic() + 60
    while (left := [process for process in begun if not ended(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []
