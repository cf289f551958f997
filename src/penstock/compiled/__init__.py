"""The hot modules of control plane and twin, compiled to C by mypyc where that was done (build.py). Optional.

The same files run either way, with the same results; compiled they are several times as fast. What is compiled lies in
the user's cache under a hash of all it depends on: the sources, mypyc, the interpreter. A source that has changed has
another hash, so stale code is never loaded: Python runs the file itself until it is compiled again.

    PENSTOCK_COMPILED=0     runs all files as Python, whatever is compiled
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

SWITCH: Final = "PENSTOCK_COMPILED"
GROUP: Final = "penstock"
LIBRARY: Final = f"{GROUP}__mypyc"
"""mypyc puts the code of all modules into this one library, and a loader of each module into a small one."""
FLAGS: Final = "-O3 -ffp-contract=off"
"""No fused multiply-add, which some machines have and Python never uses: same seed, same bits."""
SUFFIX: Final = EXTENSION_SUFFIXES[0]
ROOM: Final = Path(__file__).parent.parent
WHOLE: Final = "whole"
"""A file that stands in a directory whose build was finished."""

MODULES: Final = (
    "penstock.control.calendar",
    "penstock.control.cluster.router",
    "penstock.control.compose.fill",
    "penstock.control.compose.mixed_prompts",
    "penstock.control.compose.prefill_first",
    "penstock.control.compose.request_level",
    "penstock.control.compose.single_phase",
    "penstock.control.compose.splitfuse",
    "penstock.control.compose.stall_free",
    "penstock.control.decode_set",
    "penstock.control.draft",
    "penstock.control.evict.evict",
    "penstock.control.evict.recompute",
    "penstock.control.evict.swap",
    "penstock.control.lifecycle",
    "penstock.control.memory.blocks",
    "penstock.control.memory.idle_leaves",
    "penstock.control.memory.idle_share",
    "penstock.control.memory.paged",
    "penstock.control.memory.prefix_node",
    "penstock.control.memory.prefix_tree",
    "penstock.control.memory.reserved",
    "penstock.control.order.arrival",
    "penstock.control.order.fair_share",
    "penstock.control.order.priority",
    "penstock.control.order.queue",
    "penstock.control.order.shortest",
    "penstock.control.record",
    "penstock.control.recount",
    "penstock.control.refusal",
    "penstock.control.replica",
    "penstock.control.residents",
    "penstock.control.sequence",
    "penstock.control.step",
    "penstock.control.totals",
    "penstock.runtime.collect",
    "penstock.runtime.driven",
    "penstock.runtime.instance",
    "penstock.runtime.lockstep",
    "penstock.runtime.token_ids",
    "penstock.runtime.virtual",
    "penstock.twin.attention_price",
    "penstock.twin.known",
    "penstock.twin.load",
    "penstock.twin.step_price",
    "penstock.twin.twin",
)
SEEN: Final = (
    "penstock.compiled.attributes",
    "penstock.control.news",
    "penstock.control.request",
    "penstock.control.statistics",
    "penstock.errors",
    "penstock.report.simulation",
    "penstock.runtime.limits",
    "penstock.twin.host",
    "penstock.twin.operators",
    "penstock.twin.price",
    "penstock.twin.step_estimate",
    "penstock.twin.step_graph",
    "penstock.workload.sessions",
    "penstock.workload.source",
)
"""What they import and is not compiled: mypyc copies constants from there, so a change in them counts as well."""


class CompiledFinder:
    """On sys.meta_path: the compiled form of MODULES, if there is one for these very sources."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> (
        ModuleSpec | None
    ):  # fmt: skip
        if not fullname.startswith("penstock") or (fullname not in MODULES and fullname != LIBRARY):
            return None
        directory = _found()
        if directory is None:
            return None
        file = str(directory / (fullname + SUFFIX))
        return spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, file))


def install() -> None:
    """Let imports find what is compiled. Costs nothing until one of MODULES is imported, then a few milliseconds."""
    if os.environ.get(SWITCH) != "0":
        sys.meta_path.insert(0, CompiledFinder())


def in_use() -> bool:
    """Whether this process runs compiled code."""
    file = getattr(sys.modules.get("penstock.control.replica"), "__file__", None)
    return file is not None and file.endswith(SUFFIX)


def cache(*, create: bool = False) -> Path | None:
    """The user's own directory for compiled code, 0700. One that others could write to is not used."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        directory = Path(base, "penstock", "compiled")
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
    except (OSError, RuntimeError):
        return None  # a read-only or missing home is common in containers
    if os.name != "posix" or not stat.S_ISDIR(status.st_mode):
        return None
    return directory if status.st_uid == os.getuid() and not status.st_mode & 0o022 else None


def name_for(mypy_version: str, room: Path | None = None) -> str:
    """Of the directory for these sources, or those in `room`: the version of mypyc, and a hash. Raises OSError."""
    digest = hashlib.sha256(f"{mypy_version} {sys.version} {SUFFIX} {FLAGS}".encode())
    for name in MODULES + SEEN:
        digest.update(f"\0{name}\0".encode() + hashlib.sha256(source(name, room).read_bytes()).digest())
    return f"{mypy_version}-{digest.hexdigest()[:24]}"


def source(module: str, room: Path | None = None) -> Path:
    """Its file, in this package or a copy of it."""
    return (ROOM if room is None else room).joinpath(*module.split(".")[1:]).with_suffix(".py")


@functools.cache
def _found() -> Path | None:
    """Looked for once: all modules of a process must be of one build, or all Python."""
    try:
        kept = cache()
        for directory in kept.iterdir() if kept is not None else ():
            # The builder's version is in the name, so that compiled code can be used where mypy is not installed.
            if (directory / WHOLE).is_file() and directory.name == name_for(directory.name.partition("-")[0]):
                return directory
    except OSError:
        return None
    return None
