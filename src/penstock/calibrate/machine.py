"""What is measured beside a model's operators: products of other shapes and their peak, copies between pools."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import torch

from penstock.control.step import Swap
from penstock.engine.architecture import Architecture
from penstock.engine.ops.kernels import Kernels
from penstock.engine.pool import KVPool
from penstock.twin.calibrated import OperatorTime, time_of
from penstock.twin.operators import Gemm

SHAPES: Final = ((512, 512), (2048, 512), (1024, 1024), (3072, 1024), (2048, 2048), (6144, 2048), (2048, 6144))
"""(columns, inner) of common widths: other models' products are scaled from the nearest."""
ROWS: Final = (1, 8, 9, 32, 128, 512)
COLD_BYTES: Final = 96 * 2**20
"""Weights cycle through at least so many, as a model's layers do, so that no cache keeps them until the next use."""
SWAPPED_BLOCKS: Final = (1, 16, 128)


@dataclass(frozen=True, slots=True)
class Copies:
    """Blocks between the device's pool and the host's, both ways: latency + bytes / rate."""

    bytes_per_s: float
    latency_s: float


def products(kernels: Kernels, dtype: str) -> Iterator[OperatorTime]:
    """One line for each of SHAPES and ROWS, as it is measured."""
    kind = getattr(torch, dtype)
    for columns, inner in SHAPES:
        copies = max(2, min(64, -(-COLD_BYTES // (columns * inner * kind.itemsize))))
        weights = [torch.randn(columns, inner).mul_(inner**-0.5).to(kind) for _ in range(copies)]
        for rows in ROWS:
            x = torch.randn(rows, inner).to(kind)
            samples = []
            for weight in (weights * 2)[: max(6, min(len(weights), 400 // rows))]:
                started = perf_counter()
                kernels.linear(x, weight, None)
                samples.append(perf_counter() - started)
            operator = Gemm("gate_up", rows, columns, inner, dtype, dtype)
            line = time_of(operator, statistics.median(samples[1:]), len(samples) - 1)
            assert line is not None
            yield line


def peak_flop_per_s(dtype: str, width: int = 1536, times: int = 4) -> float:
    """The fastest of some large products through torch."""
    a, b = (torch.randn(width, width).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(times):
        started = perf_counter()
        a @ b
        seconds.append(perf_counter() - started)
    return 2.0 * width**3 / min(seconds)


def copies(architecture: Architecture, dtype: str, block_tokens: int) -> Copies:
    """Swaps of few and many blocks through the engine's own pools."""
    most = max(SWAPPED_BLOCKS)
    pool = KVPool(
        architecture, blocks=2 * most, block_tokens=block_tokens, host_blocks=2 * most, dtype=getattr(torch, dtype),
        device=torch.device("cpu"),
    )  # fmt: skip
    pool.device.fill_(0.5)
    pool.host.fill_(0.5)
    block_bytes = pool.device[0].nbytes
    points = []
    for blocks in SWAPPED_BLOCKS:
        here = tuple(range(0, 2 * blocks, 2))
        swap = Swap("", here, here[::-1])
        samples = []
        for _ in range(7):
            for move in (pool.swap_out, pool.swap_in):
                started = perf_counter()
                move(swap)
                samples.append(perf_counter() - started)
        points.append((blocks * block_bytes, statistics.median(samples)))
    (small, first), (large, last) = points[0], points[-1]
    rate = (large - small) / max(last - first, 1e-9)
    return Copies(rate, max(0.0, first - small / rate))


def cpu_name() -> str:
    """What the system calls this CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def memory_bytes() -> int:
    """Of the machine; 0 where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), 0)
