"""top_k, top_p and min_p: each sets the weights of the tokens it drops to zero.

Weights are exp((logit - largest) / temperature): the largest is 1, and no sum is needed to compare two of them.
Tokens are ordered by weight, equal weights by id. top_k keeps whatever ties with the k-th, as the usual
implementations do; top_p keeps the shortest head of the order whose share reaches p.

Neither sorts a large vocabulary: both look at the tokens above a bound first, and lower it while those are few. Among
these a histogram over the leading bits of the weights finds the bin in which the cut falls, and that bin alone is
sorted. The result is exact: bins follow the order, and equal weights share one. Only a small vocabulary is sorted
whole, for all rows at once: there the calls cost more than the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BOUNDS: Final = (1e-2, 1e-4, 0.0)
"""Relative to the most likely token. A trained model's head is sharp: the first bound leaves a few dozen tokens."""


SMALL_VOCABULARY: Final = 2048
"""Up to here `keep_top_p_of_rows` is the faster one: 0.9 ms against 2.4 to 3.4 ms for 64 rows of 1024."""


def keep_top_k(weights: NDArray[np.float32], k: int) -> None:
    """Zero all of weights [V] that are smaller than the k-th largest. 0 < k < V."""
    for head in _heads(weights):
        values = weights[head]
        found = _narrow(values, None, k)
        if found is not None:
            sure, border, before = found
            among = values[border]
            kth = np.partition(among, len(among) - (k - int(before)))[len(among) - (k - int(before))]
            _keep(weights, head[np.concatenate([sure, border[among >= kth]])])
            return


def keep_top_p(weights: NDArray[np.float32], p: float) -> None:
    """Zero all of weights [V] outside the shortest head whose share of the sum reaches p. 0 < p < 1.

    Source: nucleus sampling, Holtzman et al., ICLR 2020.
    """
    enough = p * float(weights.sum())
    for head in _heads(weights):
        values = weights[head]
        found = _narrow(values, values, enough)
        if found is not None:
            sure, border, before = found
            border = border[np.argsort(-values[border], kind="stable")]
            running = before + np.cumsum(values[border], dtype=np.float64)
            kept = int(np.searchsorted(running, enough)) + 1
            _keep(weights, head[np.concatenate([sure, border[:kept]])])
            return


def keep_top_p_of_rows(weights: NDArray[np.float32], p: NDArray[np.float64]) -> None:
    """`keep_top_p` on every row of weights [n, V], each with its own p of [n]."""
    ordered = np.sort(weights, axis=1)[:, ::-1]
    running = np.cumsum(ordered, axis=1, dtype=np.float64)
    last = (running < (p * running[:, -1])[:, None]).sum(axis=1)
    cut = ordered[np.arange(len(weights)), last][:, None]
    kept = weights >= cut
    surplus = kept.sum(axis=1) - (last + 1)
    for row in np.flatnonzero(surplus).tolist():
        ties = np.flatnonzero(weights[row] == cut[row])
        kept[row, ties[len(ties) - surplus[row] :]] = False
    weights *= kept


def keep_min_p(weights: NDArray[np.float32], p: float) -> None:
    """Zero all of weights [V] smaller than p times the largest, which is 1.

    Source: min-p sampling, Nguyen et al., ICLR 2025.
    """
    _keep(weights, np.flatnonzero(weights >= p))


def _heads(weights: NDArray[np.float32]) -> Iterator[NDArray[np.int64]]:
    for bound in _BOUNDS:
        yield np.flatnonzero(weights > bound)


def _narrow(
    values: NDArray[np.float32], shares: NDArray[np.float32] | None, enough: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], float] | None:
    """Where the largest values with `enough` shares together end; without `shares`, each counts 1.

    Returns: (indices that are in, indices of the bin in which the end lies, shares of the former); None if all values
    together have less.
    """
    # Positive floats order like their bits; exponent and three bits of the fraction make bins 6 to 12 % wide.
    bins = (values.view(np.uint32) >> np.uint32(20)).astype(np.int64)
    running = np.cumsum(np.bincount(bins, weights=shares)[::-1])
    position = int(np.searchsorted(running, enough))
    if position == len(running):
        return None
    cut = len(running) - 1 - position
    before = float(running[position - 1]) if position else 0.0
    return np.flatnonzero(bins > cut), np.flatnonzero(bins == cut), before


def _keep(weights: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
    values = weights[ids]
    weights.fill(0)
    weights[ids] = values
