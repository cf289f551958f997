"""The engine's kernels with a stopwatch: each call is timed where it runs, between its neighbours in a real step.

So caches are as they are in serving: a layer's weights were last used a whole model ago, its input a moment ago. Where
all layers are one call (ops/layers.py), that call tells what its parts took.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

from torch import Tensor

from penstock.engine.ops.kernels import Heads, Kernels, QkNorm, Segments
from penstock.engine.ops.layers import PARTS, NativeLayers
from penstock.engine.weights import Matrix

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the kernel, the shape that decides its cost, its seconds."""

    kernel: str
    """linear, norm, activation, rope, attention."""
    rows: int
    columns: int
    """Of a product: its outputs. Else 0."""
    inner: int
    seconds: float


class TimedKernels:
    """See `Kernels` for what each does."""

    def __init__(self, kernels: Kernels) -> None:
        self.name = kernels.name
        self.plain = kernels
        """What is timed; a decoder asks, to see whether all its layers may be one call."""
        self.calls: list[Call] = []
        self._layers: NativeLayers | None = None
        self._seconds = (ctypes.c_double * len(PARTS))()

    def watch(self, layers: NativeLayers) -> None:
        """Its parts are timed too, until `leave`."""
        self._layers, layers.seconds = layers, self._seconds

    def leave(self) -> None:
        """Nothing is timed inside layers any longer."""
        if self._layers is not None:
            self._layers.seconds = None

    def take(self, rows: int) -> list[Call]:
        """The calls of a step of so many rows, and as many of each part of the layers as they have: each its mean."""
        calls, layers = self.calls, self._layers
        if layers is not None:
            shapes = layers.shapes()
            for part, seconds in zip(PARTS, self._seconds, strict=True):
                times = layers.norms if part == "norm" else layers.count
                kernel, (columns, inner) = ("linear", shapes[part]) if part in shapes else (part, (0, 0))
                calls += [Call(kernel, rows, columns, inner, seconds / times)] * times
        self.clear()
        return calls

    def clear(self) -> None:
        """Forget what has been called."""
        self.calls = []
        ctypes.memset(self._seconds, 0, ctypes.sizeof(self._seconds))

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        columns, inner = weight.shape
        return self._timed("linear", x.shape[0], columns, inner, self.plain.linear, x, weight, bias)

    def add_rms_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        return self._timed("norm", x.shape[0], 0, 0, self.plain.add_rms_norm, x, delta, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return self._timed("activation", gate_up.shape[0], 0, 0, self.plain.silu_mul, gate_up)

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
        store = self.plain.rotate_and_store
        self._timed("rope", qkv.shape[0], 0, 0, store, qkv, heads, angles, norm, pool, layer, kv_index)

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
        attend, rest = self.plain.attention, (segments, scale, window, softcap)
        return self._timed("attention", qkv.shape[0], 0, 0, attend, qkv, heads, pool, layer, *rest)

    def _timed(self, kernel: str, rows: int, columns: int, inner: int, run: Callable[..., R], *arguments: Any) -> R:
        started = perf_counter()
        result = run(*arguments)
        self.calls.append(Call(kernel, rows, columns, inner, perf_counter() - started))
        return result
