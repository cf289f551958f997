"""Swap: copy a decoding sequence's blocks to host memory and back (vLLM, SOSP 2023, 4.5; FastSwitch).

Costs two copies of the KV and no computing. When the host is full, or the prompt is not finished, it falls back to
recompute. Shared prefix blocks are copied as well, so that a swapped sequence pins nothing on the device.
"""

from __future__ import annotations

from penstock.control.evict.evict import Evict
from penstock.control.sequence import Sequence


class SwapToHost(Evict):
    """A pool of host blocks, by number."""

    def __init__(self, host_blocks: int) -> None:
        self.host_blocks = host_blocks
        self._free = list(range(host_blocks - 1, -1, -1))

    def take_host(self, sequence: Sequence) -> tuple[int, ...] | None:
        count = len(sequence.blocks)
        if count > len(self._free):
            return None
        sequence.host_blocks = [self._free.pop() for _ in range(count)]
        return tuple(sequence.host_blocks)

    def give_back(self, sequence: Sequence) -> None:
        self._free.extend(reversed(sequence.host_blocks))
        sequence.host_blocks = []

    @property
    def free_host_blocks(self) -> int:
        return len(self._free)
