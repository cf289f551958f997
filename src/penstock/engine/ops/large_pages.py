"""Memory for packed weights: pieces one after the other in pages of 2 MiB.

A product that reads its weights once is as fast as memory is, and through pages of 4 KiB memory is a fifth slower. A
matrix of a few MiB in pages of its own has few whole ones of 2 MiB: of a model of 110 M parameters, half was in them.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from typing import Final

import torch
from torch import Tensor

from penstock.engine import process_memory

SMALLEST: Final = 1 << 20
"""Below, a piece comes from the heap."""
_PAGE: Final = 2 << 20
_STRETCH: Final = 32 << 20
_LINE: Final = 64


class LargePages:
    """Gives pieces of stretches of 32 MiB. A stretch goes back to the system with the last piece of it.

    May be called from any thread.
    """

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._stretch: weakref.ref[mmap.mmap] | None = None
        self._next = self._end = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As torch.empty; nothing was written to it."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size < SMALLEST:
            return torch.empty(shape, dtype=dtype)
        with self._one_at_a_time:
            stretch = None if self._stretch is None else self._stretch()
            if stretch is None or self._next + size > self._end:
                stretch = self._new(size)
            piece = torch.frombuffer(stretch, dtype=dtype, count=count, offset=self._next).view(shape)
            self._next += -(-size // _LINE) * _LINE
        return piece

    def _new(self, size: int) -> mmap.mmap:
        whole = -(-max(size, _STRETCH) // _PAGE) * _PAGE
        stretch = mmap.mmap(-1, whole + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = torch.frombuffer(stretch, dtype=torch.uint8).data_ptr()
        process_memory.ask_for_large_pages(address, whole + _PAGE)
        self._stretch = weakref.ref(stretch)
        self._next = -address % _PAGE
        self._end = self._next + whole
        return stretch
