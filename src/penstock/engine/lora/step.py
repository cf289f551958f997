"""What adapters add to one step: the rows of each go through its two thin matrices, all other rows are left alone.

The batch is one for all adapters: the base model's products are computed once over all rows, and each adapter's own
rows, gathered, get their low-rank part on top (Punica's segmented products, Chen et al., MLSys 2024; S-LoRA, Sheng et
al., MLSys 2024). The cost is that of the rows which have an adapter; a step without any pays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Place = Literal["qkv", "out", "gate_up", "down"]


@dataclass(frozen=True, slots=True)
class Part:
    """One module's share of a place: columns [first, first + outputs) of what the place gives.

    `up` [outputs, r] has the scaling in it.
    """

    first: int
    up: Tensor


@dataclass(frozen=True, slots=True)
class Delta:
    """All of one adapter at one place of one layer: `down` [sum of ranks, inputs], and a part for each module."""

    down: Tensor
    parts: tuple[Part, ...]

    def add(self, x: Tensor, out: Tensor, rows: Tensor | None) -> None:
        """out [T, O] += this adapter's part of x [T, I], in place, in `rows` only (None: in all)."""
        thin = (x if rows is None else x.index_select(0, rows)) @ self.down.t()
        at = 0
        for part in self.parts:
            rank = part.up.shape[1]
            wide = thin[:, at : at + rank] @ part.up.t()
            columns = out[:, part.first : part.first + part.up.shape[0]]
            if rows is None:
                columns += wide
            else:
                columns.index_add_(0, rows, wide)
            at += rank


Weights = Mapping[tuple[int, Place], Delta]
"""One adapter by layer and place."""


@dataclass(frozen=True, slots=True)
class LayerAdapters:
    """The step's adapters at one layer."""

    layer: int
    segments: Sequence[tuple[Weights, Tensor | None]]

    def add(self, place: Place, x: Tensor, out: Tensor) -> None:
        """out [T, O] += what the adapters make of x [T, I] here, row by row its own."""
        for weights, rows in self.segments:
            delta = weights.get((self.layer, place))
            if delta is not None:
                delta.add(x, out, rows)


@dataclass(frozen=True, slots=True)
class StepAdapters:
    """Each adapter of the step with its rows, int64 [n] on the model's device; None: all rows are its own."""

    segments: Sequence[tuple[Weights, Tensor | None]]

    def of_layer(self, layer: int) -> LayerAdapters:
        return LayerAdapters(layer, self.segments)
