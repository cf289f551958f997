"""Run `penstock` as a user does: as a program, with its own environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def environment(**more: str) -> dict[str, str]:
    """This one, without what would change how the program behaves."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "FORCE_COLOR"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


def penstock(
    *arguments: str, expect: int = 0, stdin: str = "", timeout_s: float = 200, **more: str
) -> subprocess.CompletedProcess[str]:
    """The finished run; fails if its exit code is not the expected one."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock", *arguments], env=environment(**more), input=stdin, capture_output=True,
        text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def children(parent: int) -> set[int]:
    """Processes that `parent` has started and that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, of = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # It ended meanwhile.
            continue
        if int(of) == parent and state != "Z":
            found.add(int(path.parent.name))
    return found
