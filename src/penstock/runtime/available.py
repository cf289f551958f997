"""Memory that a process can still have: the machine's, or what its control group (a container, a systemd unit) allows.

Files of a group that nobody uses now count as free in it, as they do in the machine's own figure: they are given up
when memory is wanted. A group within a group has the limits of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNLIMITED_BYTES = 2**60
"""Version 1 writes a number like this where there is no limit."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """Without swapping, in bytes; None where the system does not tell. `root`: of /proc and /sys, for tests."""
    found = [*_of_machine(root / "proc/meminfo"), *_of_groups(root)]
    return max(min(found), 0) if found else None


def _of_machine(path: Path) -> Iterator[int]:
    for line in _text(path).splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """One figure for each group with a limit, from our own up to the outermost that we can see."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for part in (group, *group.parents):
            yield from _of_group(base / part, *names)


def _of_group(group: Path, limit_name: str, used_name: str, idle_name: str) -> Iterator[int]:
    limit, used = _text(group / limit_name).strip(), _text(group / used_name).strip()
    if not (limit.isdigit() and used.isdigit()) or int(limit) >= _UNLIMITED_BYTES:
        return
    statistics = dict(line.split() for line in _text(group / "memory.stat").splitlines())
    yield int(limit) - int(used) + int(statistics.get(idle_name, 0))


def _text(path: Path) -> str:
    """Empty where there is no such file: another system, another version, a part of the tree that we may not see."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
