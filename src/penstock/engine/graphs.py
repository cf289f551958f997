"""CUDA graphs of steps that only decode: a step's three hundred launches become one.

A graph is fixed: its shapes, its addresses, its grids. So the rows of a step are filled up to one of a few sizes, the
inputs lie in a buffer that is written before each replay, and how many parts attention cuts a row into belongs to the
graph's key. Rows that only fill up are a token 0 of nobody, whose KV goes to a block of nobody.

Graphs are captured when first needed, or all at the start by `warm_up`. They share one memory pool, in which each finds
its working memory where the one before left it: so what a graph gives is read before the next one runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from penstock.engine.staging import Staging

SIZES: Final = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Rows of a graph. Beyond the last one a step takes longer than launching it does."""

Inputs = dict[str, Tensor]
Compute = Callable[[Inputs, int], Tensor]
"""Hidden states [rows, D] of the rows that the inputs describe, the longest of which has so many tokens."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph, or on a CPU, where there are none, the call that one would replace."""

    inputs: Tensor
    hidden: Tensor
    graph: torch.cuda.CUDAGraph | None
    again: Callable[[], Tensor]


class DecodeGraphs:
    """Graphs by number of rows and of attention's parts."""

    def __init__(self, compute: Compute, parts: Callable[[int, int], int], staging: Staging, device: torch.device):
        """`parts`: of (rows, longest), into how many parts attention cuts a row then."""
        self._compute, self._parts, self._staging, self._device = compute, parts, staging, device
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._captured)

    @staticmethod
    def size(rows: int) -> int | None:
        """Rows of the smallest graph that holds so many; None: none does."""
        return next((size for size in SIZES if size >= rows), None)

    def run(self, arrays: dict[str, np.ndarray], longest: int) -> Tensor:
        """Hidden states [rows, D] of arrays that are filled up to a size; valid until the next call."""
        captured = self._get(arrays, longest)
        self._staging.send(arrays, captured.inputs)
        if captured.graph is None:
            return captured.again()
        captured.graph.replay()
        return captured.hidden

    def warm_up(self, arrays_of: Callable[[int], dict[str, np.ndarray]], most: int, longest: int) -> None:
        """Capture every size up to the one for `most` rows, for sequences of up to `longest` tokens.

        `arrays_of`: inputs of so many rows that only fill up.
        """
        for size in SIZES:
            self._get(arrays_of(size), longest)
            if size >= most:
                return

    def _get(self, arrays: dict[str, np.ndarray], longest: int) -> _Captured:
        rows = len(arrays["token_ids"])
        key = (rows, self._parts(rows, longest))
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(arrays, rows, longest)
        return captured

    def _capture(self, arrays: dict[str, np.ndarray], rows: int, longest: int) -> _Captured:
        buffer = torch.zeros(self._staging.size(arrays), dtype=torch.uint8, device=self._device)
        # What is written before the first replay is what warming up reads: real inputs.
        inputs = self._staging.send(arrays, buffer)

        def again() -> Tensor:
            return self._compute(inputs, longest)

        hidden = again()
        if self._device.type != "cuda":
            return _Captured(buffer, hidden, None, again)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            hidden = again()
        self._pool = graph.pool()
        return _Captured(buffer, hidden, graph, again)
