"""Gradient-boosted regression trees in numpy, small enough to read and to store as plain numbers.

Friedman (2001), with histograms as in LightGBM: features are cut into bins once, each level of a tree finds the split
of every node with two `bincount`s, and each tree fits what the trees before it left over. All trees are complete binary
trees of one depth, stored as arrays: node i has children 2 i + 1 and 2 i + 2. Same data, same seed, same bits.

    N rows, F features, T trees, D depth
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BadInput

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How trees are grown."""

    trees: int = 200
    depth: int = 6
    rate: float = 0.1
    """Share of the residual that each tree takes away."""
    bins: int = 128
    least_rows: int = 4
    """A leaf holds no fewer rows."""
    ridge: float = 1.0
    """Rows of zero that each leaf is averaged with."""


@dataclass(frozen=True, slots=True)
class Trees:
    """A fitted sum of trees: base + sum of leaves."""

    base: float
    feature: NDArray[np.int64]
    """[T, K], K = 2^D - 1 inner nodes: which feature each looks at."""
    threshold: Floats
    """[T, K]. A row goes right when its feature is above; infinity: never."""
    leaf: Floats
    """[T, L], L = 2^D leaves."""

    @property
    def depth(self) -> int:
        return int(self.leaf.shape[1]).bit_length() - 1

    def predict(self, rows_NF: Floats) -> Floats:
        """[N]. All trees at once, a level at a time."""
        trees, rows = len(self.leaf), len(rows_NF)
        tree_T1, row_1N = np.arange(trees)[:, None], np.arange(rows)[None, :]
        node_TN = np.zeros((trees, rows), dtype=np.int64)
        for _ in range(self.depth):
            feature_TN = self.feature[tree_T1, node_TN]
            right_TN = rows_NF[row_1N, feature_TN] > self.threshold[tree_T1, node_TN]
            node_TN = 2 * node_TN + 1 + right_TN
        leaf_TN = self.leaf[tree_T1, node_TN - (2**self.depth - 1)]
        return np.asarray(self.base + leaf_TN.sum(axis=0), dtype=np.float64)

    def as_json(self) -> dict[str, Any]:
        """Lists of numbers; infinity is null."""
        return {
            "base": self.base,
            "feature": self.feature.tolist(),
            "threshold": [[None if np.isinf(value) else value for value in tree] for tree in self.threshold.tolist()],
            "leaf": self.leaf.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], features: int) -> Trees:
        """Raises BadInput when shapes do not fit each other or a node looks at a feature that is not there."""
        feature = np.asarray(data["feature"], dtype=np.int64)
        threshold = np.asarray(
            [[np.inf if value is None else value for value in tree] for tree in data["threshold"]], dtype=np.float64
        )
        leaf = np.asarray(data["leaf"], dtype=np.float64)
        sound = (
            feature.ndim == leaf.ndim == 2
            and feature.shape == threshold.shape == (len(leaf), leaf.shape[1] - 1)
            and leaf.shape[1].bit_count() == 1
            and bool(np.isfinite(leaf).all())
            and bool(((feature >= 0) & (feature < features)).all())
        )
        if not sound:
            raise BadInput(
                field="trees", value=leaf.shape, why="feature, threshold and leaf do not make complete binary trees",
                remedy="train it again; the file is damaged",
            )  # fmt: skip
        return cls(float(data["base"]), feature, threshold, leaf)


def grow(rows_NF: Floats, target_N: Floats, growth: Growth | None = None) -> Trees:
    """Fit. O(trees x depth x N x F)."""
    growth = growth or Growth()
    edges, binned_NF = _bin(rows_NF, growth.bins)
    base = float(target_N.mean())
    left_over = target_N - base
    shape = growth.trees, 2**growth.depth - 1
    feature, threshold = np.zeros(shape, dtype=np.int64), np.full(shape, np.inf)
    leaf = np.zeros((growth.trees, 2**growth.depth))
    for tree in range(growth.trees):
        place_N = _grow_one(binned_NF, edges, left_over, growth, feature[tree], threshold[tree])
        sums = np.bincount(place_N, weights=left_over, minlength=leaf.shape[1])
        counts = np.bincount(place_N, minlength=leaf.shape[1])
        leaf[tree] = growth.rate * sums / (counts + growth.ridge)
        left_over = left_over - leaf[tree][place_N]
    return Trees(base, feature, threshold, leaf)


def _bin(rows_NF: Floats, bins: int) -> tuple[list[Floats], NDArray[np.int64]]:
    """Thresholds per feature, midway between neighbouring values, and each row's bin: how many thresholds lie below."""
    edges: list[Floats] = []
    binned = np.empty(rows_NF.shape, dtype=np.int64)
    for column in range(rows_NF.shape[1]):
        values = np.unique(rows_NF[:, column])
        if len(values) > bins:
            values = np.unique(np.quantile(rows_NF[:, column], np.linspace(0, 1, bins), method="nearest"))
        edges.append((values[1:] + values[:-1]) / 2)
        binned[:, column] = np.searchsorted(edges[-1], rows_NF[:, column], side="left")
    return edges, binned


def _grow_one(
    binned_NF: NDArray[np.int64], edges: list[Floats], target_N: Floats, growth: Growth,
    feature_K: NDArray[np.int64], threshold_K: Floats,
) -> NDArray[np.int64]:  # fmt: skip
    """One tree, level by level, into the given arrays. Returns each row's leaf."""
    rows, features = binned_NF.shape
    width = max((len(one) for one in edges), default=0) + 1
    place_N = np.zeros(rows, dtype=np.int64)
    offsets_F = np.arange(features) * width
    for level in range(growth.depth):
        nodes = 2**level
        cell_NF = place_N[:, None] * (features * width) + offsets_F + binned_NF
        size = nodes * features * width
        flat, weight = cell_NF.ravel(), np.repeat(target_N, features)
        sums = np.bincount(flat, weights=weight, minlength=size).reshape(nodes, features, width).cumsum(axis=2)
        counts = np.bincount(flat, minlength=size).reshape(nodes, features, width).cumsum(axis=2)
        total_s, total_c = sums[:, :, -1:], counts[:, :, -1:]
        right_s, right_c = total_s - sums, total_c - counts
        gain = (
            sums**2 / (counts + growth.ridge) + right_s**2 / (right_c + growth.ridge)
            - total_s**2 / (total_c + growth.ridge)
        )  # fmt: skip
        gain[(counts < growth.least_rows) | (right_c < growth.least_rows)] = -np.inf
        best = gain.reshape(nodes, -1).argmax(axis=1)
        worth = gain.reshape(nodes, -1)[np.arange(nodes), best] > 1e-12
        chosen, cut = best // width, best % width
        first = nodes - 1
        for node in np.flatnonzero(worth):
            feature_K[first + node] = chosen[node]
            threshold_K[first + node] = edges[chosen[node]][cut[node]]
        right_N = worth[place_N] & (binned_NF[np.arange(rows), chosen[place_N]] > cut[place_N])
        place_N = 2 * place_N + right_N
    return place_N
