"""From numpy to a device in one copy: arrays of a step are put behind each other in pinned memory and sent together.

Each copy is a call to the driver and, from memory that is not pinned, a wait; a step has a dozen arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

_ALIGN: Final = 16
_DTYPES: Final[dict[np.dtype[Any], torch.dtype]] = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
}


class Staging:
    """A ring of host buffers: one is written again only after the device has read it."""

    def __init__(self, device: torch.device, *, buffers: int = 4) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffers = [self._host(1 << 16) for _ in range(buffers)]
        self._read: list[torch.cuda.Event | None] = [None] * buffers
        self._next = 0

    def send(self, arrays: Mapping[str, np.ndarray], into: Tensor | None = None) -> dict[str, Tensor]:
        """Copies on the device, by name; int32 and int64 arrays of any shape.

        `into`: uint8, of `size(arrays)` bytes or more: where they are to lie. None: in memory of their own.
        """
        size = self.size(arrays)
        number = self._next
        self._next = (number + 1) % len(self._buffers)
        event = self._read[number]
        if event is not None:
            event.synchronize()
        if len(self._buffers[number]) < size:
            self._buffers[number] = self._host(2 * size)
        buffer = self._buffers[number][:size]
        host = buffer.numpy()
        at = 0
        for array in arrays.values():
            host[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            at += _aligned(array.nbytes)
        target = torch.empty(size, dtype=torch.uint8, device=self._device) if into is None else into[:size]
        target.copy_(buffer, non_blocking=self._pinned)
        if self._pinned:
            event = event or torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._read[number] = event
        return self.views(arrays, target)

    @staticmethod
    def size(arrays: Mapping[str, np.ndarray]) -> int:
        """Bytes they take together, with room between them."""
        return sum(_aligned(array.nbytes) for array in arrays.values())

    @staticmethod
    def views(arrays: Mapping[str, np.ndarray], target: Tensor) -> dict[str, Tensor]:
        """Where `send` puts arrays of these shapes and types inside `target`."""
        found, at = {}, 0
        for name, array in arrays.items():
            found[name] = target[at : at + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
            at += _aligned(array.nbytes)
        return found

    def _host(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
