"""STREAM on this machine: copy, scale, add, triad over three arrays of doubles, in numpy or in torch.

The rules are McCalpin's, as HPX ports them: c = a; b = 3 c; c = a + b; a = b + 3 c; bytes are those the formula names
(2, 2, 3 and 3 x 8 x n), without the lines a cache fetches before it overwrites them; the best of the iterations counts;
afterwards the arrays must hold what the same recurrence gives for a scalar. Threads get slices by `placement.split`,
and each touches its own slice first, so that pages lie where they are used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch

from penstock.errors import BadInput, PenstockError
from penstock.runtime.cores import own_cores
from penstock.twin.placement import split

Backend = Literal["torch", "numpy"]
Kernel = Callable[[Any, Any, Any], object]
SCALAR: Final = 3.0
BYTES_PER_ELEMENT: Final[dict[str, int]] = {"copy": 16, "scale": 16, "add": 24, "triad": 24}
TOLERANCE: Final = 1e-13
"""Mean relative error allowed against the recurrence (STREAM's own bound for doubles)."""
MOST_ITERATIONS: Final = 200
"""Values grow 15-fold per iteration; 1.8e308 is reached after 261."""
_BLOCK: Final = 16_384
"""numpy has no fused triad: it goes by blocks of 128 KiB, so that its intermediate stays in the cache."""


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One kernel: seconds of its best and of its mean iteration, warm-up left out."""

    best_s: float
    mean_s: float
    bytes: int

    @property
    def bytes_per_s(self) -> float:
        """At the best iteration."""
        return self.bytes / self.best_s


@dataclass(frozen=True, slots=True)
class StreamResult:
    """All four kernels of one run, by name."""

    backend: Backend
    elements: int
    threads: int
    kernels: dict[str, KernelResult]
    error: float
    """Mean relative error against the scalar recurrence; below TOLERANCE, or the run would have raised."""

    @property
    def bytes_per_s(self) -> float:
        """The best rate any kernel reached."""
        return max(kernel.bytes_per_s for kernel in self.kernels.values())


def run_stream(
    elements: int = 10_000_000, iterations: int = 10, threads: int | None = None, backend: Backend = "torch"
) -> StreamResult:
    """One backend. Arrays should be 4 times the last cache or more; below, it is the cache that is measured.

    Args:
        elements: doubles in each of the three arrays.
        iterations: timed ones; one more before them warms up.
        threads: slices that run at the same time; None: one per CPU.
    Raises:
        BadInput: no elements, no threads, or iterations that would overflow.
        PenstockError: the arrays do not hold what they should.
    """
    return next(iter(compare_streams(elements, iterations, threads, (backend,)).values()))


def compare_streams(
    elements: int, iterations: int, threads: int | None, backends: tuple[Backend, ...] = ("torch", "numpy")
) -> dict[Backend, StreamResult]:
    """Backends by turns, kernel by kernel over the same memory, so that what disturbs one disturbs all.

    Every iteration starts the backends in another order. The error is that of the arrays they all wrote: to check one
    backend by itself, run it alone. Raises as `run_stream`.
    """
    count = threads if threads is not None else own_cores()
    if elements < 1 or count < 1 or not 1 <= iterations <= MOST_ITERATIONS:
        raise BadInput(
            field="stream", value=(elements, iterations, count), why="elements, threads or iterations are out of range",
            remedy=f"1 or more elements and threads, 1 to {MOST_ITERATIONS} iterations",
        )  # fmt: skip
    slices = [part for part in split(elements, count) if part]
    arrays = [torch.empty(elements, dtype=torch.float64) for _ in range(3)]
    times: dict[Backend, dict[str, list[float]]] = {
        name: {kernel: [] for kernel in BYTES_PER_ELEMENT} for name in backends
    }
    with _one_torch_thread(), ThreadPoolExecutor(len(slices)) as pool:
        # One set of arrays serves all backends: no kernel reads what it writes, so run again it writes the same.
        views = {name: [_cut(arrays, part, name) for part in slices] for name in backends}
        _each(pool, _fill, next(iter(views.values())))
        for iteration in range(iterations + 1):
            for kernel in BYTES_PER_ELEMENT:
                for turn in range(len(backends)):
                    name = backends[(iteration + turn) % len(backends)]
                    started = time.perf_counter()
                    _each(pool, _KERNELS[name][kernel], views[name])
                    if iteration:
                        times[name][kernel].append(time.perf_counter() - started)
        error = _error(arrays, iterations + 1)
    if not error < TOLERANCE:
        raise PenstockError(f"STREAM's arrays are off by {error:.1e} (mean, relative) after {iterations} iterations")
    return {
        name: StreamResult(
            name, elements, len(slices),
            {
                kernel: KernelResult(min(each), sum(each) / len(each), BYTES_PER_ELEMENT[kernel] * elements)
                for kernel, each in times[name].items()
            },
            error,
        )
        for name in backends
    }  # fmt: skip


def expected(iterations: int) -> tuple[float, float, float]:
    """What a, b and c hold after so many iterations, warm-up included.

    >>> expected(1)
    (15.0, 3.0, 4.0)
    """
    a, b, c = 1.0, 2.0, 0.0
    for _ in range(iterations):
        c = a
        b = SCALAR * c
        c = a + b
        a = b + SCALAR * c
    return a, b, c


def _error(arrays: list[torch.Tensor], iterations: int) -> float:
    wanted = expected(iterations)
    return max(float((array - value).abs().mean()) / abs(value) for array, value in zip(arrays, wanted, strict=True))


def _cut(arrays: list[torch.Tensor], part: range, backend: Backend) -> tuple[Any, Any, Any]:
    a, b, c = (array[part.start : part.stop] for array in arrays)
    return (a, b, c) if backend == "torch" else (a.numpy(), b.numpy(), c.numpy())


def _each(pool: ThreadPoolExecutor, work: Kernel, slices: list[tuple[Any, Any, Any]]) -> None:
    """All slices at once; a single one in this thread, which costs no hand-over."""
    if len(slices) == 1:
        work(*slices[0])
        return
    for done in [pool.submit(work, *part) for part in slices]:
        done.result()


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Slices are the parallelism: torch adds none of its own meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fill(a: Any, b: Any, c: Any) -> None:
    for array, value in ((a, 1.0), (b, 2.0), (c, 0.0)):
        array[...] = value


def _numpy_triad(a: Any, b: Any, c: Any) -> None:
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK]
        np.multiply(c[start : start + _BLOCK], SCALAR, out=block)
        np.add(block, b[start : start + _BLOCK], out=block)


_KERNELS: Final[dict[Backend, dict[str, Kernel]]] = {
    "torch": {
        "copy": lambda a, b, c: c.copy_(a),
        "scale": lambda a, b, c: torch.mul(c, SCALAR, out=b),
        "add": lambda a, b, c: torch.add(a, b, out=c),
        "triad": lambda a, b, c: torch.add(b, c, alpha=SCALAR, out=a),
    },
    "numpy": {
        "copy": lambda a, b, c: np.copyto(c, a),
        "scale": lambda a, b, c: np.multiply(c, SCALAR, out=b),
        "add": lambda a, b, c: np.add(a, b, out=c),
        "triad": _numpy_triad,
    },
}
