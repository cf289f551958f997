"""HPX compute and STREAM (Heller et al., ISC 2016 workshops): an abstraction at full memory bandwidth, on this machine.

The paper's claim is parity with native STREAM; its GB/s are not in what could be read. Ours: torch kernels with `out=`,
on slices that allocator and executor divide alike, against numpy in place, over the same memory, turn by turn.
"""

from __future__ import annotations

import os
from itertools import pairwise
from math import prod
from typing import Final

from penstock.calibrate.stream import BYTES_PER_ELEMENT, TOLERANCE, StreamResult, compare_streams, run_stream
from penstock.reproduce.registry import Reproduction, Sheet
from penstock.twin.placement import bytes_per_s, half_peak_items, local_shares, split

LARGE: Final = 10_000_000
"""Doubles an array: 80 MB, twice the last cache of common servers' sockets."""
_ITERATIONS: Final = 12
_LOCAL: Final = 40e9
_REMOTE: Final = 20e9
"""Per socket; assumed, for the ratio only."""


def run() -> Reproduction:
    sheet = Sheet()
    _partition(sheet)
    for backend in ("torch", "numpy"):
        alone = run_stream(100_000, 10, 1, backend)
        sheet.at_most(f"STREAM recurrence, {backend}", TOLERANCE, alone.error, "", "mean relative error, 11 iterations")
    cpus = os.cpu_count() or 1
    for threads in sorted({1, cpus}):
        _parity(sheet, threads)
    _knee(sheet)
    _sockets(sheet)
    sheet.note(
        "The paper claims parity on a dual-socket Xeon and a K40m; no GB/s of it could be found. Parity here is the "
        "geometric mean of the four kernels' ratios, 0.95 or more: single kernels swing with the machine's load."
    )
    sheet.note("numpy has no fused triad and goes by blocks that stay in the cache; that is its own disadvantage.")
    sheet.note("Bytes are those of the formulas; a cache that fetches lines before overwriting them moves up to 1.5 x.")
    return sheet.close("hpx-stream")


def _partition(sheet: Sheet) -> None:
    parts = [split(items, targets) for items in (0, 1, 7, 1000, 4097) for targets in (1, 2, 3, 8, 64)]
    gaps = sum(abs(one[0].start) + sum(before.stop != after.start for before, after in pairwise(one)) for one in parts)
    sheet.equal("partition: gaps or overlaps", 0, gaps, "", "25 sizes and target counts")
    uneven = max(max(map(len, one)) - min(map(len, one)) for one in parts)
    sheet.at_most("partition: sizes differ by", 1, uneven, "items", "[i n / k, (i + 1) n / k)")


def _parity(sheet: Sheet, threads: int) -> None:
    both = compare_streams(LARGE, _ITERATIONS, threads)
    ours, native = both["torch"], both["numpy"]
    ratios = _ratios(ours, native)
    what = f"{LARGE / 1e6:.0f} M doubles, {threads} thread{'s' if threads > 1 else ''}"
    mean = prod(ratios.values()) ** (1 / len(ratios))
    sheet.at_least(f"torch over numpy, {what}", 0.95, mean, "x", "geometric mean of best rates, this machine, this run")
    for kernel, ratio in ratios.items():
        rate = ours.kernels[kernel].bytes_per_s / 1e9
        sheet.info(f"  {kernel}", rate, "GB/s", f"numpy {native.kernels[kernel].bytes_per_s / 1e9:.2f}: {ratio:.2f} x")


def _ratios(ours: StreamResult, native: StreamResult) -> dict[str, float]:
    return {name: one.bytes_per_s / native.kernels[name].bytes_per_s for name, one in ours.kernels.items()}


def _knee(sheet: Sheet) -> None:
    """Where launching a kernel stops mattering."""
    launch_s = run_stream(64, 100, 1).kernels["triad"].best_s
    sheet.info("launch of one torch kernel", 1e6 * launch_s, "us", "triad over 64 doubles")
    for elements in (1_000, 10_000, 100_000, 1_000_000):
        both = compare_streams(elements, 50, 1)
        rate = both["torch"].kernels["triad"].bytes_per_s
        ratio = _ratios(both["torch"], both["numpy"])["triad"]
        reached = 1 - launch_s * rate / (BYTES_PER_ELEMENT["triad"] * elements)
        sheet.info(f"triad over {elements:,} doubles", rate / 1e9, "GB/s",
                   f"{ratio:.2f} x numpy; {100 * max(0.0, reached):.0f} % of the time is not launching")  # fmt: skip
    cached = run_stream(100_000, 50, 1).kernels["triad"].bytes_per_s
    half = half_peak_items(launch_s, cached, BYTES_PER_ELEMENT["triad"])
    sheet.info("half-peak array, n 1/2", half, "doubles", "launch x rate in the cache / 24 B")


def _sockets(sheet: Sheet) -> None:
    """The closed form on a host of two sockets."""
    items, sockets = 1_000_000, 2
    evenly = split(items, sockets)
    full, source = sockets * _LOCAL, f"closed form; {_LOCAL / 1e9:.0f} and {_REMOTE / 1e9:.0f} GB/s assumed"

    def share(placed: list[range]) -> float:
        return bytes_per_s(local_shares(placed, evenly), _LOCAL, _REMOTE) / full

    sheet.equal("two sockets, placed as run", 1.0, share(evenly), "of full", source)
    other = share(evenly[::-1])
    sheet.equal("two sockets, each on the other's memory", _REMOTE / _LOCAL, other, "of full", "remote / local")
    sheet.info("two sockets, all first touched by one", share([range(items)]), "of full", "contention for it left out")
