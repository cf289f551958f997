"""The operations in C on the CPU: compiled once per machine by the system's compiler, called through ctypes.

The library lies in the user's cache directory. Its name holds the hash of everything it depends on (source, compiler,
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
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from penstock.engine.ops.kernels import Heads, QkNorm, Segments
from penstock.engine.weights import Matrix

_COMPILE_TIMEOUT_S = 120
_POINTER, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_double


class NativeUnavailable(Exception):
    """Why the kernels cannot be had here, in words that follow "no native CPU kernels"."""


class NativeKernels:
    """See `Kernels` for what each does. Threads follow torch.get_num_threads()."""

    name = "native"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._attention = library.penstock_attention
        self._attention.argtypes = [_POINTER] * 7 + [_LONG] * 10 + [_DOUBLE, _DOUBLE, _LONG, _LONG]
        self._attention.restype = ctypes.c_int
        self._linear = library.penstock_linear
        self._linear.argtypes = [_POINTER] * 4 + [_LONG] * 5
        self._linear.restype = ctypes.c_int
        self._add_rms_norm = library.penstock_add_rms_norm
        self._add_rms_norm.argtypes = [_POINTER] * 4 + [_LONG] * 2 + [_DOUBLE, _LONG, _LONG]
        self._add_rms_norm.restype = None
        self._silu_mul = library.penstock_silu_mul
        self._silu_mul.argtypes = [_POINTER] * 2 + [_LONG] * 4
        self._silu_mul.restype = None
        self._rotate_and_store = library.penstock_rotate_and_store
        self._rotate_and_store.argtypes = [_POINTER] * 7 + [_LONG] * 7 + [_DOUBLE, _LONG, _LONG]
        self._rotate_and_store.restype = None

    def max_threads(self) -> int:
        """What the OpenMP runtime these kernels use would start."""
        return int(self._library.penstock_max_threads())

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        if not isinstance(weight, Tensor):
            return weight.product(x, bias)
        rows, inputs = x.shape
        outputs = weight.shape[0]
        half = x.dtype is torch.bfloat16
        if rows > _few_rows(half, outputs * inputs):
            return functional.linear(x, weight, bias)
        out = x.new_empty(rows, outputs)
        failed = self._linear(
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            outputs,
            half,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("a matrix product could not get its working memory")
        return out

    def add_rms_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        rows, width = x.shape
        self._add_rms_norm(
            x.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            rows,
            width,
            eps,
            x.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        half = gate_up.dtype is torch.bfloat16
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width, half, torch.get_num_threads())
        return out

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: Heads,
        angles: tuple[Tensor, Tensor] | None,
        norm: QkNorm | None,
        pool: Tensor,
        layer: int,
        kv_index: Tensor,
    ) -> None:
        self._rotate_and_store(
            qkv.data_ptr(),
            _at_layer(pool, layer),
            None if angles is None else angles[0].data_ptr(),
            None if angles is None else angles[1].data_ptr(),
            None if norm is None else norm.query.data_ptr(),
            None if norm is None else norm.key.data_ptr(),
            kv_index.data_ptr(),
            qkv.shape[0],
            heads.query,
            heads.kv,
            heads.width,
            0 if angles is None else 2 * angles[0].shape[1],
            pool.shape[4],
            pool.stride(0),
            0.0 if norm is None else norm.eps,
            qkv.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )

    def attention(
        self,
        qkv: Tensor,
        heads: Heads,
        pool: Tensor,
        layer: int,
        segments: Segments,
        scale: float,
        window: int | None,
        softcap: float | None = None,
    ) -> Tensor:
        out = qkv.new_empty(qkv.shape[0], heads.query * heads.width)
        failed = self._attention(
            qkv.data_ptr(),
            _at_layer(pool, layer),
            out.data_ptr(),
            segments.first_row.data_ptr(),
            segments.lengths.data_ptr(),
            segments.table_rows.data_ptr(),
            segments.tables.data_ptr(),
            qkv.stride(0),
            pool.stride(0),
            segments.tables.stride(0),
            segments.lengths.shape[0],
            segments.longest_rows,
            heads.query,
            heads.kv,
            heads.width,
            pool.shape[4],
            window or 0,
            scale,
            softcap or 0.0,
            qkv.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("attention could not get its working memory")
        return out


@functools.lru_cache(maxsize=1)
def load_native() -> NativeKernels:
    """Compile the kernels, or find them compiled, and load them. Raises NativeUnavailable."""
    if os.name != "posix":
        raise NativeUnavailable("they are built on Linux and macOS only")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NativeUnavailable("there is no C compiler: install gcc or clang, or set CC")
    source = resources.files("penstock.engine.ops").joinpath("native.c").read_bytes()
    runtime = _torch_openmp()
    version = _run([compiler, "--version"])
    parts = (source, version.encode(), _cpu().encode(), str(runtime).encode())
    key = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:24]
    build = functools.partial(_compile, compiler, source, runtime, f"kernels-{key}")
    try:
        directory = _private_cache_directory()
        if directory is not None:
            return _load_kept(directory, f"kernels-{key}", build)
        # Once loaded it needs no file, and no later moment is sure to come: workers leave by os._exit.
        with tempfile.TemporaryDirectory(prefix="penstock-kernels-") as folder:
            return _load(build(Path(folder)))
    except OSError as error:
        raise NativeUnavailable(f"they cannot be stored or loaded: {error}") from None


def _load_kept(directory: Path, name: str, build: Callable[[Path], Path]) -> NativeKernels:
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


def _load(library: Path) -> NativeKernels:
    return NativeKernels(ctypes.CDLL(str(library)))


def _name_with_digest(name: str, library: Path) -> str:
    return f"{name}-{hashlib.sha256(library.read_bytes()).hexdigest()[:24]}.so"


def _compile(compiler: str, source: bytes, runtime: Path | None, name: str, directory: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        text, built, module = Path(folder, "native.c"), Path(folder, "native.so"), Path(folder, "native.o")
        text.write_bytes(source)
        flags = ["-O3", "-fPIC", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-w"]
        try:
            _run([compiler, *flags, "-march=native", "-c", str(text), "-o", str(module)])
        except NativeUnavailable:
            # Some compilers know this machine by no name; a generic build still beats torch's operators.
            _run([compiler, *flags, "-c", str(text), "-o", str(module)])
        openmp = [str(runtime)] if runtime is not None else ["-fopenmp"]
        _run([compiler, "-shared", str(module), "-o", str(built), *openmp, "-lm"])
        with built.open("rb") as stream:
            os.fsync(stream.fileno())
        library = directory / _name_with_digest(name, built)
        # Atomic: another process may be building or loading the same name.
        os.replace(built, library)
    return library


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
        mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        if mine and os.access(directory, os.W_OK):
            return directory
    except (OSError, RuntimeError):
        return None  # a read-only or missing home is common in containers
    return None


def _few_rows(half: bool, weight_elements: int) -> int:
    """Up to how many rows native.c multiplies faster than torch.

    There the time goes into reading the weights, which torch's libraries do at a third to all of its speed (measured
    on Zen 4, 2026, 256 x 768 to 4096 x 4096 elements); in bfloat16 they catch up sooner.
    """
    if not half:
        return 8
    return 2 if weight_elements <= 1 << 22 else 0


def _at_layer(pool: Tensor, layer: int) -> int:
    """Address of the layer's keys in block 0."""
    return pool.data_ptr() + layer * pool.stride(1) * pool.element_size()
