"""Cores that a process may keep busy: those it may run on, or fewer where its container has a smaller share of them."""

from __future__ import annotations

import math
import os
from pathlib import Path


def own_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = Path("/")) -> float | None:
    """Cores that the container may keep busy (control groups of version 2); None: no limit. `root`: for tests."""
    try:
        micros, period = (root / "sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if micros == "max" else int(micros) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def usable_cores(root: Path = Path("/")) -> int:
    """How many processes can run at once without taking turns; 1 at least."""
    share = quota(root)
    return own_cores() if share is None else max(1, min(own_cores(), math.ceil(share)))
