"""Working memory that steps have in common: it grows at once, and shrinks when steps have needed little for a while.

It has pages of its own. In malloc's heap, what is given up and asked for again a little larger leaves holes, which fill
with smaller blocks and are never whole again: of 4 MB of logits per step, 35 MB stayed.
"""

from __future__ import annotations

import mmap
from typing import Final

import torch
from torch import Tensor

from penstock.engine import process_memory

SMALL_STEPS: Final = 64
"""After so many steps in a row that need less than a quarter of it, it shrinks to what they need."""


class Scratch:
    """One piece of memory for one purpose, on the CPU of a POSIX system. One caller at a time."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._small_steps = 0

    @property
    def held(self) -> int:
        """Bytes held between steps."""
        return self._memory.numel()

    def take(self, size: int) -> Tensor:
        """uint8 [size], at the beginning of a page. What the last call gave may be written over from now on."""
        self._small_steps = self._small_steps + 1 if 4 * size < self.held else 0
        if size > self.held or self._small_steps >= SMALL_STEPS:
            shrinks = size < self.held
            # Given up before the new one is asked for: both need not exist at one time.
            self._memory = torch.empty(0, dtype=torch.uint8)
            if shrinks:
                # What large steps leave in the heap besides.
                process_memory.trim()
            self._memory = _pages(size)
            self._small_steps = 0
        return self._memory[:size]


def _pages(size: int) -> Tensor:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)
