"""Whether a process that makes no progress computes, or rests: stopped by a signal, or every thread waits.

A long step burns processor time; a worker that was stopped, or whose threads wait for each other, burns none. So the
second can be found within seconds, long before a deadline that must allow for the longest step there may ever be.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

QUIET_S: Final = 5.0
"""A worker that rests is given at least this long, and `SLOWEST_STEPS` times its longest step."""
SLOWEST_STEPS: Final = 20
RESTING_SHARE: Final = 0.01
"""Of one core: less than this is rest. A thread that wakes up to look at a flag takes less."""
_BLOCKED: Final = "DRtX"
"""States of a thread that others keep waiting: a disk, whoever has the processor, a debugger."""
_STOPPED: Final = "T"
"""By a signal: nothing but another signal makes it go on."""


class Liveness:
    """Looks at one process each time it is asked. Where the system tells nothing, it never says that it rests."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        """`proc`: where the system tells of its processes."""
        self._path, self._threads = proc / f"{pid}/stat", proc / f"{pid}/task"
        self._since = 0.0
        self._cpu_s = 0.0
        self._known = False
        self._stopped_since: float | None = None

    def rests_for(self, now: float, *, working: bool) -> float:
        """Seconds for which it has been resting, up to now. 0 unless it is `working`: then nobody cares.

        `now` is the caller's clock, in seconds. Called about once a second while it works.
        """
        looked = _look(self._path) if working else None
        if looked is None:
            self._known = False
            return 0.0
        _, cpu_s = looked
        computed = cpu_s - self._cpu_s > RESTING_SHARE * (now - self._since)
        if not self._known or computed or self._kept_waiting():
            self._since, self._cpu_s, self._known = now, cpu_s, True
        return now - self._since

    def _kept_waiting(self) -> bool:
        """Whether any of its threads is, for which the others may wait."""
        try:
            threads = [_look(path) for path in self._threads.glob("*/stat")]
        except OSError:  # it ended meanwhile
            return False
        return any(thread is not None and thread[0] in _BLOCKED for thread in threads)

    def stopped_for(self, now: float) -> float:
        """Seconds for which it was seen stopped by a signal, up to now, whatever it should be doing."""
        looked = _look(self._path)
        if looked is None or looked[0] != _STOPPED:
            self._stopped_since = None
            return 0.0
        if self._stopped_since is None:
            self._stopped_since = now
        return now - self._stopped_since


def _look(path: Path) -> tuple[str, float] | None:
    """State and processor seconds of a process; None: gone, or no such file system (proc_pid_stat(5))."""
    if sys.platform != "linux":
        return None
    try:
        # The name, in parentheses, may hold anything; what follows its last one is plain.
        fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    ticks = int(fields[11]) + int(fields[12])
    return fields[0], ticks / os.sysconf("SC_CLK_TCK")
