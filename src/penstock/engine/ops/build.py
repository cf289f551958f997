"""The C sources beside this file, as one library: compiled once per machine by the system's compiler.

The library lies in the user's cache directory. Its name holds the hash of everything it depends on (sources, compiler,
CPU, OpenMP runtime) and the hash of its own bytes: loading a file that a crash cut short can end the process by SIGBUS,
so what does not match its name is compiled again.

It is linked to the OpenMP runtime that torch has loaded: with a second one, two teams of threads would fight for the
same cores.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import torch

_COMPILE_TIMEOUT_S = 120


class NativeUnavailable(Exception):
    """Why the kernels cannot be had here, in words that follow "no native CPU kernels"."""


@functools.lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """Compile the sources, or find them compiled, and load them. Raises NativeUnavailable."""
    if os.name != "posix":
        raise NativeUnavailable("they are built on Linux and macOS only")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NativeUnavailable("there is no C compiler: install gcc or clang, or set CC")
    sources = _sources()
    runtime = _torch_openmp()
    version = _run([compiler, "--version"])
    parts = (
        *(one for item in sources.items() for one in (item[0].encode(), item[1])),
        version.encode(),
        _cpu().encode(),
        str(runtime).encode(),
    )
    key = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:24]
    build = functools.partial(_compile, compiler, sources, runtime, f"kernels-{key}")
    try:
        directory = _private_cache_directory()
        if directory is not None and os.access(directory, os.W_OK):
            return _load_kept(directory, f"kernels-{key}", build)
        if directory is not None:  # an image that cannot be written, made with what it needs
            for library in sorted(directory.glob(f"kernels-{key}-*.so")):
                if library.name == _name_with_digest(f"kernels-{key}", library):
                    return _load(library)
        # Once loaded it needs no file, and no later moment is sure to come: workers leave by os._exit.
        with tempfile.TemporaryDirectory(prefix="penstock-kernels-") as folder:
            return _load(build(Path(folder)))
    except OSError as error:
        raise NativeUnavailable(f"they cannot be stored or loaded: {error}") from None


def _load_kept(directory: Path, name: str, build: Callable[[Path], Path]) -> ctypes.CDLL:
    for library in sorted(directory.glob(f"{name}-*.so")):
        try:
            if library.name == _name_with_digest(name, library):
                return _load(library)
        except OSError:
            # Unreadable, or refused by the loader although whole: one made now may fare better.
            library.unlink(missing_ok=True)
            continue
        library.unlink(missing_ok=True)
    return _load(build(directory))


def _load(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


def _name_with_digest(name: str, library: Path) -> str:
    return f"{name}-{hashlib.sha256(library.read_bytes()).hexdigest()[:24]}.so"


def _sources() -> Mapping[str, bytes]:
    """By name, in order."""
    here = resources.files("penstock.engine.ops")
    return {one.name: one.read_bytes() for one in sorted(here.iterdir(), key=str) if one.name.endswith((".c", ".h"))}


def _compile(compiler: str, sources: Mapping[str, bytes], runtime: Path | None, name: str, directory: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        for file, text in sources.items():
            Path(folder, file).write_bytes(text)
        texts = [Path(folder, file) for file in sources if file.endswith(".c")]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            modules = list(pool.map(functools.partial(_module, compiler), texts))
        built = Path(folder, "native.so")
        openmp = [str(runtime)] if runtime is not None else ["-fopenmp"]
        _run([compiler, "-shared", *map(str, modules), "-o", str(built), *openmp, "-lm"])
        with built.open("rb") as stream:
            os.fsync(stream.fileno())
        library = directory / _name_with_digest(name, built)
        # Atomic: another process may be building or loading the same name.
        os.replace(built, library)
    return library


def _module(compiler: str, text: Path) -> Path:
    module = text.with_suffix(".o")
    # Where an innermost loop begins in its cache line decides up to a fifth of its speed (Xeon, 2026).
    flags = [
        "-O3", "-falign-loops=64", "-fPIC", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-w",
    ]  # fmt: skip
    try:
        _run([compiler, *flags, "-march=native", "-c", str(text), "-o", str(module)])
    except NativeUnavailable:
        # Some compilers know this machine by no name; a generic build still beats torch's operators.
        _run([compiler, *flags, "-c", str(text), "-o", str(module)])
    return module


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{command[0]} did not run: {error}") from None
    if done.returncode:
        raise NativeUnavailable(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def _torch_openmp() -> Path | None:
    """The OpenMP library torch brought along and has loaded; None when it uses the system's."""
    for file in sorted(Path(torch.__file__).parent.joinpath("lib").glob("lib*omp*")):
        if file.name.startswith(("libgomp", "libomp", "libiomp")):
            return file
    return None


def _cpu() -> str:
    """What -march=native depends on: the CPU's feature flags, where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return " ".join(os.uname())
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _private_cache_directory() -> Path | None:
    """The user's own directory for compiled code, 0700; None where that cannot be had.

    Code is loaded from it, so a directory that others could write to is not used.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        directory = Path(base, "penstock", "kernels")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return directory
    except (OSError, RuntimeError):
        return None  # a read-only or missing home is common in containers
    return None
