"""The roofline price: an operator takes as long as the slower of its products and its bytes (Williams, Waterman and
Patterson, CACM 2009), on the device that a catalogue file describes.

What the file says of reached rates is used: `reached_flop_per_s`, `compute_efficiency`, `memory_efficiency` and
`kernel_s`. `Roofline(device, ideal=True)` leaves them out and gives the limit itself, the speed of light. No number of
it was measured for the operator at hand, so every estimate says "assumed".
"""

from __future__ import annotations

from typing import Final

from penstock.catalog.device import Device, Figure
from penstock.twin.collectives import collective_time, point_to_point, wire_of
from penstock.twin.operators import Collective, Elementwise, Operator
from penstock.twin.price import Estimate

COMPUTED_AS: Final[dict[str, tuple[str, ...]]] = {
    "float32": ("float32",),
    "bfloat16": ("bfloat16", "float16", "float32"),
    "float16": ("float16", "bfloat16", "float32"),
    "fp8": ("fp8", "bfloat16", "float16", "float32"),
    "fp8_block": ("fp8_block", "fp8", "bfloat16", "float16", "float32"),
    "int8": ("int8", "bfloat16", "float16", "float32"),
    # Weights of 4 bits are unpacked to the activations' 16 (AWQ, GPTQ, Marlin), also where units for 4 bits exist, as
    # for float4 where they do not.
    "int4": ("bfloat16", "float16", "float32"),
    "nvfp4": ("nvfp4", "bfloat16", "float16", "float32"),
    "mxfp4": ("mxfp4", "bfloat16", "float16", "float32"),
}
"""Weights' dtype to the types that products may run in, first choice first."""


def matrix_rate(device: Device, dtype: str, *, ideal: bool = False, kernel_path: str | None = None) -> float:
    """FLOP/s of products whose weights are `dtype`: that type's units, or the next wider ones the device has.

    ideal: the dense peak. Else what was reached there, or peak x efficiency; with `kernel_path` no more than that kind
    of matrix instruction gives (mma, wgmma).
    """
    for candidate in COMPUTED_AS.get(dtype, (dtype,)):
        peak = device.matrix_flop_per_s.get(candidate)
        if peak is None:
            continue
        rate = peak.value
        if ideal:
            return rate
        reached = device.reached_flop_per_s.get(candidate)
        rate = reached.value if reached else rate * _share(device.compute_efficiency)
        path = device.kernel_paths.get(kernel_path or "", {})
        # bfloat16 and float16 share their units; a path says one of them.
        limit = path.get(candidate) or (path.get("float16") if candidate == "bfloat16" else None)
        return min(rate, limit.value) if limit else rate
    # A device without any wider type (TPUs had no float32 figure once): its widest, as slow as anything it has.
    slowest = min(figure.value for figure in device.matrix_flop_per_s.values())
    return slowest if ideal else slowest * _share(device.compute_efficiency)


def memory_rate(device: Device, *, ideal: bool = False) -> float:
    """Bytes/s between memory and units."""
    return device.memory_bytes_per_s.value * (1.0 if ideal else _share(device.memory_efficiency))


def ridge_point(device: Device, dtype: str) -> float:
    """FLOP per byte at which the limits of compute and memory meet."""
    return matrix_rate(device, dtype, ideal=True) / memory_rate(device, ideal=True)


class Roofline:
    """An `OperatorPrice` from datasheet figures and laws.

    Args:
        device: whose limits hold.
        ideal: no efficiencies and no shortest kernel: nothing real is faster.
        kernel_path: the kind of matrix instruction that kernels use, where the device's file tells them apart.
    """

    name = "roofline"

    def __init__(self, device: Device, *, ideal: bool = False, kernel_path: str | None = None) -> None:
        self.device = device
        self._ideal = ideal
        self._memory = memory_rate(device, ideal=ideal)
        self._floor_s = 0.0 if ideal or device.kernel_s is None else device.kernel_s.value
        self._rate = {dtype: matrix_rate(device, dtype, ideal=ideal, kernel_path=kernel_path) for dtype in COMPUTED_AS}

    def price(self, operator: Operator) -> Estimate:
        """Seconds of one run. Collectives and swaps go over the device's links, all else over units and memory."""
        if isinstance(operator, Collective):
            return self._estimate(collective_time(operator, self.device).seconds)
        if isinstance(operator, Elementwise):
            if operator.kind == "swap":
                return self._estimate(self._swap_s(operator))
            # Vector units: float32 is the rate that stands for them.
            return self._estimate(self._bound(operator.flop / self._rate["float32"], operator.work().bytes))
        work = operator.work()
        return self._estimate(self._bound(work.flop / self._rate[operator.dtype], work.bytes))

    def _bound(self, compute_s: float, size: float) -> float:
        seconds = max(compute_s, size / self._memory)
        return max(seconds, self._floor_s) if seconds > 0 else 0.0

    def _swap_s(self, operator: Elementwise) -> float:
        """Blocks read here are written there: the link carries each byte once."""
        return point_to_point(operator.read_bytes, wire_of(self.device.host_link, 2, self.device))

    def _estimate(self, seconds: float) -> Estimate:
        return Estimate(seconds, model=self.name, basis="assumed")


def _share(figure: Figure | None) -> float:
    return 1.0 if figure is None else figure.value
