"""When this process began, so that the time before its first line of Python is told too."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

_FIRST_LINE: Final = time.monotonic()
"""When this module was loaded: the best there is where the system does not say."""


def process_began() -> float:
    """On the monotonic clock, in seconds. Linux knows it to a tick, 10 ms; elsewhere it is the start of the program."""
    if sys.platform != "linux":
        return _FIRST_LINE
    # Ticks since boot, which is another clock than the monotonic one where the machine has slept (proc_pid_stat(5)).
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return min(time.monotonic() - age_s, _FIRST_LINE)
